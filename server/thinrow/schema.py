"""Feature groups and traits: what an event consists of.

A schema file is TOML, a table per feature group, a line per trait::

    [item]
    item_id = { type = "int64", key = true }   # part of the digest
    brand = "string"

    [feedback]
    rating = "int8"
    price = { type = "float32", sparse = true }                  # null where absent
    liked = { type = "bool", sparse = true, default = false }    # false where absent
    embedding = { type = "float16", size = 16 }                  # a fixed-size vector
"""

from __future__ import annotations

import math
import struct
import tomllib
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow import _native
from thinrow.core.files.io_errors import failure_reason
from thinrow.core.traits import TraitType as TraitType
from thinrow.errors import SchemaError, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "BUILT_IN",
    "DIRECTORY_GROUP",
    "EVENT_GROUP",
    "EVENT_ID",
    "EVENT_TS",
    "FIRST_GROUP",
    "FIRST_NUMBER",
    "GROUPS_MAX",
    "GROUP_NUMBERS",
    "LABELS",
    "NAME_BYTES_MAX",
    "RESERVED",
    "TRAITS_MAX",
    "TRAIT_NUMBERS",
    "VECTOR_SIZE_MAX",
    "VISIBLE_TS",
    "FeatureGroup",
    "Schema",
    "Trait",
    "evolve",
    "parse_schema",
    "read_schema",
]

GROUPS_MAX = 200
TRAITS_MAX = 4096
VECTOR_SIZE_MAX = 4096
NAME_BYTES_MAX = 128

GROUP_NUMBERS = 1 << 8
TRAIT_NUMBERS = 1 << 16
"""Numbers that fit into a key and into a stripe; those of what was removed stay taken."""

DIRECTORY_GROUP = 0
EVENT_GROUP = 1
FIRST_GROUP = 2
"""Numbers of the store's own groups, and of the first one of a schema."""


LABELS = {kind.label: kind for kind in TraitType}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """One column of an event."""

    name: str
    type: TraitType
    number: int
    """Identifies the trait in stored stripes for ever; never used again for another."""
    size: int = 1
    """Elements of a fixed-size vector; 1 for a scalar."""
    sparse: bool = False
    """True where events may lack the trait."""
    default: int | float | bool | str | None = None
    """Value of events that lack the trait; None: null."""
    key: bool = False
    """True where the trait is part of the digest."""

    @property
    def nullable(self) -> bool:
        """True where a history may hold nulls."""
        return self.sparse and self.default is None

    @property
    def default_word(self) -> int:
        """The default's bits, as an int64; for a categorical trait the value itself."""
        if self.default is None or isinstance(self.default, str):
            return 0
        value = np.array(self.default, dtype=self.type.value_dtype)
        return int(value.view(self.type.word_dtype).astype(np.int64))


