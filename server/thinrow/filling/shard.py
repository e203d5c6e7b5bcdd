"""One shard of a fill: the group's stripes of the events that rows have values for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow.compaction.pair_writer import PairWriter, PreviousShard
from thinrow.compaction.rewrite import Rewritten
from thinrow.compaction.shard import (
    EVENTS_PER_CHUNK,
    ShardCounts,
    directory_chunks,
)
from thinrow.compaction.trait_values import to_series, to_values
from thinrow.core.runs import offsets_of, ranges
from thinrow.store.directory import parse_directories
from thinrow.store.keys import pack_keys
from thinrow.store.stripe import decode_stripes, encode_stripes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.filling.key_names import KeyNames
    from thinrow.filling.rows import FillRows
    from thinrow.filling.table import FillTable
    from thinrow.schema import FeatureGroup, Schema, Trait
    from thinrow.store.shard import Shard, ShardWriter

__all__ = ["FillCounts", "FillTask", "fill_shard"]

SHOWN_MAX = 3
"""Keys of events without a row that a report names."""
SEARCHED_MAX = 1000
"""Events of a chunk among which such keys are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FillTask:
    """Task of one fill for every shard."""

    schema: Schema
    group: FeatureGroup
    is_new: bool
    """True if stored stripes do not have the group yet."""
    table: FillTable


@dataclass(slots=True, kw_only=True)
class FillCounts:
    """Results of all shards so far."""

    events: int = 0
    """Events that a row matched."""
    events_unmatched: int = 0
    shown_events: list[dict[str, object]] = field(default_factory=list)
    """Some of those that no row matched: the columns of the key."""


def fill_shard(
    rows: FillRows,
    previous: PreviousShard,
    task: FillTask,
    counts: FillCounts,
    names: KeyNames,
    path: Path,
) -> tuple[ShardCounts, ShardWriter]:
    """Writes the next generation of one shard; its writer is still to be finished.

    Args:
        rows: Rows that may match events of the shard.
        previous: The shard so far.
        task: What to do.
        counts: Counts what is done.
        names: Names the keys of events that are shown.
        path: Folder to create.

    Raises:
        StoreError: the disk is full, or the previous files are damaged.
    """
    parts = _filled(rows, previous.shard, task, counts, names)
    pairs = PairWriter(previous, task.schema, path, whole=False)
    for part in parts:
        pairs.add(part)
    keys, writer = pairs.finish()
    made = ShardCounts(keys=keys, events=previous.summary.events, users=previous.summary.users)
    return made, writer


def _filled(
    rows: FillRows, shard: Shard, task: FillTask, counts: FillCounts, names: KeyNames
) -> Iterator[Rewritten]:
    for user_ids, values in directory_chunks(shard):
        directories = parse_directories(values)
        events = offsets_of(directories.event_counts - directories.first_ordinals)
        first = 0
        while first < len(user_ids):
            full = np.searchsorted(events, events[first] + EVENTS_PER_CHUNK, side="right") - 1
            last = min(max(int(full), first + 1), len(user_ids))
            stripes = _Stripes.of(user_ids[first:last], values[first:last], shard)
            part = _filled_stripes(stripes, rows, task, counts, names)
            if part.keys:
                yield part
            first = last


@dataclass(slots=True, kw_only=True)
class _Stripes:
    """All stripes of some users; arrays of shape (stripes,)."""

    shard: Shard
    owners: NDArray[np.int64]
    """Users."""
    numbers: NDArray[np.int64]
    counts: NDArray[np.int64]
    """Events."""

    @staticmethod
    def of(user_ids: NDArray[np.int64], values: Sequence[bytes], shard: Shard) -> _Stripes:
        directories = parse_directories(values)
        stripes = np.diff(directories.starts)
        user = np.repeat(np.arange(len(user_ids)), stripes)
        places = ranges(np.zeros_like(stripes), stripes)
        return _Stripes(
            shard=shard,
            owners=user_ids[user],
            numbers=directories.first_stripe[user] + places,
            counts=directories.stripe_ends - directories.stripe_ordinals,
        )

    def chosen(self, which: NDArray[np.bool_]) -> _Stripes:
        return _Stripes(
            shard=self.shard,
            owners=self.owners[which],
            numbers=self.numbers[which],
            counts=self.counts[which],
        )

    def keys(self, group: int) -> list[bytes]:
        return pack_keys(self.owners, group, self.numbers)

    def columns(
        self, traits: Sequence[Trait], schema: Schema, new_group: int | None
    ) -> dict[str, pl.Series]:
        """Canonical columns of all events, those of a group that is not stored yet as absent."""
        read: dict[int, list[bytes]] = {}
        for trait in traits:
            number = schema.group_of[trait.name]
            if number in read:
                continue
            is_new = number == new_group
            read[number] = (
                encode_stripes([], self.counts) if is_new else self.shard.get_all(self.keys(number))
            )
        total = int(self.counts.sum())
        return {
            trait.name: to_series(
                decode_stripes(
                    read[schema.group_of[trait.name]],
                    self.counts,
                    trait,
                    schema.native_traits[trait.name],
                ),
                total,
            )
            for trait in traits
        }


