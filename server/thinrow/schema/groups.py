"""Feature groups, and the schema that they make up."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

from thinrow import _native
from thinrow.core.ids import id_type
from thinrow.core.traits import TraitType
from thinrow.schema.traits import BUILT_IN_NAMES, EVENT_ID, EVENT_TS, VISIBLE_TS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from thinrow.core.ids import IdKind
    from thinrow.schema.traits import Trait

__all__ = ["DIRECTORY_GROUP", "EVENT_GROUP", "FIRST_GROUP", "USER_GROUP", "FeatureGroup", "Schema"]

DIRECTORY_GROUP = 0
EVENT_GROUP = 1
FIRST_GROUP = 2
"""Numbers of the store's own groups, and of the first one of a schema."""
USER_GROUP = 255
"""Number under which the texts of users lie, where ids are texts; else a schema's last."""


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
    user_ids: IdKind = "int64"
    """The kind of the users' ids."""
    event_ids: IdKind = "int64"
    """The kind of the events' ids."""

    def __getstate__(self) -> dict[str, object]:
        """Leaves out what is computed: some of it belongs to this process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def event_id(self) -> Trait:
        """The built-in trait that is an event's id."""
        return replace(EVENT_ID, type=id_type(self.event_ids))

    @cached_property
    def built_in(self) -> tuple[Trait, ...]:
        """Traits that every event has, in the order answers list them."""
        return (EVENT_TS, self.event_id, VISIBLE_TS)

    @cached_property
    def traits(self) -> tuple[Trait, ...]:
        """Every trait, in schema order."""
        return tuple(trait for group in self.groups for trait in group.traits)

    @cached_property
    def coded_traits(self) -> tuple[Trait, ...]:
        """Traits with a vocabulary, in schema order."""
        return tuple(trait for trait in self.traits if trait.coded is not None)

    @cached_property
    def carried(self) -> Schema:
        """The schema of events outside of stores, which have values where stores have codes."""
        if not self.coded_traits:
            return self
        groups = (
            replace(group, traits=tuple(trait.carried for trait in group.traits))
            for group in self.groups
        )
        return replace(self, groups=tuple(groups))

    @cached_property
    def by_name(self) -> Mapping[str, Trait]:
        """Every trait and the built-in ones, by name."""
        return {trait.name: trait for trait in (*self.built_in, *self.traits)}

    @cached_property
    def group_of(self) -> Mapping[str, int]:
        """Number of the stored group that holds a trait, by the trait's name."""
        built_in = dict.fromkeys(BUILT_IN_NAMES, EVENT_GROUP)
        return built_in | {t.name: group.number for group in self.groups for t in group.traits}

    @cached_property
    def key_traits(self) -> tuple[Trait, ...]:
        """Traits in the digest, by number: an order that no later schema changes."""
        return tuple(sorted((t for t in self.traits if t.key), key=lambda t: t.number))

    @cached_property
    def digest_traits(self) -> tuple[Trait, ...]:
        """Everything of an event that enters the digest, in the digest's order."""
        return (VISIBLE_TS, EVENT_TS, self.event_id, *self.key_traits)

    @cached_property
    def event_bytes(self) -> Mapping[int, int]:
        """Bytes of one event in each stored group, decoded; text counts as its index, a list as
        one element."""
        groups = {group.number: group.traits for group in self.groups}
        groups[EVENT_GROUP] = self.built_in
        return {
            number: sum(trait.type.word_dtype.itemsize * trait.size for trait in traits)
            for number, traits in groups.items()
        }

    @cached_property
    def has_varying(self) -> Mapping[int, bool]:
        """True for each stored group, by number, with texts or lists: of no size known before."""
        groups = {group.number: group.traits for group in self.groups}
        groups[EVENT_GROUP] = self.built_in
        return {
            number: any(trait.type is TraitType.STRING or trait.length_max for trait in traits)
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
                trait.length_max,
                trait.filled_before_ts is not None,
                trait.codes_end,
            )
            for trait in self.by_name.values()
        }
