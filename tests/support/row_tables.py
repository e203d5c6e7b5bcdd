"""Thin rows as Arrow tables."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from thinrow.client import MutableEvents, ThinRows

UIH = pa.struct(
    [
        ("start_ts", pa.int64()),
        ("end_ts", pa.int64()),
        ("max_length", pa.int64()),
        ("digest", pa.uint64()),
    ]
)


EVENT = pa.struct(
    [
        ("event_ts", pa.int64()),
        ("arrival_ts", pa.int64()),
        ("event_id", pa.int64()),
        ("item_id", pa.int32()),
        ("title", pa.string()),
        ("score", pa.float16()),
        ("liked", pa.bool_()),
        ("vector", pa.list_(pa.float32(), 2)),
    ]
)


def event(number: int) -> dict[str, object]:
    """Makes an event that lacks a trait now and then."""
    return {
        "event_ts": 1000 + number,
        "arrival_ts": None if number % 5 == 0 else 2000 + number,
        "event_id": None if number % 2 else number,
        "item_id": number,
        "title": None if number % 3 == 0 else f"title {number}",
        "score": None if number % 4 == 0 else np.float16(number / 2),
        "liked": None if number % 7 == 0 else bool(number % 2),
        "vector": None if number % 3 == 1 else [float(number), -1.0],
    }


def table(rows: int, *, large: bool = False) -> pa.Table:
    """Makes thin rows; row i has i % 4 mutable events, or a null list where i % 8 == 7."""
    snapshots = [
        None if row % 8 == 7 else [event(10 * row + place) for place in range(row % 4)]
        for row in range(rows)
    ]
    pointers = [
        {"start_ts": row, "end_ts": 100 + row, "max_length": row % 3, "digest": (1 << 64) - 1 - row}
        for row in range(rows)
    ]
    return pa.table(
        {
            "label": pa.array([row % 2 for row in range(rows)]),
            "user_id": pa.array(range(rows), pa.int64()),
            "uih": pa.array(pointers, UIH),
            "request_ts": pa.array([200 + row for row in range(rows)]),
            "mutable": pa.array(snapshots, (pa.large_list if large else pa.list_)(EVENT)),
        }
    )


def to_python(events: MutableEvents) -> list[list[dict[str, object]]]:
    """Shows mutable events as the rows they came from."""
    shown: list[dict[str, object]] = [
        {"arrival_ts": arrival} for arrival in events.arrival_ts.tolist()
    ]
    for name, column in events.columns.items():
        present = np.ones(len(shown), np.bool_) if column.present is None else column.present
        for row, value, there in zip(shown, column.values.tolist(), present, strict=True):
            row[name] = value if there else None
    ends = events.offsets.tolist()
    return [shown[start:end] for start, end in itertools.pairwise(ends)]


def assert_same(rows: ThinRows, others: pa.Table, want: tuple[ThinRows, pa.Table]) -> None:
    for name in rows.pointers.__slots__:
        assert np.array_equal(getattr(rows.pointers, name), getattr(want[0].pointers, name))
    assert rows.mutable is not None and want[0].mutable is not None
    assert to_python(rows.mutable) == to_python(want[0].mutable)
    assert others.equals(want[1])
