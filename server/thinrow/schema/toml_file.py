"""Schema files.

A schema file is TOML, a table per feature group, a line per trait::

    [item]
    item_id = { type = "int64", key = true }   # part of the digest
    brand = "string"

    [feedback]
    rating = "int8"
    price = { type = "float32", sparse = true }                  # null where absent
    liked = { type = "bool", sparse = true, default = false }    # false where absent
    embedding = { type = "float16", size = 16 }                  # a fixed-size vector
    opened = { type = "int64", unit = "ms" }                     # dates, times, durations
    shop = { type = "string", codes = { buckets = 1000 } }       # codes of embeddings
    city = { type = "string", codes = "vocabulary" }             # the same, numbered by the store
    paid = { type = "int64", scale = 2 }                         # decimals, as hundredths
    tags = { type = "list<string>", length_max = 32 }            # a list of at most 32

    [user]
    id = "string"                 # the kind of user ids, if it is not int64; this is no trait

    [event]
    id = "uuid"                   # the same of event ids
"""

from __future__ import annotations

import math
import tomllib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.codes import BUCKETS_MAX, VALUES_MAX, VALUES_MAX_DEFAULT
from thinrow.core.files.io_errors import failure_reason
from thinrow.core.ids import ID_KINDS
from thinrow.core.traits import (
    LIST_LENGTH_MAX,
    NS_PER_UNIT,
    SCALE_MAX,
    VECTOR_SIZE_MAX,
    TraitType,
)
from thinrow.errors import SchemaError
from thinrow.schema.groups import FIRST_GROUP, FeatureGroup, Schema
from thinrow.schema.traits import (
    FIRST_NUMBER,
    LABELS,
    LIST_LABELS,
    NAME_BYTES_MAX,
    RESERVED,
    Trait,
    is_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from thinrow.core.ids import IdKind

__all__ = [
    "GROUPS_MAX",
    "TRAITS_MAX",
    "parse_schema",
    "read_schema",
]

GROUPS_MAX = 200
TRAITS_MAX = 4096
KEYS = {"codes", "default", "key", "length_max", "scale", "size", "sparse", "type", "unit"}
KEYS |= {"values_max"}
VOCABULARY = "vocabulary"
"""The value of ``codes`` for which the store numbers the values that it has."""


def read_schema(path: Path) -> Schema:
    """Reads a schema file.

    Raises:
        SchemaError: names the file, the key at fault and what would be right.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(
            f"Cannot read the schema file {path}: {failure_reason(error)}."
        ) from error
    try:
        return parse_schema(text)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


def parse_schema(text: str) -> Schema:
    """Parses a schema file's text. Errors as :func:`read_schema`."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SchemaError(f"Not a TOML file: {error}.") from error
    user_ids, event_ids = _take_id_kind(tables, "user"), _take_id_kind(tables, "event")
    if not tables:
        raise SchemaError("No feature groups; write a table per group, such as [item].")
    if len(tables) > GROUPS_MAX:
        raise SchemaError(f"{len(tables)} feature groups; at most {GROUPS_MAX} are supported.")
    groups: list[FeatureGroup] = []
    owners: dict[str, str] = {}
    number = FIRST_NUMBER
    for group_number, (group_name, lines) in enumerate(tables.items(), FIRST_GROUP):
        if not isinstance(lines, dict):
            raise SchemaError(
                f"{group_name} stands outside of a feature group; put it under a table "
                f"such as [item]."
            )
        _check_name(group_name, group_name)
        if not lines:
            raise SchemaError(f"[{group_name}] has no traits; list at least one or remove it.")
        traits: list[Trait] = []
        for name, line in lines.items():
            where = f"{group_name}.{name}"
            if name in owners:
                raise SchemaError(
                    f"{where}: {owners[name]}.{name} has that name already; trait names are "
                    f"unique in a schema."
                )
            owners[name] = group_name
            traits.append(_parse_trait(where, name, line, number))
            number += 1
        groups.append(FeatureGroup(name=group_name, number=group_number, traits=tuple(traits)))
    if len(owners) > TRAITS_MAX:
        raise SchemaError(f"{len(owners)} traits; at most {TRAITS_MAX} are supported.")
    return Schema(
        groups=tuple(groups),
        next_group=FIRST_GROUP + len(groups),
        next_trait=number,
        user_ids=user_ids,
        event_ids=event_ids,
    )


def _take_id_kind(tables: dict[str, Any], table: str) -> IdKind:
    """Takes the kind of ids out of ``user`` or ``event``, which may be a feature group, too."""
    lines = tables.get(table)
    if not isinstance(lines, dict) or not isinstance(lines.get("id"), str):
        return "int64"
    kind = lines.pop("id")
    if kind not in ID_KINDS:
        raise SchemaError(
            f"{table}.id: {kind!r} is no kind of {table} ids; use one of {', '.join(ID_KINDS)} (a "
            f'trait of that name is written as id = {{ type = "{kind}" }}).'
        )
    if not lines:
        del tables[table]
    found: IdKind = kind
    return found


def _check_name(where: str, name: str) -> None:
    if not is_name(name):
        raise SchemaError(
            f"{where}: {name!r} is not a name; use letters, digits and _, not a digit first."
        )
    if len(name) > NAME_BYTES_MAX:
        raise SchemaError(f"{where}: longer than {NAME_BYTES_MAX} letters.")


def _parse_trait(where: str, name: str, line: object, number: int) -> Trait:
    for part in name.split("."):
        _check_name(where, part)
    if len(name) > NAME_BYTES_MAX:
        raise SchemaError(f"{where}: longer than {NAME_BYTES_MAX} letters.")
    if name in RESERVED:
        raise SchemaError(f"{where}: every event has {name} already; remove the line.")
    fields = {"type": line} if isinstance(line, str) else line
    if not isinstance(fields, dict):
        raise SchemaError(f'{where}: write {name} = "int64" or {name} = {{ type = "int64" }}.')
    unknown = set(fields) - KEYS
    if unknown:
        raise SchemaError(
            f"{where}: unknown {sorted(unknown)[0]!r}; a trait has {', '.join(sorted(KEYS))}."
        )
    if "type" not in fields:
        raise SchemaError(f'{where}: no type; write {{ type = "int64" }} or another type.')
    known = LABELS | LIST_LABELS
    kind = known.get(fields["type"]) if isinstance(fields["type"], str) else None
    if kind is None:
        raise SchemaError(
            f"{where}: unknown type {fields['type']!r}; use one of {', '.join(LABELS)}, or a list "
            f"of one, such as list<int64>."
        )
    is_list = fields["type"] in LIST_LABELS
    for flag in ("sparse", "key"):
        if not isinstance(fields.get(flag, False), bool):
            raise SchemaError(f"{where}: {flag} is true or false.")
    size = fields.get("size", 1)
    if type(size) is not int or not 1 <= size <= VECTOR_SIZE_MAX:
        raise SchemaError(f"{where}: size is a whole number from 1 to {VECTOR_SIZE_MAX}.")
    if size > 1 and not kind.has_vectors:
        raise SchemaError(f"{where}: only traits of integers and floats have a size.")
    unit, scale = fields.get("unit"), fields.get("scale")
    if unit is not None and unit not in list(NS_PER_UNIT):
        raise SchemaError(f"{where}: unit is one of {', '.join(NS_PER_UNIT)}.")
    if scale is not None and (type(scale) is not int or not 0 <= scale <= SCALE_MAX):
        raise SchemaError(f"{where}: scale is a whole number from 0 to {SCALE_MAX}.")
    if (unit, scale) != (None, None) and (
        not kind.is_integer or size > 1 or is_list or None not in (unit, scale)
    ):
        raise SchemaError(f"{where}: only single integers have a unit or a scale, and one of them.")
    length_max = _list_length_max(where, fields, is_list=is_list)
    default: Any = fields.get("default")
    buckets, coded, values_max = None, None, _values_max(where, fields)
    if fields.get("codes") == VOCABULARY:
        _check_coded(where, fields, kind)
        coded = kind
    elif "codes" in fields:
        buckets = _parse_buckets(where, fields)
    if "codes" in fields:
        kind, default = TraitType.INT32, 0 if fields.get("sparse", False) else None
    if is_list and default is not None:
        if default != []:
            raise SchemaError(f"{where}: the default of a list is [], the empty list.")
        default = ()
    elif default is not None:
        default = _checked_default(where, kind, default)
    return Trait(
        name=name,
        type=kind,
        number=number,
        size=size,
        length_max=length_max,
        sparse=fields.get("sparse", False),
        default=default,
        key=fields.get("key", False),
        unit=unit,
        scale=scale,
        buckets=buckets,
        coded=coded,
        values_max=values_max,
    )


def _parse_buckets(where: str, fields: Mapping[str, object]) -> int:
    codes = fields["codes"]
    buckets = codes.get("buckets") if isinstance(codes, dict) and len(codes) == 1 else None
    if type(buckets) is not int or not 1 <= buckets <= BUCKETS_MAX:
        raise SchemaError(
            f"{where}: write codes = {{ buckets = N }}, with N from 1 to {BUCKETS_MAX}, or codes = "
            f'"{VOCABULARY}".'
        )
    if fields["type"] != TraitType.STRING.label or "default" in fields:
        raise SchemaError(
            f'{where}: codes are those of type = "string", and 0 where the trait is absent, so '
            f"there is no default."
        )
    return buckets


def _values_max(where: str, fields: Mapping[str, object]) -> int:
    """Returns the limit of a vocabulary; 0 where the trait has none."""
    if fields.get("codes") != VOCABULARY:
        if "values_max" in fields:
            raise SchemaError(f'{where}: only traits with codes = "{VOCABULARY}" have values_max.')
        return 0
    values_max = fields.get("values_max", VALUES_MAX_DEFAULT)
    if type(values_max) is not int or not 1 <= values_max <= VALUES_MAX:
        raise SchemaError(f"{where}: values_max is a whole number from 1 to {VALUES_MAX}.")
    return values_max


def _check_coded(where: str, fields: Mapping[str, object], kind: TraitType) -> None:
    """Refuses a vocabulary of values that have none."""
    is_single = fields["type"] in LABELS and fields.get("size", 1) == 1
    if not is_single or not (kind is TraitType.STRING or kind.is_integer):
        raise SchemaError(
            f'{where}: codes = "{VOCABULARY}" are those of single strings and integers.'
        )
    if {"unit", "scale", "default"} & {*fields}:
        raise SchemaError(
            f'{where}: codes = "{VOCABULARY}" are 0 where the trait is absent and count nothing, '
            f"so there is no default, unit or scale."
        )
    if fields.get("key", False):
        raise SchemaError(
            f'{where}: a trait with codes = "{VOCABULARY}" is no key, as digests do not depend '
            f"on the store that gave the codes; add the values as a trait of their own."
        )


def _list_length_max(where: str, fields: Mapping[str, Any], *, is_list: bool) -> int:
    """Returns the limit of a list; 0 where the trait is none."""
    if not is_list:
        if "length_max" in fields:
            raise SchemaError(f"{where}: only lists, such as list<int64>, have a length_max.")
        return 0
    if "size" in fields:
        raise SchemaError(f"{where}: a list has a length_max, and no size.")
    length_max = fields.get("length_max")
    if type(length_max) is not int or not 1 <= length_max <= LIST_LENGTH_MAX:
        raise SchemaError(
            f"{where}: a list needs length_max, the most elements that an event may have, from 1 "
            f"to {LIST_LENGTH_MAX}."
        )
    return length_max


def _checked_default(where: str, kind: TraitType, default: object) -> int | float | bool | str:
    if kind is TraitType.STRING:
        if isinstance(default, str):
            return default
        raise SchemaError(f'{where}: the default of a string is text, such as "".')
    if kind is TraitType.BOOL:
        if isinstance(default, bool):
            return default
        raise SchemaError(f"{where}: the default of a bool is true or false.")
    if kind.is_float:
        if isinstance(default, int | float) and type(default) is not bool and default == default:
            # A whole number past every float has no infinity to become.
            with np.errstate(over="ignore"), suppress(OverflowError):
                fitted = float(np.array(default, dtype=kind.value_dtype))
                if math.isfinite(fitted) or math.isinf(default):
                    return fitted
        raise SchemaError(f"{where}: the default of a {kind.label} is a number that fits, not NaN.")
    bounds = np.iinfo(kind.value_dtype)
    if type(default) is int and bounds.min <= default <= bounds.max:
        return default
    raise SchemaError(
        f"{where}: the default of a {kind.label} is a whole number from {bounds.min} to "
        f"{bounds.max}."
    )