VISIBLE_TS = Trait(name="visible_ts", type=TraitType.INT64, number=1)
EVENT_TS = Trait(name="event_ts", type=TraitType.INT64, number=2)
EVENT_ID = Trait(name="event_id", type=TraitType.INT64, number=3, sparse=True)
BUILT_IN = (EVENT_TS, EVENT_ID, VISIBLE_TS)
"""Traits that every event has, in the order answers list them."""
FIRST_NUMBER = 16
RESERVED = {
    *("user_id", "arrival_ts", "request_ts", "uih", "mutable", "uih_status"),
    *(trait.name for trait in BUILT_IN),
}
"""Columns of events, requests, thin rows and fat rows that are not traits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureGroup:
    """Traits stored together because models read them together."""

    name: str
    number: int
    traits: tuple[Trait, ...]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All feature groups, in the file's order."""

    groups: tuple[FeatureGroup, ...]
    next_group: int
    next_trait: int
    """Numbers that were never given out."""

    @cached_property
    def traits(self) -> tuple[Trait, ...]:
        """Every trait, in schema order."""
        return tuple(trait for group in self.groups for trait in group.traits)

    @cached_property
    def by_name(self) -> Mapping[str, Trait]:
        """Every trait and the built-in ones, by name."""
        return {trait.name: trait for trait in (*BUILT_IN, *self.traits)}

    @cached_property
    def group_of(self) -> Mapping[str, int]:
        """Number of the stored group that holds a trait, by the trait's name."""
        built_in = dict.fromkeys((trait.name for trait in BUILT_IN), EVENT_GROUP)
        return built_in | {t.name: group.number for group in self.groups for t in group.traits}

    @cached_property
    def key_traits(self) -> tuple[Trait, ...]:
        """Traits in the digest, by number: an order that no later schema changes."""
        return tuple(sorted((t for t in self.traits if t.key), key=lambda t: t.number))

    @cached_property
    def digest_traits(self) -> tuple[Trait, ...]:
        """Everything of an event that enters the digest, in the digest's order."""
        return (VISIBLE_TS, EVENT_TS, EVENT_ID, *self.key_traits)

    @cached_property
    def event_bytes(self) -> Mapping[int, int]:
        """Bytes of one event in each stored group, decoded; text counts as its index."""
        groups = {group.number: group.traits for group in self.groups} | {EVENT_GROUP: BUILT_IN}
        return {
            number: sum(trait.type.word_dtype.itemsize * trait.size for trait in traits)
            for number, traits in groups.items()
        }

    @cached_property
    def has_text(self) -> Mapping[int, bool]:
        """True for each stored group, by number, that has a trait of text."""
        groups = {group.number: group.traits for group in self.groups} | {EVENT_GROUP: BUILT_IN}
        return {
            number: any(trait.type is TraitType.STRING for trait in traits)
            for number, traits in groups.items()
        }

    @cached_property
    def native_traits(self) -> Mapping[str, _native.Trait]:
        """Every trait as the native code knows it, by name."""
        return {
            trait.name: _native.Trait(
                trait.name,
                trait.number,
                trait.type.value,
                trait.size,
                trait.nullable,
                None if trait.default is None else trait.default_word,
                trait.default if isinstance(trait.default, str) else None,
                self.group_of[trait.name],
            )
            for trait in self.by_name.values()
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "next_group": self.next_group,
            "next_trait": self.next_trait,
            "groups": [
                {
                    "name": group.name,
                    "number": group.number,
                    "traits": [
                        {
                            "name": trait.name,
                            "type": trait.type.label,
                            "number": trait.number,
                            "size": trait.size,
                            "sparse": trait.sparse,
                            "default": _default_to_json(trait.default),
                            "key": trait.key,
                        }
                        for trait in group.traits
                    ],
                }
                for group in self.groups
            ],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Schema:
        """The inverse of :meth:`to_json`."""
        groups = tuple(
            FeatureGroup(
                name=group["name"],
                number=group["number"],
                traits=tuple(
                    Trait(
                        **{
                            **trait,
                            "type": _stored_type(trait),
                            "default": _default_from_json(trait["default"]),
                        }
                    )
                    for trait in group["traits"]
                ),
            )
            for group in data["groups"]
        )
        return Schema(groups=groups, next_group=data["next_group"], next_trait=data["next_trait"])


def _stored_type(trait: Mapping[str, Any]) -> TraitType:
    """Returns the type of a stored trait.

    Raises:
        StoreError: This release does not know the type.
    """
    if (known := LABELS.get(trait["type"])) is None:
        raise StoreError(
            f"The store has the trait {trait['name']} of type {trait['type']}, which this release "
            f"does not know; open the store with the release that wrote it."
        )
    return known


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
    return Schema(groups=tuple(groups), next_group=FIRST_GROUP + len(groups), next_trait=number)


def evolve(stored: Schema, wanted: Schema) -> Schema:
    """Gives ``wanted`` the numbers of ``stored``, and new numbers to what is new.

    Raises:
        SchemaError: where stored stripes could not be read as ``wanted`` says.
    """
    number, group_number = stored.next_trait, stored.next_group
    known_groups = {group.name: group.number for group in stored.groups}
    groups: list[FeatureGroup] = []
    for group in wanted.groups:
        if group.name in known_groups:
            this_group = known_groups[group.name]
        else:
            this_group, group_number = group_number, group_number + 1
        traits: list[Trait] = []
        for trait in group.traits:
            old = None if trait.name in RESERVED else stored.by_name.get(trait.name)
            if old is not None:
                _check_unchanged(stored, old, trait, this_group, group.name)
                traits.append(replace(trait, number=old.number))
                continue
            if trait.key:
                raise SchemaError(
                    f"{group.name}.{trait.name} is new and cannot be a key: the digests of old "
                    f"histories were taken without it; remove key = true."
                )
            if not trait.sparse and trait.default is None:
                raise SchemaError(
                    f"{group.name}.{trait.name} is new and old events lack it; give it "
                    f"sparse = true or a default."
                )
            traits.append(replace(trait, number=number))
            number += 1
        groups.append(FeatureGroup(name=group.name, number=this_group, traits=tuple(traits)))
    kept = {trait.name for group in groups for trait in group.traits}
    for trait in stored.key_traits:
        if trait.name not in kept:
            raise SchemaError(
                f"{trait.name} is a key of the stored digests and cannot be removed; put it back."
            )
    if group_number > GROUP_NUMBERS or number > TRAIT_NUMBERS:
        raise SchemaError(
            "The store has given out every number that it has for groups or for traits, which "
            "are never used again; build a new store."
        )
    return Schema(groups=tuple(groups), next_group=group_number, next_trait=number)


def _check_unchanged(stored: Schema, old: Trait, new: Trait, group: int, group_name: str) -> None:
    if stored.group_of[old.name] != group:
        raise SchemaError(
            f"{group_name}.{new.name} was stored in another feature group; leave it there, or "
            f"add a trait of another name."
        )
    if replace(new, number=old.number) != old:
        raise SchemaError(
            f"{group_name}.{new.name} differs from the store, which has {_describe(old)}; stored "
            f"histories cannot change, so add a trait of another name."
        )


def _describe(trait: Trait) -> str:
    parts = [f'type = "{trait.type.label}"']
    parts += [f"size = {trait.size}"] if trait.size > 1 else []
    parts += ["sparse = true"] if trait.sparse else []
    parts += [f"default = {trait.default!r}"] if trait.default is not None else []
    parts += ["key = true"] if trait.key else []
    return "{ " + ", ".join(parts) + " }"


def _check_name(where: str, name: str) -> None:
    if not name.replace("_", "a").isalnum() or not name.isascii() or name[0].isdigit():
        raise SchemaError(
            f"{where}: {name!r} is not a name; use letters, digits and _, not a digit first."
        )
    if len(name) > NAME_BYTES_MAX:
        raise SchemaError(f"{where}: longer than {NAME_BYTES_MAX} letters.")


def _parse_trait(where: str, name: str, line: object, number: int) -> Trait:
    _check_name(where, name)
    if name in RESERVED:
        raise SchemaError(f"{where}: every event has {name} already; remove the line.")
    fields = {"type": line} if isinstance(line, str) else line
    if not isinstance(fields, dict):
        raise SchemaError(f'{where}: write {name} = "int64" or {name} = {{ type = "int64" }}.')
    unknown = set(fields) - {"type", "size", "sparse", "default", "key"}
    if unknown:
        raise SchemaError(
            f"{where}: unknown {sorted(unknown)[0]!r}; a trait has type, size, sparse, default "
            f"and key."
        )
    if "type" not in fields:
        raise SchemaError(f'{where}: no type; write {{ type = "int64" }} or another type.')
    kind = LABELS.get(fields["type"]) if isinstance(fields["type"], str) else None
    if kind is None:
        raise SchemaError(
            f"{where}: unknown type {fields['type']!r}; use one of {', '.join(LABELS)}."
        )
    for flag in ("sparse", "key"):
        if not isinstance(fields.get(flag, False), bool):
            raise SchemaError(f"{where}: {flag} is true or false.")
    size = fields.get("size", 1)
    if type(size) is not int or not 1 <= size <= VECTOR_SIZE_MAX:
        raise SchemaError(f"{where}: size is a whole number from 1 to {VECTOR_SIZE_MAX}.")
    if size > 1 and not kind.has_vectors:
        raise SchemaError(f"{where}: only traits of integers and floats have a size.")
    default = fields.get("default")
    if default is not None:
        default = _checked_default(where, kind, default)
    return Trait(
        name=name,
        type=kind,
        number=number,
        size=size,
        sparse=fields.get("sparse", False),
        default=default,
        key=fields.get("key", False),
    )


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


def _default_to_json(default: float | str | None) -> Any:  # noqa: ANN401 - a JSON value
    # JSON has no NaN or infinity, so floats travel as their bits.
    if isinstance(default, float):
        return {"float64": struct.pack(">d", default).hex()}
    return default


def _default_from_json(value: Any) -> Any:  # noqa: ANN401 - a JSON value
    if isinstance(value, dict):
        return struct.unpack(">d", bytes.fromhex(value["float64"]))[0]
    return value
