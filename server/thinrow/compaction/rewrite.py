"""Some users' histories, continued: their new events, their unfinished stripes, their directories.

Full stripes are left alone. A run decodes and rewrites those short stripes behind a
user's last full one that become longer ones, and the one stripe that a retention horizon cuts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow.compaction.trait_values import to_series, to_values
from thinrow.compaction.user_texts import new_pairs, stored_keys
from thinrow.core.runs import offsets_of, ranges
from thinrow.schema import DIRECTORY_GROUP, EVENT_GROUP, EVENT_TS, VISIBLE_TS
from thinrow.store.digest import digest_fields
from thinrow.store.directory import (
    NEVER_TS,
    Directories,
    encode_directories,
    parse_directories,
)
from thinrow.store.hashing import event_digests
from thinrow.store.history import bisect_left
from thinrow.store.keys import pack_keys
from thinrow.store.stripe import STRIPE_EVENTS_MAX, decode_stripes, encode_stripes
from thinrow.store.striping import cut_stripes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.schema import Schema, Trait
    from thinrow.store.shard import Shard
    from thinrow.store.stripe import TraitValues
    from thinrow.store.user_texts import UserTexts

__all__ = ["FRONT", "TAIL", "RewritePlan", "Rewritten", "rewrite_users"]

FRONT, TAIL = 0, 1
"""Runs of rows that are cut into stripes: one that retention cut, and a history's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewritePlan:
    """Values that hold for every user of a run."""

    schema: Schema
    new_groups: frozenset[int]
    """Groups that stored stripes do not have yet."""
    horizon_ts: int
    """Events before are dropped; NEVER_TS keeps all."""
    erased: NDArray[np.int64]
    """Users to erase, ascending."""
    watermark_ts: int
    new_texts: UserTexts | None = None
    """Users whose texts are not stored yet, where ids are texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten:
    """Results of some users."""

    keys: list[bytes]
    """Ascending."""
    values: list[bytes]
    replaced: list[bytes]
    """Keys of the old pairs that go; some of them come again."""
    events_added: int
    events_dropped: int
    users_added: int
    """Change in the number of users that have events."""


def rewrite_users(
    user_ids: NDArray[np.int64], events: pl.DataFrame, previous: Shard | None, plan: RewritePlan
) -> Rewritten:
    """Continues the histories of ``user_ids`` (ascending as keys are) with ``events``.

    ``events`` are those users' new events, in order, in canonical form with ``visible_ts``.
    """
    users = len(user_ids)
    stored, old = _old_directories(user_ids, previous, plan)
    tail, cut = _stripes_to_decode(old, plan.horizon_ts)
    fresh_user = np.searchsorted(
        user_ids.view(np.uint64), events["user_id"].to_numpy().view(np.uint64)
    )
    fresh_counts = np.bincount(fresh_user, minlength=users)
    fresh = events.select(
        pl.Series("run", 2 * fresh_user + TAIL, dtype=pl.Int64),
        pl.Series("ordinal", ranges(old.event_counts, fresh_counts), dtype=pl.Int64),
        *(trait.name for _, traits in _stored_groups(plan.schema) for trait in traits),
    )
    unchanged, passed = np.zeros_like(tail), np.zeros_like(tail)
    if plan.horizon_ts == NEVER_TS:
        unchanged, passed, tail = _unchanged(old, tail, fresh_counts)
    decoded = _decoded(user_ids, old, tail, cut, previous, plan)
    rows = fresh
    if len(decoded):
        rows = pl.concat([decoded, fresh])
        # In each run what was stored comes first, so the order within runs is right already.
        rows = rows[np.argsort(rows["run"].to_numpy(), kind="stable")]

    run_sums = np.stack([_sum_before(old, cut), _sum_before(old, tail)], axis=1).reshape(-1)
    known = _digest_values(rows, plan.schema)
    before, run_sums = _running_sums(rows, run_sums, known, plan.schema)
    kept = rows["visible_ts"].to_numpy() >= plan.horizon_ts
    dropped_ts = old.dropped_ts.copy()
    np.maximum.at(
        dropped_ts, rows["run"].to_numpy()[~kept] // 2, rows["visible_ts"].to_numpy()[~kept]
    )
    if not kept.all():
        rows, before, known = rows.filter(kept), before[kept], {}

    # Each run is cut into stripes that continue the numbers of those before it.
    run = rows["run"].to_numpy()
    lengths = np.bincount(run, minlength=2 * users)
    stripe_run, stripe_sizes = cut_stripes(
        lengths[FRONT::2], lengths[TAIL::2] + passed, STRIPE_EVENTS_MAX
    )
    place = _places(stripe_run) - np.where(stripe_run % 2 == TAIL, unchanged[stripe_run // 2], 0)
    stripe_run, stripe_sizes = stripe_run[place >= 0], stripe_sizes[place >= 0]
    place = place[place >= 0]
    first_rows = offsets_of(stripe_sizes)[:-1]
    low, high = old.starts[:-1], old.starts[1:]
    run_numbers = old.first_stripe[:, None] + np.stack(
        [np.maximum(cut - low, 0), np.where(tail >= 0, tail, high) - low], axis=1
    )
    fresh_stripes = _Stripes(
        user=stripe_run // 2,
        number=run_numbers.reshape(-1)[stripe_run] + place,
        ts=rows["visible_ts"].to_numpy()[first_rows],
        ordinals=rows["ordinal"].to_numpy()[first_rows],
        sums=before[first_rows],
        counts=stripe_sizes,
    )
    left_alone = _left_alone(old, tail, cut)
    new = _new_directories(
        old, [left_alone, fresh_stripes], fresh_counts, run_sums[TAIL::2], dropped_ts
    )
    keys, values = _encoded(user_ids, new, rows, known, fresh_stripes, left_alone, plan)
    replaced = _replaced(user_ids, stored, left_alone, plan)
    if plan.new_texts is not None:
        erased = user_ids[np.isin(user_ids, plan.erased)]
        text_keys, texts = new_pairs(user_ids, plan.new_texts, plan.erased, plan.schema.user_ids)
        keys, values = _sorted_pairs(keys + text_keys, values + texts)
        replaced += stored_keys(erased, previous)
    had = stored.event_counts - stored.first_ordinals
    has = new.event_counts - new.first_ordinals
    return Rewritten(
        keys=keys,
        values=values,
        replaced=replaced,
        events_added=len(events),
        events_dropped=int((had + fresh_counts - has).sum()),
        users_added=int((has > 0).sum() - (had > 0).sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stripes:
    """Stripes by where they begin; arrays of shape (stripes,)."""

    user: NDArray[np.int64]
    """Index of the user."""
    number: NDArray[np.int64]
    ts: NDArray[np.int64]
    ordinals: NDArray[np.int64]
    sums: NDArray[np.uint64]
    counts: NDArray[np.int64]


def _old_directories(
    user_ids: NDArray[np.int64], previous: Shard | None, plan: RewritePlan
) -> tuple[Directories, Directories]:
    """Directories as stored, and as they count: those of erased users are new and empty."""
    keys = pack_keys(user_ids, DIRECTORY_GROUP, 0)
    values = [None] * len(keys) if previous is None else previous.get(keys)
    stored = parse_directories(values)
    erased = np.isin(user_ids, plan.erased)
    old = parse_directories([None if gone else v for gone, v in zip(erased, values, strict=True)])
    erased_ts = np.where(erased, plan.watermark_ts, old.erased_ts)
    return stored, replace(old, erased_ts=erased_ts)


def _stripes_to_decode(
    old: Directories, horizon_ts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First of each user's last short stripes, and the one the horizon cuts; -1 for none."""
    low, high = old.starts[:-1], old.starts[1:]
    full = np.flatnonzero(old.stripe_ends - old.stripe_ordinals >= STRIPE_EVENTS_MAX)
    last_full = np.append(full, -1)[np.searchsorted(full, high) - 1]
    tail = np.maximum(low, last_full + 1)
    tail = np.where(tail < high, tail, -1)
    cut = bisect_left(old.stripe_ts, low, high, np.full(len(low), horizon_ts)) - 1
    return tail, np.where(cut >= low, cut, -1)


