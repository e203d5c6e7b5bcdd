"""Changes of a store's schema, from one generation to the next."""

from __future__ import annotations

from dataclasses import replace

from thinrow.core.ids import is_text_kind
from thinrow.core.traits import TraitType
from thinrow.errors import SchemaError
from thinrow.schema.groups import USER_GROUP, FeatureGroup, Schema
from thinrow.schema.traits import RESERVED, Trait

__all__ = ["GROUP_NUMBERS", "TRAIT_NUMBERS", "check_id_kinds", "evolve"]

GROUP_NUMBERS = 1 << 8
TRAIT_NUMBERS = 1 << 16
"""Numbers that fit into a key and into a stripe; those of what was removed stay taken."""


def evolve(stored: Schema, wanted: Schema) -> Schema:
    """Gives ``wanted`` the numbers of ``stored``, and new numbers to what is new.

    Raises:
        SchemaError: where stored stripes could not be read as ``wanted`` says.
    """
    check_id_kinds(stored, wanted)
    groups_end = USER_GROUP if is_text_kind(stored.user_ids) else GROUP_NUMBERS
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
    for group in stored.groups:
        if (
            "id" not in kept
            and group.name in ("user", "event")
            and any(trait.name == "id" for trait in group.traits)
        ):
            raise SchemaError(
                f"The store has a trait id in its group {group.name}, and [{group.name}] id names "
                f"the kind of {group.name} ids; write the trait as "
                f'id = {{ type = "int64" }}, of its own type.'
            )
    for trait in stored.key_traits:
        if trait.name not in kept:
            raise SchemaError(
                f"{trait.name} is a key of the stored digests and cannot be removed; put it back."
            )
    if group_number > groups_end or number > TRAIT_NUMBERS:
        raise SchemaError(
            "The store has given out every number that it has for groups or for traits, which "
            "are never used again; build a new store."
        )
    return Schema(
        groups=tuple(groups),
        next_group=group_number,
        next_trait=number,
        user_ids=stored.user_ids,
        event_ids=stored.event_ids,
    )


def check_id_kinds(stored: Schema, wanted: Schema) -> None:
    """Raises SchemaError if ids are of another kind than the stored ones."""
    for table, wants, has in (
        ("user", wanted.user_ids, stored.user_ids),
        ("event", wanted.event_ids, stored.event_ids),
    ):
        if wants != has:
            raise SchemaError(
                f"The schema says that {table} ids are {wants}, and the store's are {has}, which "
                f'never changes; write [{table}] id = "{has}", or build a new store.'
            )


def _check_unchanged(stored: Schema, old: Trait, new: Trait, group: int, group_name: str) -> None:
    if stored.group_of[old.name] != group:
        raise SchemaError(
            f"{group_name}.{new.name} was stored in another feature group; leave it there, or "
            f"add a trait of another name."
        )
    # The limit of a vocabulary may change: no code does.
    if replace(new, number=old.number) != replace(old, values_max=new.values_max):
        raise SchemaError(
            f"{group_name}.{new.name} differs from the store, which has {_describe(old)}; stored "
            f"histories cannot change, so add a trait of another name."
        )


def _describe(trait: Trait) -> str:
    label = trait.label if trait.buckets is None else TraitType.STRING.label
    label = label if trait.coded is None else trait.coded.label
    parts = [f'type = "{label}"']
    parts += [f"size = {trait.size}"] if trait.size > 1 else []
    parts += [f"length_max = {trait.length_max}"] if trait.length_max else []
    parts += ["sparse = true"] if trait.sparse else []
    default: object = [] if trait.default == () else trait.default
    is_given = default is not None and trait.buckets is None and trait.coded is None
    parts += [f"default = {default!r}"] if is_given else []
    parts += ["key = true"] if trait.key else []
    parts += [f'unit = "{trait.unit}"'] if trait.unit is not None else []
    parts += [f"scale = {trait.scale}"] if trait.scale is not None else []
    parts += [f"codes = {{ buckets = {trait.buckets} }}"] if trait.buckets is not None else []
    parts += ['codes = "vocabulary"'] if trait.coded is not None else []
    return "{ " + ", ".join(parts) + " }"
