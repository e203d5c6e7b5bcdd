"""Sort and write one shard, over Arrow data.

A distributed engine can do this in place of the embedded one; it needs only the shard's raw events
(in canonical form, any order), one range of users after the other, and the shard's previous files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow.compaction.pair_writer import PairWriter, PreviousShard
from thinrow.compaction.rewrite import RewritePlan, Rewritten, rewrite_users
from thinrow.compaction.trait_values import to_series
from thinrow.compaction.user_texts import not_stored
from thinrow.compaction.vocabularies import coded
from thinrow.core.ids import is_text_kind
from thinrow.events.order import (
    Cuts,
    ordered,
    placed,
    tied_events,
    with_late_accepted,
    without_duplicates,
)
from thinrow.schema import DIRECTORY_GROUP
from thinrow.store.directory import NEVER_TS, parse_directories
from thinrow.store.keys import USER_BYTES, pack_keys
from thinrow.store.recent_ids import stored_ids_since
from thinrow.store.stripe import STRIPE_EVENTS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.schema import Schema
    from thinrow.store.shard import Shard, ShardWriter
    from thinrow.store.user_texts import UserTexts
    from thinrow.store.vocabulary import Vocabulary

__all__ = [
    "CONTINUED_USERS_PER_CHUNK",
    "EVENTS_PER_CHUNK",
    "LAST_USER",
    "USERS_PER_CHUNK",
    "ShardBuild",
    "ShardCounts",
    "ShardTask",
    "directory_chunks",
]

USERS_PER_CHUNK = 8192
EVENTS_PER_CHUNK = 1 << 19
"""Bounds on what is encoded at once; one user's events always stay together."""
LAST_USER = (1 << 64) - 1
"""The last user in the order of keys, as an unsigned number."""
CONTINUED_USERS_PER_CHUNK = EVENTS_PER_CHUNK // STRIPE_EVENTS_MAX
"""The same for users who may each bring an unfinished stripe along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """Task of one run for one shard."""

    schema: Schema
    new_groups: frozenset[int]
    """Groups that the previous generation does not have."""
    cuts: Cuts
    dedup_window_ms: int
    lookback_ms: int | None
    erased: NDArray[np.int64]
    """Users of this shard to erase, int64, any order."""
    accept_late: bool
    whole: bool
    """Rewrites every pair: groups came or went, or something must be gone from the disk."""
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    """Those of the schema's traits, by name; they have every value of the events that are kept."""


@dataclass(slots=True, kw_only=True)
class ShardCounts:
    """Results of a shard and of its input."""

    keys: int = 0
    events: int = 0
    users: int = 0
    duplicates: int = 0
    late: int = 0
    left_for_later: int = 0
    events_added: int = 0
    events_dropped: int = 0
    tied: int = 0
    """Events added whose order only their traits decide."""


