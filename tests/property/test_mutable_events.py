"""Mutable events: derived columns, selections that copy late, and the native check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.row_tables import to_python
from thinrow._native import arrived_outside
from thinrow.core.files.arrow import mutable_type, uih_type
from thinrow.core.files.lean import LeanRows
from thinrow.core.files.rows import to_thin_rows
from thinrow.core.pointers import MutableColumn, MutableEvents
from thinrow.core.traits import TraitType

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIMES = st.integers(0, 3)
EVENTS = st.fixed_dictionaries(
    {
        "event_ts": TIMES,
        "arrival_ts": st.none() | TIMES,
        "event_id": st.none() | TIMES,
        "element": st.none() | st.integers(-128, 127),
    }
)
ROWS = st.lists(st.none() | st.lists(EVENTS, max_size=4), max_size=5)
KIND = mutable_type([("element", TraitType.INT8, 1, 0)])


def thin_table(rows: list[list[dict[str, Any]] | None], *, ids: bool, late: bool) -> pa.Table:
    """Thin rows, perhaps without an id or without a late arrival."""
    for event in (event for row in rows for event in row or ()):
        event["event_id"] = event["event_id"] if ids else None
        arrival_ts = event["arrival_ts"]
        event["arrival_ts"] = arrival_ts if late or arrival_ts is None else event["event_ts"]
    pointer = {"start_ts": 0, "end_ts": 1, "max_length": 0, "digest": 2**64 - 1}
    count = len(rows)
    return pa.table(
        {
            "user_id": pa.array(range(count), pa.int64()),
            "request_ts": pa.array([9] * count, pa.int64()),
            "uih": pa.array([pointer] * count, uih_type()),
            "mutable": pa.array(rows, KIND),
        }
    )


def values(table: pa.Table) -> list[list[dict[str, object]]]:
    """The rows as a reader returns them."""
    [batch] = table.combine_chunks().to_batches() or [
        pa.RecordBatch.from_pylist([], schema=table.schema)
    ]
    mutable = to_thin_rows("it", batch).mutable
    assert mutable is not None
    rows = to_python(mutable)
    for event in (event for row in rows for event in row):
        event.setdefault("event_id", None)
    return rows


@given(ROWS, ROWS, st.booleans(), st.booleans())
def test_files_leave_out_what_readers_derive(
    first: list[Any], second: list[Any], ids: bool, late: bool
) -> None:
    tables = [thin_table(rows, ids=ids, late=late) for rows in (first, second)]
    lean = LeanRows()
    for table in tables:
        lean.add(table)
    sink = pa.BufferOutputStream()
    schema = pa.schema([*tables[0].schema, *lean.schema(tables[0].schema)])
    schema = schema.remove(3).remove(2)
    with pq.ParquetWriter(sink, schema) as writer:
        for table in tables:
            thin = lean.convert(table)
            columns = [table.column("user_id"), table.column("request_ts"), *thin.columns]
            writer.write_table(pa.table(columns, schema))
    written = pq.read_table(pa.BufferReader(sink.getvalue()))
    assert values(written) == values(tables[0]) + values(tables[1])
    names = written.schema.field("mutable").type.value_type.names
    given = [event for row in (*first, *second) for event in row or ()]
    assert ("event_id" in names) == any(event["event_id"] is not None for event in given)
    assert ("arrival_ts" in names) == any(
        event["arrival_ts"] not in (None, event["event_ts"]) for event in given
    )


def events_of(lengths: list[int]) -> MutableEvents:
    count = sum(lengths)
    times = np.arange(count) * 7 % 5
    present = np.arange(count) % 3 > 0
    return MutableEvents(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
        times,
        {"event_ts": MutableColumn(times), "trait": MutableColumn(np.arange(count), present)},
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_selected_events_are_those_that_copies_would_be(
    lengths: list[int], data: st.DataObject
) -> None:
    events, want = events_of(lengths), to_python(events_of(lengths))
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            places = data.draw(st.lists(st.integers(0, len(want) - 1), max_size=8)) if want else []
            events = events[np.array(places, np.int64)]
            want = [want[place] for place in places]
        else:
            start, stop = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(want))])))
            events, want = events[start:stop], want[start:stop]
    assert len(events) == len(want)
    assert events.lengths.tolist() == [len(row) for row in want]
    assert to_python(events) == to_python(events.compact()) == want


def plainly(events: MutableEvents, first_ts: NDArray[Any], end_ts: NDArray[Any]) -> list[bool]:
    ends = events.offsets.tolist()
    return [
        any(not first_ts[i] <= ts < end_ts[i] for ts in events.arrival_ts[ends[i] : ends[i + 1]])
        for i in range(len(events))
    ]


@given(st.lists(st.integers(0, 4), max_size=6), st.data())
def test_arrivals_outside_their_window(lengths: list[int], data: st.DataObject) -> None:
    events = events_of(lengths)
    windows = st.lists(st.integers(-1, 6), min_size=len(lengths), max_size=len(lengths))
    first_ts, end_ts = (np.array(data.draw(windows), np.int64) for _ in range(2))
    found = arrived_outside(events.arrival_ts, events.starts, events.lengths, first_ts, end_ts)
    assert found.tolist() == plainly(events, first_ts, end_ts)


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 3), (2, 1), (-1, 1), (0, -1), (3, -1), (2**62, 2**62), (-(2**63), 2**63 - 1)],
)
def test_events_out_of_bounds_are_refused(start: int, length: int) -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(IndexError):
        arrived_outside(np.zeros(2, np.int64), one + start, one + length, one, one)
    with pytest.raises(ValueError, match="as many"):
        arrived_outside(np.zeros(2, np.int64), one, one, one, np.zeros(2, np.int64))