def _decoded(
    user_ids: NDArray[np.int64],
    old: Directories,
    tail: NDArray[np.int64],
    cut: NDArray[np.int64],
    previous: Shard | None,
    plan: RewritePlan,
) -> pl.DataFrame:
    """Rows of the stripes to be rewritten."""
    tail_counts = np.where(tail >= 0, old.starts[1:] - tail, 0)
    chosen = np.unique(np.concatenate([ranges(tail, tail_counts), cut[cut >= 0]]))
    user = np.searchsorted(old.starts, chosen, side="right") - 1
    counts = (old.stripe_ends - old.stripe_ordinals)[chosen]
    numbers = old.first_stripe[user] + chosen - old.starts[user]
    is_tail = (tail[user] >= 0) & (chosen >= tail[user])
    columns: dict[str, pl.Series] = {
        "run": pl.Series(np.repeat(2 * user + np.where(is_tail, TAIL, FRONT), counts)),
        "ordinal": pl.Series(ranges(old.stripe_ordinals[chosen], counts)),
    }
    for number, traits in _stored_groups(plan.schema):
        if previous is None or number in plan.new_groups:
            values = encode_stripes([], counts)
        else:
            values = previous.get_all(pack_keys(user_ids[user], number, numbers))
        for trait in traits:
            native = plan.schema.native_traits[trait.name]
            columns[trait.name] = to_series(
                decode_stripes(values, counts, trait, native), int(counts.sum())
            )
    return pl.DataFrame(columns)