class ShardBuild:
    """The next generation of one shard, which is built one range of users after the other.

    Memory holds the events of one range. Engines may cut ranges as they like: what is written, and
    its digest, depend on the events alone.

    Args:
        previous: The shard so far; None in a first build.
        task: What to do.
        path: Folder to create.

    Raises:
        StoreError: The disk is full, or the previous files are damaged.
    """

    def __init__(self, previous: PreviousShard | None, task: ShardTask, path: Path) -> None:
        self._previous, self._task = previous, task
        horizon_ts = NEVER_TS
        if task.lookback_ms is not None:
            horizon_ts = task.cuts.watermark_ts - task.lookback_ms
        self._plan = RewritePlan(
            schema=task.schema,
            new_groups=task.new_groups,
            horizon_ts=horizon_ts,
            erased=np.sort(task.erased),
            watermark_ts=task.cuts.watermark_ts,
        )
        self._counts = ShardCounts()
        if previous is not None:
            self._counts.events = previous.summary.events
            self._counts.users = previous.summary.users
        self._pairs = PairWriter(previous, task.schema, path, whole=task.whole)
        self._first_user = 0

    def add(
        self, events: pa.Table, last_user: int = LAST_USER, texts: UserTexts | None = None
    ) -> None:
        """Writes the next range of users.

        Args:
            events: All raw events of these users in canonical form (of the schema's `carried`), in
                any order.
            last_user: Last user of the range, as an unsigned number; ranges ascend, and the last
                one ends with LAST_USER.
            texts: Where ids are texts, those of users of this shard, among them all whose events
                are given.

        Raises:
            InputError: Another user has the key of one of the users.
        """
        assert (texts is None) != is_text_kind(self._task.schema.user_ids)
        plan = self._plan
        if texts is not None:
            stored = None if self._previous is None else self._previous.shard
            new_texts = not_stored(texts, stored, plan.schema.user_ids)
            plan = replace(plan, new_texts=new_texts)
        task, previous, counts = self._task, self._previous, self._counts
        assert self._first_user <= last_user <= LAST_USER
        frame = pl.from_arrow(events)
        assert isinstance(frame, pl.DataFrame)
        users = frame["user_id"].to_numpy().view(np.uint64)
        is_in_range = not len(users) or self._first_user <= users.min() <= users.max() <= last_user
        assert is_in_range, "users of another range"
        frame = _admitted(frame, previous, task, counts)
        frame = ordered(placed(frame, task.cuts), task.schema.carried)
        counts.tied += tied_events(frame)
        # Coded once they are in order, which thus does not depend on codes.
        frame = coded(frame, task.schema.coded_traits, task.vocabularies)
        touched = _touched_users(frame, previous, plan, self._first_user, last_user)
        for part in _rewritten(touched, frame, previous, plan, counts):
            self._pairs.add(part)
        self._first_user = last_user + 1

    def finish(self) -> tuple[ShardCounts, ShardWriter]:
        """Ends the shard once all users were added.

        Returns:
            What was counted, and the shard's writer, which is still to be finished.
        """
        assert self._first_user == LAST_USER + 1, "a range of users is missing"
        self._counts.keys, writer = self._pairs.finish()
        return self._counts, writer


def _admitted(
    events: pl.DataFrame, previous: PreviousShard | None, task: ShardTask, counts: ShardCounts
) -> pl.DataFrame:
    """The events that enter the store; the others are counted."""
    cuts, offered = task.cuts, len(events)
    if previous is not None and cuts.previous_ts is not None and task.accept_late:
        events = _without_erased(events, previous.shard)
        counts.late += offered - len(events)
        events = with_late_accepted(events, cuts.previous_ts)
    offered = len(events)
    events = without_duplicates(events, task.schema.carried)
    counts.duplicates += offered - len(events)
    if previous is not None:
        assert cuts.previous_ts is not None
        in_time = events.filter(pl.col("arrival_ts") >= cuts.previous_ts)
        counts.late += len(events) - len(in_time)
        since_ts = cuts.previous_ts - task.dedup_window_ms
        known = _recent_ids(in_time, previous.shard, since_ts, task.schema)
        events = in_time.join(known, on=["user_id", "event_id"], how="anti")
        counts.duplicates += len(in_time) - len(events)
    arrived = events.filter(pl.col("arrival_ts") < cuts.watermark_ts)
    counts.left_for_later += len(events) - len(arrived)
    staying = arrived.filter(~pl.col("user_id").is_in(task.erased.tolist()))
    counts.events_added += len(arrived) - len(staying)
    counts.events_dropped += len(arrived) - len(staying)
    return staying


def _without_erased(events: pl.DataFrame, shard: Shard) -> pl.DataFrame:
    """Late events, less those of erased users from before their erasure, which is permanent."""
    user_ids = events["user_id"].unique().sort().to_numpy()
    parts = []
    for start in range(0, len(user_ids), USERS_PER_CHUNK):
        chunk = user_ids[start : start + USERS_PER_CHUNK]
        directories = parse_directories(shard.get(pack_keys(chunk, DIRECTORY_GROUP, 0)))
        parts.append(pl.DataFrame({"user_id": chunk, "erased_ts": directories.erased_ts}))
    if not parts:
        return events
    events = events.join(pl.concat(parts), on="user_id")
    return events.filter(pl.col("arrival_ts") >= pl.col("erased_ts")).drop("erased_ts")


