"""Ids of stored events that became visible recently, by which later duplicates are found."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow.core.runs import ranges
from thinrow.schema import DIRECTORY_GROUP, EVENT_GROUP, VISIBLE_TS
from thinrow.store.directory import parse_directories
from thinrow.store.history import bisect_left
from thinrow.store.keys import pack_keys
from thinrow.store.stripe import decode_stripes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.schema import Schema
    from thinrow.store.shard import Shard
    from thinrow.store.stripe import TraitValues

__all__ = ["StoredIds", "stored_ids_since"]


class StoredIds(NamedTuple):
    """Stored events, of which some are older than was wanted."""

    users: NDArray[np.int64]
    """User of each event, shape (events,)."""
    ids: TraitValues
    """Their ids."""
    visible_ts: NDArray[np.int64]
    """Their places in the histories, shape (events,)."""


def stored_ids_since(
    shard: Shard, user_ids: NDArray[np.int64], since_ts: int, schema: Schema
) -> StoredIds:
    """Reads the stripes that have a user's events with ``visible_ts`` since a moment.

    Args:
        shard: The shard of these users.
        user_ids: The users; all their recent events are in memory together.
        since_ts: The moment, ms.
        schema: The schema of the generation.
    """
    directories = parse_directories(shard.get(pack_keys(user_ids, DIRECTORY_GROUP, 0)))
    low, high = directories.starts[:-1], directories.starts[1:]
    first = bisect_left(directories.stripe_ts, low, high, np.full(len(low), since_ts)) - 1
    first = np.maximum(first, low)
    counts = high - first
    user = np.repeat(np.arange(len(user_ids)), counts)
    numbers = directories.first_stripe[user] + ranges(first - low, counts)
    stripes = shard.get_all(pack_keys(user_ids[user], EVENT_GROUP, numbers))
    events = (directories.stripe_ends - directories.stripe_ordinals)[ranges(first, counts)]
    ids, times = (
        decode_stripes(stripes, events, trait, schema.native_traits[trait.name])
        for trait in (schema.event_id, VISIBLE_TS)
    )
    return StoredIds(np.repeat(user_ids[user], events), ids, times.words.view(np.int64))