def _filled_stripes(
    stripes: _Stripes, rows: FillRows, task: FillTask, counts: FillCounts, names: KeyNames
) -> Rewritten:
    """The stripes of some users that change."""
    new_group = task.group.number if task.is_new else None
    columns: dict[str, pl.Series] = {}
    if task.table.by_user:
        columns["user_id"] = pl.Series(np.repeat(stripes.owners, stripes.counts))
    columns |= stripes.columns(task.table.key_traits, task.schema, new_group)
    events = pl.DataFrame(columns)
    found = rows.match(events)
    _count(found, events, counts, names)
    has = np.zeros(len(stripes.counts), dtype=np.bool_)
    if len(has):
        has = np.logical_or.reduceat(found >= 0, offsets_of(stripes.counts)[:-1])
    chosen = stripes.chosen(has)
    values = _encoded(chosen, found[np.repeat(has, stripes.counts)], rows, task, new_group)
    keys = chosen.keys(task.group.number)
    if not task.is_new:
        old = chosen.shard.get_all(keys)
        differs = [place for place, value in enumerate(values) if value != old[place]]
        keys, values = [keys[n] for n in differs], [values[n] for n in differs]
        return _rewritten(keys, values, keys)
    # Stripes without any value: bare, so that a missing one is always an error.
    bare = stripes.chosen(~has)
    pairs = dict(zip(keys, values, strict=True))
    pairs |= zip(bare.keys(task.group.number), encode_stripes([], bare.counts), strict=True)
    keys = sorted(pairs)
    return _rewritten(keys, [pairs[key] for key in keys], [])


def _rewritten(keys: list[bytes], values: list[bytes], replaced: list[bytes]) -> Rewritten:
    return Rewritten(
        keys=keys, values=values, replaced=replaced, events_added=0, events_dropped=0, users_added=0
    )


def _count(
    found: NDArray[np.int64], events: pl.DataFrame, counts: FillCounts, names: KeyNames
) -> None:
    unmatched = np.flatnonzero(found < 0)
    counts.events += len(found) - len(unmatched)
    counts.events_unmatched += len(unmatched)
    if len(unmatched) and len(counts.shown_events) < SHOWN_MAX:
        some = events[unmatched[:SEARCHED_MAX]].unique(maintain_order=True)
        shown = counts.shown_events
        # Of as many as are shown in all, at least those that are still wanted are new.
        new = [key for key in map(names.shown, some[:SHOWN_MAX].to_dicts()) if key not in shown]
        shown += new[: SHOWN_MAX - len(shown)]


def _encoded(
    chosen: _Stripes,
    found: NDArray[np.int64],
    rows: FillRows,
    task: FillTask,
    new_group: int | None,
) -> list[bytes]:
    """Encodes stripes whose events have the values of their rows, and else what they had."""
    ascending = sorted(task.group.traits, key=lambda trait: trait.number)
    filled = {trait.name for trait in task.table.filled}
    has_row = found >= 0
    kept = ascending
    if has_row.all():
        kept = [trait for trait in ascending if trait.name not in filled]
    old = chosen.columns(kept, task.schema, new_group)
    places = np.empty(len(found), dtype=np.int64)
    places[has_row] = np.arange(int(has_row.sum()))
    places[~has_row] = int(has_row.sum()) + np.flatnonzero(~has_row)
    columns = []
    for trait in ascending:
        if trait.name not in filled:
            series = old[trait.name]
        else:
            series = rows.values[trait.name].gather(found[has_row])
            if trait.name in old:
                before = old[trait.name]
                series = pl.concat([series.cast(before.dtype), before]).gather(places)
        columns.append(to_values(series.rechunk(), trait))
    return encode_stripes(columns, chosen.counts)
