"""Event batches for the online service, and the ids that its snapshots hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.worlds import (
    START_TS,
)
from thinrow.client import Projection

if TYPE_CHECKING:
    from thinrow.client.online import OnlineClient
    from thinrow.v1 import online_pb2

ALL = Projection(traits=("event_id", "item_id"))


def item(number: int) -> dict[str, list[Any]]:
    return {"item_id": [number], "brand": ["a"], "rating": [None], "price": [0.5]}


def batch(client: OnlineClient, first: int, count: int) -> online_pb2.EventBatch:
    ids = list(range(first, first + count))
    traits = {
        "item_id": ids,
        "brand": ["é"] * count,
        "rating": [None] * count,
        "price": [1.0] * count,
    }
    return client.events([1 + number % 5 for number in ids], [START_TS] * count, traits, ids)


def ids_seen(client: OnlineClient, after_ts: int = 0) -> set[int]:
    """Event ids of all users, each of which must be there once; after_ts: arrival of the last."""
    request_ts = max(client.describe().now_ts + 100, after_ts + 1)
    seen = client.snapshot_batch([1, 2, 3, 4, 5], ALL, request_ts=request_ts)
    ids = [number for part in seen.batch.to_lists("event_id") for number in part or []]
    assert len(ids) == len(set(ids))
    assert [len(row.mutable) for row in seen.thin_rows] == [
        len(part or []) for part in seen.batch.to_lists("item_id")
    ]
    return set(ids)