def _places(owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each among those of its owner; ``owners`` ascend."""
    return np.arange(len(owners)) - np.searchsorted(owners, owners)


def _unchanged(
    old: Directories, tail: NDArray[np.int64], fresh_counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Those of the stripes from ``tail`` on that more events do not change.

    Returns:
        For each user their number, their events, and the first stripe behind them; -1 for none.
    """
    high = old.starts[1:]
    tail_counts = np.where(tail >= 0, high - tail, 0)
    chosen = ranges(tail, tail_counts)
    user = np.repeat(np.arange(len(tail)), tail_counts)
    sizes = (old.stripe_ends - old.stripe_ordinals)[chosen]
    events = np.bincount(user, sizes, len(tail)).astype(np.int64)
    runs, new_sizes = cut_stripes(np.zeros_like(tail), events + fresh_counts, STRIPE_EVENTS_MAX)
    new_starts = offsets_of(np.bincount(runs // 2, minlength=len(tail)))
    place = _places(user)
    there = np.minimum(new_starts[user] + place, new_starts[user + 1] - 1)
    differs = (new_starts[user] + place > there) | (new_sizes[there] != sizes)
    unchanged = tail_counts.copy()
    np.minimum.at(unchanged, user[differs], place[differs])
    stays = place < unchanged[user]
    passed = np.bincount(user[stays], sizes[stays], len(tail)).astype(np.int64)
    return unchanged, passed, np.where(unchanged < tail_counts, tail + unchanged, -1)


def _stored_groups(schema: Schema) -> list[tuple[int, tuple[Trait, ...]]]:
    """Returns the groups that hold values, by number, and their traits."""
    groups = [(EVENT_GROUP, (VISIBLE_TS, EVENT_TS, schema.event_id))]
    return groups + [(group.number, group.traits) for group in schema.groups]


def _sum_before(old: Directories, stripes: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Digest sum before the given stripe of each user; of the whole history where it is -1."""
    if not len(old.stripe_sums):
        return old.digest_sums
    return np.where(stripes >= 0, old.stripe_sums[stripes], old.digest_sums)


def _digest_values(rows: pl.DataFrame, schema: Schema) -> dict[str, TraitValues]:
    """Values that enter digests, by trait."""
    traits = (VISIBLE_TS, EVENT_TS, schema.event_id, *schema.key_traits)
    return {trait.name: to_values(rows[trait.name], trait) for trait in traits}


def _running_sums(
    rows: pl.DataFrame,
    run_sums: NDArray[np.uint64],
    values: Mapping[str, TraitValues],
    schema: Schema,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Digest sum before each row, and after each run."""
    visible_ts, event_ts, event_id = (
        values[trait.name] for trait in (VISIBLE_TS, EVENT_TS, schema.event_id)
    )
    keys = [values[trait.name] for trait in schema.key_traits]
    fields = digest_fields(visible_ts, event_ts, event_id, keys)
    total = np.zeros(len(rows) + 1, dtype=np.uint64)
    np.cumsum(event_digests(rows["ordinal"].to_numpy(), fields), out=total[1:])
    run = rows["run"].to_numpy()
    starts = offsets_of(np.bincount(run, minlength=len(run_sums)))
    before = total[:-1] + (run_sums - total[starts[:-1]])[run]
    return before, run_sums + total[starts[1:]] - total[starts[:-1]]


def _left_alone(old: Directories, tail: NDArray[np.int64], cut: NDArray[np.int64]) -> _Stripes:
    """Stripes that stay as they are: after the one cut, before the one continued."""
    low, high = old.starts[:-1], old.starts[1:]
    first = np.where(cut >= 0, cut + 1, low)
    counts = np.maximum(0, np.where(tail >= 0, tail, high) - first)
    chosen = ranges(first, counts)
    user = np.repeat(np.arange(len(low)), counts)
    return _Stripes(
        user=user,
        number=old.first_stripe[user] + chosen - low[user],
        ts=old.stripe_ts[chosen],
        ordinals=old.stripe_ordinals[chosen],
        sums=old.stripe_sums[chosen],
        counts=(old.stripe_ends - old.stripe_ordinals)[chosen],
    )


def _replaced(
    user_ids: NDArray[np.int64], stored: Directories, left_alone: _Stripes, plan: RewritePlan
) -> list[bytes]:
    """Keys of the old directories, and of the old stripes that are not left alone."""
    known = np.flatnonzero(
        (stored.event_counts > 0) | (stored.erased_ts != NEVER_TS) | (np.diff(stored.starts) > 0)
    )
    counts = np.diff(stored.starts)
    user = np.repeat(np.arange(len(counts)), counts)
    number = stored.first_stripe[user] + ranges(np.zeros_like(counts), counts)
    span = int(max(number.max(initial=0), left_alone.number.max(initial=0))) + 1
    gone = ~np.isin(user * span + number, left_alone.user * span + left_alone.number)
    keys = pack_keys(user_ids[known], DIRECTORY_GROUP, 0)
    for group, _ in _stored_groups(plan.schema):
        if group not in plan.new_groups:
            keys += pack_keys(user_ids[user[gone]], group, number[gone])
    return keys


def _new_directories(
    old: Directories,
    stripes: Sequence[_Stripes],
    fresh_counts: NDArray[np.int64],
    digest_sums: NDArray[np.uint64],
    dropped_ts: NDArray[np.int64],
) -> Directories:
    user = np.concatenate([part.user for part in stripes])
    number = np.concatenate([part.number for part in stripes])
    order = np.lexsort([number, user])
    starts = offsets_of(np.bincount(user, minlength=len(fresh_counts)))
    first_stripe = old.first_stripe + np.diff(old.starts)
    has = np.diff(starts) > 0
    first_stripe[has] = number[order][starts[:-1][has]]
    return Directories(
        first_stripe=first_stripe,
        event_counts=old.event_counts + fresh_counts,
        digest_sums=digest_sums,
        dropped_ts=dropped_ts,
        erased_ts=old.erased_ts,
        starts=starts,
        stripe_ts=np.concatenate([part.ts for part in stripes])[order],
        stripe_ordinals=np.concatenate([part.ordinals for part in stripes])[order],
        stripe_sums=np.concatenate([part.sums for part in stripes])[order],
    )


def _encoded(
    user_ids: NDArray[np.int64],
    directories: Directories,
    rows: pl.DataFrame,
    known: Mapping[str, TraitValues],
    fresh: _Stripes,
    left_alone: _Stripes,
    plan: RewritePlan,
) -> tuple[list[bytes], list[bytes]]:
    """All new pairs, ascending by key; `known` has values of rows that were converted before."""
    keys = pack_keys(user_ids, DIRECTORY_GROUP, 0)
    values = encode_directories(directories)
    for number, traits in _stored_groups(plan.schema):
        ascending = sorted(traits, key=lambda trait: trait.number)
        columns = [
            known[trait.name] if trait.name in known else to_values(rows[trait.name], trait)
            for trait in ascending
        ]
        keys += pack_keys(user_ids[fresh.user], number, fresh.number)
        values += encode_stripes(columns, fresh.counts)
        if number in plan.new_groups:
            # Stripes from before the group: bare, so that a missing one is always an error.
            keys += pack_keys(user_ids[left_alone.user], number, left_alone.number)
            values += encode_stripes([], left_alone.counts)
    return _sorted_pairs(keys, values)


def _sorted_pairs(keys: list[bytes], values: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [keys[place] for place in order], [values[place] for place in order]
