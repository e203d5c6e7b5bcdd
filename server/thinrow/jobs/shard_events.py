"""Raw events of one shard, cut into the mutable snapshots of past requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow.core.runs import ranges
from thinrow.events.order import ordered, without_duplicates
from thinrow.jobs.thin_rows import mutable_column
from thinrow.store.history import bisect_left

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.jobs.served_requests import ServedRequests
    from thinrow.store.generation import Generation

__all__ = ["ShardEvents", "cut_by_events"]

MUTABLE_EVENTS_PER_CHUNK = 1 << 20
REQUESTS_PER_CHUNK = 1 << 15
"""Limits on the events and requests in memory at once, beside one shard's events."""


class ShardEvents:
    """Events of one shard that requests can see.

    Args:
        events: The shard's raw events in canonical form.
        user_ids: Users of the requests.
        generation: Holds the schema, and when users were erased.
    """

    def __init__(
        self, events: pa.Table, user_ids: NDArray[np.int64], generation: Generation
    ) -> None:
        schema = generation.schema.carried
        frame = pl.from_arrow(events)
        assert isinstance(frame, pl.DataFrame)
        # The raw events may still hold what the store was to erase.
        user_ids = np.unique(user_ids)
        erased_ts = generation.directories(user_ids).erased_ts
        frame = frame.join(
            pl.DataFrame({"user_id": user_ids, "erased_ts": erased_ts}), on="user_id"
        )
        frame = frame.filter(pl.col("arrival_ts") >= pl.col("erased_ts")).drop("erased_ts")
        frame = without_duplicates(frame, schema)
        # In a snapshot events stand by event_ts; a row's number in this order is its rank. Sorted
        # by arrival first: events that agree in all else then stand alike on every machine.
        frame = frame.sort("arrival_ts").with_columns(visible_ts="event_ts")
        frame = ordered(frame, schema).drop("visible_ts")
        self._schema = schema
        self._frame = frame
        users = frame["user_id"].to_numpy()
        arrival = frame["arrival_ts"].to_numpy()
        self._by_arrival = np.lexsort([arrival, users])
        self._users = users[self._by_arrival]
        self._arrival_ts = arrival[self._by_arrival]

    def _arrived(
        self, requests: ServedRequests, rows: NDArray[np.int64], times: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Finds the first event of each request's user that arrived at its time or later."""
        user_ids = requests.user_ids[rows]
        low = np.searchsorted(self._users, user_ids, side="left")
        high = np.searchsorted(self._users, user_ids, side="right")
        return bisect_left(self._arrival_ts, low, high, times)

    def _bounds(
        self, requests: ServedRequests, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = self._arrived(requests, rows, requests.mutable_from_ts[rows])
        last = self._arrived(requests, rows, requests.request_ts[rows])
        return first, np.maximum(last - first, 0)

    def ties(self, requests: ServedRequests, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts the events that arrived in the millisecond of each request."""
        request_ts = requests.request_ts[rows]
        first = self._arrived(requests, rows, request_ts)
        return self._arrived(requests, rows, request_ts + 1) - first

    def chunks(
        self, requests: ServedRequests, rows: NDArray[np.int64]
    ) -> Iterator[NDArray[np.int64]]:
        """Cuts rows so that each part carries a bounded number of events."""
        _, counts = self._bounds(requests, rows)
        for first, last in cut_by_events(np.cumsum(counts), 0, len(rows)):
            yield rows[first:last]

    def snapshots(self, requests: ServedRequests, rows: NDArray[np.int64]) -> pa.ListArray:
        """The column ``mutable`` of some requests."""
        first, counts = self._bounds(requests, rows)
        owner = np.repeat(np.arange(len(rows)), counts)
        picked = self._by_arrival[ranges(first, counts)]
        picked = picked[np.lexsort([picked, owner])]
        return mutable_column(self._frame[picked], counts, self._schema)


def cut_by_events(carried: NDArray[np.int64], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cuts rows ``[start, end)`` so that each part carries a bounded number of events.

    ``carried`` are the events of all rows up to each, that row included.
    """
    while start < end:
        before = int(carried[start - 1]) if start else 0
        stop = int(np.searchsorted(carried, before + MUTABLE_EVENTS_PER_CHUNK, side="right"))
        stop = min(max(stop, start + 1), start + REQUESTS_PER_CHUNK, end)
        yield start, stop
        start = stop
