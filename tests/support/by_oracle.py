"""The oracle's answers for the worlds of worlds.py; it shares no code with the product."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.oracle import Event, Oracle, Pointer, Run, Schema, Trait, Wanted, column, columns
from support.worlds import START_TS, Answers, as_of
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    import pyarrow as pa
    from thinrow.client import Pointers

SCHEMA = Schema(
    {
        "item": [Trait("item_id", "int64", key=True), Trait("brand", "string")],
        "feedback": [Trait("rating", "int8", sparse=True), Trait("price", "float64")],
    }
)
"""The world of worlds.py."""


def oracle_of(*runs: tuple[pa.Table, int]) -> Oracle:
    """After compactions, each of events up to the end of a day."""
    oracle = Oracle(SCHEMA)
    for table, day in runs:
        events = [
            Event(
                row["user_id"],
                row["event_ts"],
                row["event_ts"],
                row["event_id"],
                {trait.name: row[trait.name] for trait in SCHEMA.traits},
            )
            for row in table.to_pylist()
        ]
        oracle.compact(Run(events, as_of(day)))
    return oracle


def answers(oracle: Oracle, pointers: Pointers, wanted: Wanted | None = None) -> Answers:
    """The right answer to each pointer, as worlds.shown shows a batch."""
    wanted = wanted or Wanted()
    result: Answers = []
    names = columns(wanted, SCHEMA)
    for user_id, start_ts, end_ts, max_length in zip(
        pointers.user_ids.tolist(),
        pointers.start_ts.tolist(),
        pointers.end_ts.tolist(),
        pointers.max_lengths.tolist(),
        strict=True,
    ):
        pointer = Pointer(user_id, start_ts, end_ts, max_length)
        status, entries = oracle.answer(pointer, wanted, [], START_TS + (1 << 40))
        assert status == "OK"
        result.append((wire.STATUS_OK, {name: column(entries, name, SCHEMA) for name in names}))
    return result
