"""A schema proposed from the columns of a log: their types, what they look like, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
from thinrow.core.files.arrow import is_list_of_any_length, plain_type, shown_type
from thinrow.core.traits import LIST_LENGTH_MAX, SCALE_MAX, VECTOR_SIZE_MAX
from thinrow.errors import InputError
from thinrow.schema.traits import LABELS, LIST_LABELS, RESERVED, is_trait_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from thinrow.core.ids import IdKind

__all__ = [
    "ColumnFacts",
    "ProposedColumn",
    "ProposedSchema",
    "id_kind",
    "id_lines",
    "propose",
    "trait_line",
]

CATEGORIES_MAX = 4096
"""Limit on the distinct values of an integer that looks categorical."""
REPEATS_MIN = 20
"""Rows for each distinct value, at least, of an integer that looks categorical."""
UNIQUE_SHARE = 0.5
"""Share of distinct values from where on a column has high cardinality."""
RARE_SHARE = 0.5
"""Share of absent values from where on a trait is in a group of its own kind."""
ROOM_OF_LISTS = 2
"""Limit that is proposed for lists, at least, in multiples of the longest in the sample."""
GROUPS = ("item", "context", "rare", "vectors")
"""Groups in the order of the file: what models read together is stored together."""

Group = Literal["item", "context", "rare", "vectors"]
Options = dict[str, str | int]
"""Options of a trait but `sparse` and `key`, as a schema file has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnFacts:
    """Facts of one column of a log."""

    name: str
    kind: pa.DataType
    """Arrow type of the file."""
    rows: int
    """Rows of the log."""
    absent: int | None
    """Nulls of the whole log, NaN of integers aside; None if only the sample was counted."""
    sampled: int
    """Values of the sample that are not null."""
    sampled_absent: int
    """Nulls of the sample."""
    distinct: int | None
    """Distinct values of the sample; None for lists and structs."""
    lengths: tuple[int, int] | None = None
    """Elements of the sample's shortest and longest list; None where it has none."""
    whole: bool = False
    """True if a type of integers takes all floats of the sample; NaN is absent there."""
    text: bool = False
    """True if all binary values of the sample are UTF-8."""

    @property
    def absent_share(self) -> float:
        """Share of rows without a value."""
        if self.absent is not None:
            return self.absent / max(self.rows, 1)
        return self.sampled_absent / max(self.sampled + self.sampled_absent, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedColumn:
    """The proposal for one column."""

    name: str
    kind: str
    """Type in the log."""
    group: Group | None
    """The feature group; None where the column is no trait."""
    line: str
    """The line of the schema file; empty where the column is no trait."""
    reasons: tuple[str, ...]
    """Reasons of the proposal, as phrases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedSchema:
    """The proposal for a log."""

    columns: tuple[ProposedColumn, ...]
    """Columns in the order of the log."""
    user_ids: IdKind = "int64"
    """The kind of the users' ids."""
    event_ids: IdKind = "int64"
    """The kind of the events' ids."""

    @property
    def toml(self) -> str:
        """The schema file."""
        parts = []
        for group in GROUPS:
            lines = [column.line for column in self.columns if column.group == group]
            if lines:
                parts.append("\n".join([f"[{group}]", *lines]))
        ids = id_lines("user", self.user_ids) + id_lines("event", self.event_ids)
        return "\n\n".join(parts) + "\n" + ids


def propose(name: str, columns: Sequence[ColumnFacts]) -> ProposedSchema:
    """Proposes a schema that takes every value of a log.

    Args:
        name: Name of the log, for errors.
        columns: Its columns.

    Raises:
        InputError: No column can be a trait.
    """
    key = _key(columns)
    kinds = {column.name: id_kind(column.kind) for column in columns}
    found = ProposedSchema(
        columns=tuple(_proposed(column, key) for column in columns),
        user_ids=kinds.get("user_id", "int64"),
        event_ids=kinds.get("event_id", "int64"),
    )
    if not any(column.line for column in found.columns):
        raise InputError(
            f"{name} has no column that can be a trait; it has "
            f"{', '.join(column.name for column in columns)}."
        )
    return found


def id_kind(kind: pa.DataType) -> IdKind:
    """Returns the kind of ids for a column of a type."""
    kind, types = plain_type(kind), pa.types
    if types.is_uint64(kind):
        return "uint64"
    if isinstance(kind, pa.UuidType):
        return "uuid"
    return "string" if types.is_large_string(kind) or types.is_large_binary(kind) else "int64"


def id_lines(table: Literal["user", "event"], kind: IdKind) -> str:
    """Returns the lines of a schema file for a kind of ids, none for int64."""
    return "" if kind == "int64" else f'\n[{table}]\nid = "{kind}"\n'


def trait_line(
    name: str, kind: pa.DataType, *, sparse: bool = False, key: bool = False
) -> str | None:
    """Returns the line of a schema file for a column; None if its type is no trait's.

    Args:
        name: Name of the column.
        kind: Type of its values.
        sparse: True if events may lack the trait.
        key: True if it enters the digest.
    """
    options = _options(kind)
    return None if options is None else _line(name, options, sparse=sparse, key=key)


def _line(name: str, options: Options, *, sparse: bool, key: bool) -> str:
    parts = [f"{option} = {_toml(value)}" for option, value in options.items()]
    parts += ["sparse = true"] if sparse else []
    parts += ["key = true"] if key else []
    return f"{_toml(name) if '.' in name else name} = {{ {', '.join(parts)} }}"


def _toml(value: str | int) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _options(kind: pa.DataType) -> Options | None:
    """Returns the options of a trait that takes every value of a type."""
    kind, types = plain_type(kind), pa.types
    if types.is_fixed_size_list(kind):
        label, size = _label(kind.value_type), kind.list_size
        if label is None or not LABELS[label].has_vectors or not 2 <= size <= VECTOR_SIZE_MAX:
            return None
        return {"type": label, "size": size}
    if isinstance(kind, pa.UuidType | pa.JsonType) or types.is_large_string(kind):
        return {"type": "string"}
    if types.is_date32(kind):
        return {"type": "int32", "unit": "d"}
    if types.is_date64(kind):
        return {"type": "int64", "unit": "ms"}
    if types.is_timestamp(kind) or types.is_duration(kind) or types.is_time(kind):
        return {"type": "int64", "unit": kind.unit}
    if types.is_decimal(kind):
        if kind.precision > SCALE_MAX or not 0 <= kind.scale <= SCALE_MAX:
            return {"type": "float64"}
        return {"type": "int64", "scale": kind.scale} if kind.scale else {"type": "int64"}
    if types.is_floating(kind):
        return {"type": f"float{kind.bit_width}"}
    return {"type": str(kind)} if types.is_integer(kind) or types.is_boolean(kind) else None


def _label(kind: pa.DataType) -> str | None:
    """Returns the type of a trait that takes elements of a type; None if it needs more options."""
    options = _options(kind)
    return str(options["type"]) if options is not None and len(options) == 1 else None


def _list_options(kind: pa.DataType, longest: int) -> Options | None:
    """Returns the options of a trait of lists, with room for some longer than the sample's."""
    label = f"list<{_label(kind.value_type)}>"
    if label not in LIST_LABELS or longest > LIST_LENGTH_MAX:
        return None
    room = 1 << (ROOM_OF_LISTS * max(longest, 1) - 1).bit_length()
    return {"type": label, "length_max": min(room, LIST_LENGTH_MAX)}


def _key(columns: Iterable[ColumnFacts]) -> str | None:
    """Chooses the trait that identifies what an event is about; None where none looks like it."""
    ids = [
        column.name
        for column in columns
        if column.name not in RESERVED
        and is_trait_name(column.name)
        and column.absent == 0
        and _is_id(plain_type(column.kind))
        and column.name.endswith(("_id", "_key"))
    ]
    return min(ids, key=lambda name: not name.startswith("item"), default=None)


def _is_id(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_large_string(kind))


def _proposed(column: ColumnFacts, key: str | None) -> ProposedColumn:
    name, kind = column.name, plain_type(column.kind)
    shown = shown_type(kind)

    def left_out(reason: str) -> ProposedColumn:
        return ProposedColumn(name=name, kind=shown, group=None, line="", reasons=(reason,))

    if name in ("user_id", "event_id") and id_kind(kind) != "int64":
        of = name.removesuffix("_id")
        return left_out(f"not a trait: {of} ids are {id_kind(kind)}, as [{of}] says")
    if name in RESERVED:
        return left_out("not a trait: every event has it, or ThinRow writes it")
    if not is_trait_name(name):
        return left_out("left out: rename it to letters, digits and _ to have it as a trait")
    if pa.types.is_null(kind) or not column.sampled:
        return left_out("left out: it has no value")
    reasons: list[str] = []
    options = _chosen(column, kind, reasons)
    if options is None:
        return left_out("; ".join(reasons) or f"left out: no trait has the type {shown}")
    sparse = column.absent != 0
    if sparse:
        of = "" if column.absent is not None else " in the sample, and footers do not count all"
        reasons.append(f"sparse: {column.absent_share:.1%} absent{of}")
    if _looks_categorical(column, kind):
        options["type"] = "categorical"
        reasons.append(f"categorical: {column.distinct:,} distinct in {column.sampled:,}")
    elif column.distinct is not None and column.distinct > UNIQUE_SHARE * column.sampled > 1:
        reasons.append(f"high cardinality: {column.distinct:,} distinct in {column.sampled:,}")
    if name == key:
        reasons.append("key: it says what the event is about")
    group: Group = "context"
    if "size" in options or "length_max" in options:
        group = "vectors"
    elif name == key or name.startswith("item"):
        group = "item"
    elif column.absent_share >= RARE_SHARE:
        group = "rare"
    line = _line(name, options, sparse=sparse, key=name == key)
    return ProposedColumn(name=name, kind=shown, group=group, line=line, reasons=tuple(reasons))


def _chosen(column: ColumnFacts, kind: pa.DataType, reasons: list[str]) -> Options | None:
    """Returns the options of a column's trait, with a look at the values where types need one."""
    types = pa.types
    if types.is_large_binary(kind) and column.text:
        reasons.append("string: its bytes are UTF-8")
        return {"type": "string"}
    if is_list_of_any_length(kind) and column.lengths is not None:
        shortest, longest = column.lengths
        vector = _options(pa.list_(kind.value_type, longest)) if shortest == longest else None
        if vector is not None:
            reasons.append(f"vector: every list of the sample has {longest}")
            return vector
        options = _list_options(kind, longest)
        if options is not None:
            reasons.append(
                f"list: the longest of the sample has {longest}; one longer than length_max would "
                f"be refused"
            )
        elif longest > LIST_LENGTH_MAX:
            reasons.append(f"left out: a list has {longest} elements, and {LIST_LENGTH_MAX} fit")
        return options
    if types.is_floating(kind) and column.whole:
        reasons.append("whole numbers: a type of integers takes them, too")
    if types.is_decimal(kind) and kind.precision > SCALE_MAX:
        reasons.append(f"float64: int64 does not hold {kind.precision} digits")
    if types.is_temporal(kind):
        reasons.append("counts of its unit, since 1970 if it is a moment")
    return _options(kind)


def _looks_categorical(column: ColumnFacts, kind: pa.DataType) -> bool:
    is_wide = pa.types.is_integer(kind) and kind.bit_width >= 32 and not pa.types.is_uint64(kind)
    return (
        is_wide
        and column.distinct is not None
        and column.distinct <= CATEGORIES_MAX
        and column.distinct * REPEATS_MIN <= column.sampled
    )
