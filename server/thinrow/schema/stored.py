"""A schema as a store's manifest holds it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from thinrow.core.ids import ID_KINDS
from thinrow.errors import StoreError
from thinrow.schema.groups import FeatureGroup, Schema
from thinrow.schema.traits import LABELS, LIST_LABELS, Trait

if TYPE_CHECKING:
    from collections.abc import Mapping

    from thinrow.core.ids import IdKind
    from thinrow.core.traits import TraitType

__all__ = ["from_stored", "to_stored"]


def to_stored(schema: Schema) -> dict[str, Any]:
    """Returns a schema as plain JSON values, as manifests hold it."""
    return {
        **_kinds(schema),
        "next_group": schema.next_group,
        "next_trait": schema.next_trait,
        "groups": [
            {
                "name": group.name,
                "number": group.number,
                "traits": [
                    {
                        "name": trait.name,
                        "type": trait.label,
                        "number": trait.number,
                        "size": trait.size,
                        **({"length_max": trait.length_max} if trait.length_max else {}),
                        "sparse": trait.sparse,
                        "default": _default_to_json(trait.default),
                        "key": trait.key,
                        **_counted(trait),
                    }
                    for trait in group.traits
                ],
            }
            for group in schema.groups
        ],
    }


def from_stored(
    data: Mapping[str, Any],
    filled: Mapping[int, int] | None = None,
    codes_ends: Mapping[int, int] | None = None,
) -> Schema:
    """Reads the values of :func:`to_stored`.

    Args:
        data: The values.
        filled: `Trait.filled_before_ts` of the traits that were filled, by number.
        codes_ends: `Trait.codes_end` of the traits that have vocabularies, by number.

    Raises:
        StoreError: This release does not know a type.
    """
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
                        **({"coded": LABELS[trait["coded"]]} if "coded" in trait else {}),
                    },
                    filled_before_ts=(filled or {}).get(trait["number"]),
                    codes_end=(codes_ends or {}).get(trait["number"], 0),
                )
                for trait in group["traits"]
            ),
        )
        for group in data["groups"]
    )
    return Schema(
        groups=groups,
        next_group=data["next_group"],
        next_trait=data["next_trait"],
        user_ids=_kind(data, "user_ids"),
        event_ids=_kind(data, "event_ids"),
    )


def _kinds(schema: Schema) -> dict[str, str]:
    """Returns the kinds of ids that are not int64; those are stored as they always were."""
    kinds = {"user_ids": schema.user_ids, "event_ids": schema.event_ids}
    return {name: kind for name, kind in kinds.items() if kind != "int64"}


def _kind(data: Mapping[str, Any], name: str) -> IdKind:
    """Returns a stored kind of ids.

    Raises:
        StoreError: This release does not know it.
    """
    known: dict[str, IdKind] = {kind: kind for kind in ID_KINDS}
    kind = data.get(name, "int64")
    if kind not in known:
        raise StoreError(
            f"The store has {name.replace('_', ' ')} of the kind {kind}, which this release does "
            f"not know; open the store with the release that wrote it."
        )
    return known[kind]


def _stored_type(trait: Mapping[str, Any]) -> TraitType:
    """Returns the type of a stored trait.

    Raises:
        StoreError: This release does not know the type.
    """
    if (known := (LABELS | LIST_LABELS).get(trait["type"])) is None:
        raise StoreError(
            f"The store has the trait {trait['name']} of type {trait['type']}, which this release "
            f"does not know; open the store with the release that wrote it."
        )
    return known


def _default_to_json(default: float | str | tuple[()] | None) -> Any:  # noqa: ANN401 - a JSON value
    # JSON has no NaN or infinity, so floats travel as their bits.
    if isinstance(default, float):
        return {"float64": struct.pack(">d", default).hex()}
    return default


def _default_from_json(value: Any) -> Any:  # noqa: ANN401 - a JSON value
    if isinstance(value, dict):
        return struct.unpack(">d", bytes.fromhex(value["float64"]))[0]
    return () if value == [] else value


def _counted(trait: Trait) -> dict[str, Any]:
    """Returns the fields that only some traits have; others are stored as they always were."""
    fields: dict[str, str | int | None]
    fields = {"unit": trait.unit, "scale": trait.scale, "buckets": trait.buckets}
    if trait.coded is not None:
        fields |= {"coded": trait.coded.label, "values_max": trait.values_max}
    return {name: value for name, value in fields.items() if value is not None}
