"""Placement of shards on groups, which moves as few shards as can be.

Shards are dealt in the order of their bit-reversed number, in runs. So shards of one group agree in
their low bits, and of rows in parts, each part lies in as few groups as can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["dealing_order", "owners_of", "placement"]


def dealing_order(shards: int) -> list[int]:
    """Returns all shards in the order of their bit-reversed number.

    Args:
        shards: Number of shards, a power of two.
    """
    order = [0]
    while len(order) < shards:
        # A number with one bit more, whose lowest bit decides first: even ones, then odd ones.
        order = [2 * number for number in order] + [2 * number + 1 for number in order]
    return order


def owners_of(placed: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """Returns the group of each shard that a placement gives."""
    return {shard: name for name, numbers in placed.items() for shard in numbers}


def placement(
    shards: int, groups: Sequence[str], owners: Mapping[int, str] | None = None
) -> dict[str, list[int]]:
    """Gives each group its shards, whose numbers differ by one at most.

    Args:
        shards: Number of shards, a power of two.
        groups: Names of the groups.
        owners: The group that each shard has now, maybe one that is not wanted any more; None where
            there is no map yet.

    Returns:
        The shards of each group, ascending.

    Raises:
        UsageError: There are more groups than shards.
    """
    count = len(groups)
    if count > shards:
        raise UsageError(
            f"The store has {shards} shards, too few for {count} groups; name at most {shards}."
        )
    order = dealing_order(shards)
    if owners is None:
        cuts = [each * shards // count for each in range(count + 1)]
        return {
            name: sorted(order[cuts[each] : cuts[each + 1]]) for each, name in enumerate(groups)
        }
    kept: dict[str, list[int]] = {name: [] for name in groups}
    for shard in order:
        if owners.get(shard) in kept:
            kept[owners[shard]].append(shard)
    # Groups that have most shards get the larger number, so that they give up fewer.
    sizes = dict.fromkeys(groups, shards // count)
    for name in sorted(groups, key=lambda name: -len(kept[name]))[: shards % count]:
        sizes[name] += 1
    placed = {name: kept[name][: sizes[name]] for name in groups}
    staying = {shard for numbers in placed.values() for shard in numbers}
    free = [shard for shard in order if shard not in staying]
    for name in groups:
        wanted = sizes[name] - len(placed[name])
        placed[name] = sorted(placed[name] + free[:wanted])
        free = free[wanted:]
    return placed
