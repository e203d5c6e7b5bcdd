"""Draws requests and what each saw, as fat rows have it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from support import oracle
from support.id_kinds import KINDS, event_id_array
from support.oracle import Event, Past
from support.scenarios import CADENCES, events, schemas, values

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from support.oracle import Entry


@st.composite
def pasts(draw: st.DrawFn) -> tuple[oracle.Schema, list[Event], Past, int]:
    """Events, some late, some early, some twice, and what requests saw of them."""
    schema = replace(draw(schemas()), event_ids=draw(st.sampled_from(KINDS)))
    base = draw(st.sampled_from((0, 1_600_000_000_000)))
    cadence_ms = draw(st.sampled_from(CADENCES))
    times = range(base, base + 120, draw(st.sampled_from((1, 5))))
    made = draw(events(schema, times, draw(st.sampled_from((6, 40))), draw(st.booleans())))
    again = draw(st.lists(st.sampled_from(made), max_size=6)) if made else []
    delay_ms = draw(st.sampled_from((0, 0, 3, 30)))
    offset_ms = draw(st.sampled_from((0, 0, 1, cadence_ms - 1)))
    past = Past([*made, *again], schema, cadence_ms, delay_ms, cadence_offset_ms=offset_ms)
    return schema, made, past, base


@st.composite
def fat_tables(
    draw: st.DrawFn,
) -> tuple[oracle.Schema, Past, list[tuple[int, int]], list[list[Entry]]]:
    """Requests and the sequence each saw, the newest few of it where rows are short."""
    schema, made, past, base = draw(pasts())
    rng = draw(st.randoms(use_true_random=True))
    users = [*sorted({event.user_id for event in made}), 99]
    requested = [
        (rng.choice(users), base + rng.randrange(0, 200))
        for _ in range(draw(st.sampled_from((1, 3, 30))))
    ]
    length = draw(st.sampled_from((0, 0, 1, 4, 10)))
    sequences = [past.sees(user, request_ts).sequence for user, request_ts in requested]
    return schema, past, requested, [sequence[-length:] for sequence in sequences]


def write_fat(
    path: Path,
    requested: Sequence[tuple[int, int]],
    sequences: Sequence[Sequence[Entry]],
    schema: oracle.Schema,
    ids: bool = False,
) -> Path:
    users, times = zip(*requested, strict=True)
    requests = pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "request_ts": pa.array(times, pa.int64()),
            "label": pa.array(range(len(requested)), pa.int16()),
        }
    )
    oracle.fat_rows(path, requests, sequences, schema)
    if ids:
        result = [[entry.event.event_id for entry in sequence] for sequence in sequences]
        column = pa.array(result, pa.list_(event_id_array([], schema.event_ids).type))
        pq.write_table(pq.read_table(path).append_column("event_id", column), path)
    return path


def spoiled(
    sequences: Sequence[Sequence[Entry]], schema: oracle.Schema, rng: random.Random
) -> list[list[Entry]]:
    """The same with rows that contradict each other: events lost, altered, doubled and moved."""
    made = [list(sequence) for sequence in sequences]
    for sequence in made:
        for _ in range(rng.choice((0, 0, 1, 3))):
            if not sequence:
                break
            at, to = (rng.randrange(len(sequence)) for _ in range(2))
            kind = rng.choice(("lost", "altered", "doubled", "moved"))
            entry = sequence[at]
            if kind in ("lost", "moved"):
                del sequence[at]
            if kind == "altered":
                other = {trait.name: values(trait, rng) for trait in schema.traits}
                sequence[at] = entry._replace(event=replace(entry.event, traits=other))
            if kind in ("doubled", "moved"):
                sequence.insert(to, entry)
    return made