def _recent_ids(
    new_events: pl.DataFrame, shard: Shard, since_ts: int, schema: Schema
) -> pl.DataFrame:
    """Returns (user, id) of stored events since ``since_ts``, of the users in ``new_events``."""
    with_id = new_events.filter(pl.col("event_id").is_not_null())
    user_ids = with_id["user_id"].unique().sort().to_numpy()
    parts = [new_events.select("user_id", "event_id").clear()]
    for start in range(0, len(user_ids), USERS_PER_CHUNK):
        chunk = user_ids[start : start + USERS_PER_CHUNK]
        users, ids, visible_ts = stored_ids_since(shard, chunk, since_ts, schema)
        seen = pl.DataFrame({"user_id": users, "event_id": to_series(ids, len(users))})
        recent = visible_ts >= since_ts
        parts.append(seen.filter(pl.Series(recent) & pl.col("event_id").is_not_null()))
    return pl.concat(parts).unique()


def _touched_users(
    events: pl.DataFrame,
    previous: PreviousShard | None,
    plan: RewritePlan,
    first_user: int,
    last_user: int,
) -> NDArray[np.int64]:
    """Users of a range whose pairs change, ascending as keys are."""
    erased = plan.erased.view(np.uint64)
    users = [
        events["user_id"].unique().to_numpy(),
        plan.erased[(erased >= first_user) & (erased <= last_user)],
    ]
    if previous is not None and (plan.new_groups or plan.horizon_ts != NEVER_TS):
        chunks = directory_chunks(previous.shard, first_user, last_user)
        users += [_users_to_change(chunk, plan) for chunk in chunks]
    unsigned = np.unique(np.concatenate(users).astype(np.int64).view(np.uint64))
    return unsigned.view(np.int64)


def directory_chunks(
    shard: Shard, first_user: int = 0, last_user: int = LAST_USER
) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    """Reads the users of a range and their directories, USERS_PER_CHUNK at a time, in key order."""
    first, last = (user.to_bytes(USER_BYTES, "big") for user in (first_user, last_user))
    pairs = takewhile(
        lambda pair: pair[0][:USER_BYTES] <= last, shard.first_of_each_prefix(USER_BYTES, first)
    )
    while chunk := list(islice(pairs, USERS_PER_CHUNK)):
        keys = b"".join(key[:USER_BYTES] for key, _ in chunk)
        user_ids = np.frombuffer(keys, dtype=">i8").astype(np.int64)
        yield user_ids, [value for _, value in chunk]


def _users_to_change(
    chunk: tuple[NDArray[np.int64], list[bytes]], plan: RewritePlan
) -> NDArray[np.int64]:
    user_ids, values = chunk
    if plan.new_groups:
        return user_ids
    directories = parse_directories(values)
    has = np.flatnonzero(np.diff(directories.starts) > 0)
    oldest_ts = directories.stripe_ts[directories.starts[has]]
    return user_ids[has[oldest_ts < plan.horizon_ts]]


def _rewritten(
    touched: NDArray[np.int64],
    events: pl.DataFrame,
    previous: PreviousShard | None,
    plan: RewritePlan,
    counts: ShardCounts,
) -> Iterator[Rewritten]:
    """Continues the touched users' histories, chunk by chunk."""
    owners = events["user_id"].to_numpy().view(np.uint64)
    row_ends = np.searchsorted(owners, touched.view(np.uint64), side="right")
    users_max = USERS_PER_CHUNK if previous is None else CONTINUED_USERS_PER_CHUNK
    first_user = first_row = 0
    while first_user < len(touched):
        full = np.searchsorted(row_ends, first_row + EVENTS_PER_CHUNK, side="right")
        last_user = int(np.clip(full, first_user + 1, first_user + users_max))
        last_user = min(last_user, len(touched))
        last_row = int(row_ends[last_user - 1])
        part = rewrite_users(
            touched[first_user:last_user],
            events[first_row:last_row],
            None if previous is None else previous.shard,
            plan,
        )
        counts.events_added += part.events_added
        counts.events_dropped += part.events_dropped
        counts.events += part.events_added - part.events_dropped
        counts.users += part.users_added
        yield part
        first_user, first_row = last_user, last_row
