"""The online half against the oracle: any appends, clocks and moments, through many hand-overs.

A real server, with a clock that the test moves; every thin row that it gave is then put back from
the last generation.
"""

# ruff: noqa: ANN401 - values are compared whatever they are

from __future__ import annotations

import tempfile
import time
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.oracle import (
    DAY_MS,
    Entry,
    Event,
    Oracle,
    Pointer,
    Run,
    Schema,
    Wanted,
    column,
    columns,
    event_order,
    trait_value,
    traits_order,
)
from support.scenarios import (
    CROWD,
    EVENT_IDS,
    STRANGER,
    Example,
    examples,
    projections,
    rows_table,
    schema_toml,
    schemas,
    values,
)
from support.worlds import START_TS, World, new_world
from thinrow.access.projection import resolve_projection
from thinrow.client import Batch, Projection, read_thin_rows
from thinrow.client.online import OnlineClient, Snapshot, connect_online
from thinrow.compaction.compact import compact
from thinrow.core.wire.batch_lookup import BatchLookup
from thinrow.core.wire.response import Response
from thinrow.errors import RequestError
from thinrow.jobs.export import export_events
from thinrow.materialization.service import read_pointers
from thinrow.online.clock import AHEAD_MS_MAX
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.store.generation import Generation
from thinrow.store.history import HistoryPlan
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from thinrow.client import ThinRows
    from thinrow.core.thin_row import ThinRow

pytestmark = pytest.mark.usefixtures("no_pause_before_goaway")

POLL_S = 0.02


def same(left: Any, right: Any) -> bool:
    """Equality of values as bits: NaN equals itself, and zeros have signs."""
    return repr(left) == repr(right)


@dataclass
class Online:
    """A server, what it was told, and what that means."""

    world: World
    schema: Schema
    config: OnlineConfig
    now: list[int]
    arrived: list[Event] = field(default_factory=list)
    compacted_ts: int | None = None
    oracle: Oracle = field(init=False)
    server: OnlineServer = field(init=False)
    client: OnlineClient = field(init=False)

    def __post_init__(self) -> None:
        self.oracle = Oracle(self.schema)

    @contextmanager
    def running(self) -> Iterator[None]:
        with OnlineServer(self.config) as server, connect_online(server.address) as client:
            self.server, self.client = server, client
            yield

    def append(self, events: Sequence[Event]) -> None:
        """Appends, and holds the server to what it may take."""
        told = {
            trait.name: [event.traits.get(trait.name) for event in events]
            for trait in self.schema.traits
        }
        answer = self.client.append(
            [event.user_id for event in events],
            [event.event_ts for event in events],
            told,
            [event.event_id for event in events],
        )
        seen = {(event.user_id, event.event_id) for event in self.arrived}
        taken = []
        for event in sorted(events, key=lambda event: self.order(event)):
            name = (event.user_id, event.event_id)
            if event.event_id is None or name not in seen:
                taken.append(replace(event, arrival_ts=answer.arrival_ts))
            seen.add(name)
        assert (answer.appended, answer.duplicates) == (len(taken), len(events) - len(taken))
        self.arrived += taken

    def order(self, event: Event) -> Any:
        traits = traits_order(event, self.schema)
        return (event.event_ts, traits)

    def expected(
        self, user_id: int, request_ts: int, lookback_ms: int, max_length: int, wanted: Wanted
    ) -> tuple[Pointer, list[Event], list[Entry]]:
        pointer, mutable = self.pointer(user_id, request_ts, lookback_ms, max_length)
        status, sequence = self.oracle.answer(pointer, wanted, mutable, request_ts)
        assert status == "OK"
        return pointer, mutable, sequence

    def pointer(
        self, user_id: int, request_ts: int, lookback_ms: int, max_length: int
    ) -> tuple[Pointer, list[Event]]:
        """What the thin row must hold."""
        watermarks = self.oracle.watermarks
        place = bisect_right(watermarks, request_ts)
        start_ts = request_ts - lookback_ms if lookback_ms else 0
        end_ts = watermarks[place - 1] if place else start_ts
        pointer = Pointer(user_id, min(start_ts, end_ts), end_ts, max_length)
        mutable = [
            event
            for event in self.arrived
            if event.user_id == user_id
            and event.arrival_ts < request_ts
            and (not place or event.arrival_ts >= end_ts)
        ]
        mutable.sort(key=lambda event: event_order(event, self.schema))
        return pointer, mutable

    def check(
        self,
        user_id: int,
        asked_ts: int,
        lookback_ms: int,
        max_length: int,
        wanted: Wanted,
    ) -> Snapshot | None:
        """Takes a snapshot, and compares everything in it; None where it was refused, rightly."""
        kept_before = self.client.describe().kept_from_ts
        try:
            seen = self.client.snapshot(
                user_id,
                projection(wanted),
                request_ts=asked_ts,
                lookback_ms=lookback_ms,
                max_length=max_length,
            )
        except RequestError as error:
            kept_after = self.client.describe().kept_from_ts
            assert "kept" in str(error) and asked_ts < kept_after, error
            return None
        row = seen.thin_row
        assert row.request_ts >= kept_before
        assert row.request_ts == asked_ts or not asked_ts
        pointer, mutable, sequence = self.expected(
            user_id, row.request_ts, lookback_ms, max_length, wanted
        )
        assert (row.user_id, row.start_ts, row.end_ts, row.max_length) == (
            pointer.user_id,
            pointer.start_ts,
            pointer.end_ts,
            pointer.max_length,
        )
        assert same([dict(event) for event in row.mutable], [self.logged(e) for e in mutable])
        self.check_sequence(seen.batch, sequence, wanted)
        return seen

    def check_sequence(self, batch: Batch, sequence: list[Entry], wanted: Wanted) -> None:
        names = columns(wanted, self.schema)
        assert list(batch.values) == names
        assert batch.statuses.tolist() == [wire.STATUS_OK]
        for name in names:
            [shown] = batch.to_lists(name)
            assert shown is not None
            told = column(sequence, name, self.schema)
            if name == "visible_ts":  # a mutable event has no place in a history yet
                told = [
                    e.event.arrival_ts if e.visible_ts is None else e.visible_ts for e in sequence
                ]
            assert same([as_value(value) for value in shown], [as_value(value) for value in told])

    def logged(self, event: Event) -> dict[str, Any]:
        traits = {trait.name: as_value(trait_value(event, trait)) for trait in self.schema.traits}
        return {
            "event_ts": event.event_ts,
            "arrival_ts": event.arrival_ts,
            "event_id": event.event_id,
            **traits,
        }

    def hand_over(self) -> None:
        """Exports up to now, compacts, publishes; the server takes it up."""
        watermark_ts = self.client.describe().now_ts
        if self.oracle.watermarks and watermark_ts <= self.oracle.watermarks[-1]:
            return
        path = self.world.folder / f"export-{watermark_ts}.parquet"
        report = export_events(self.client, watermark_ts, path)
        first = path.read_bytes()
        export_events(self.client, watermark_ts, path)
        assert path.read_bytes() == first
        last = self.oracle.watermarks[-1] if self.oracle.watermarks else None
        due = [
            event
            for event in self.arrived
            if event.arrival_ts < watermark_ts and (last is None or event.arrival_ts >= last)
        ]
        assert report.events == len(due)
        told = compact(replace(self.world.compaction([path], 0), watermark_ts=watermark_ts))
        run = Run(due, watermark_ts)
        assert told.events_added == self.oracle.compact(run).events_added == len(due)
        self.wait_for(told.generation)

    def wait_for(self, generation: int) -> None:
        end_s = time.monotonic() + 60
        while self.server.published.number < generation:
            assert time.monotonic() < end_s
            self.server.published.refresh()
            time.sleep(0.005)
        self.server.published.refresh()


def as_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def projection(wanted: Wanted) -> Projection:
    return Projection(
        wanted.sequence_length,
        wanted.feature_groups,
        wanted.traits,
        "head" if wanted.head else "newest",
    )


def put_back(store: Path, rows: ThinRows, wanted: Wanted) -> Batch:
    """What training gets, without a server."""
    piece = BatchLookup(rows, projection(wanted)).whole()
    request = wire.MaterializeRequest.FromString(piece.request())
    with Generation.open_current(store) as generation:
        resolved = resolve_projection(request.projection, generation.schema)
        pointers = read_pointers(request, 1 << 20)
        plan = HistoryPlan(generation, pointers, resolved.truncation, resolved.groups)
        plan.read()
        plan.resolve()
        message, _ = plan.answer(resolved.traits, 1 << 30)
    piece.answered(Response.read(message))
    return Batch.from_answers([piece.lookup.answer()])


def as_example(row: ThinRow, schema: Schema) -> Example:
    events = [
        Event(
            row.user_id,
            event["event_ts"],  # type: ignore[arg-type]
            event["arrival_ts"],  # type: ignore[arg-type]
            event["event_id"],  # type: ignore[arg-type]
            {trait.name: event[trait.name] for trait in schema.traits},  # type: ignore[misc]
        )
        for event in row.mutable
    ]
    pointer = Pointer(row.user_id, row.start_ts, row.end_ts, row.max_length)
    return Example(pointer, row.request_ts, events)


def some_events(rng: random.Random, schema: Schema, now_ts: int) -> list[Event]:
    skews = (0, 0, 1, 5, 40, 10**6, -1, -30, -(10**9))
    return [
        Event(
            rng.choice(CROWD),
            now_ts - rng.choice(skews),
            0,
            rng.choice(EVENT_IDS),
            {trait.name: values(trait, rng) for trait in schema.traits},
        )
        for _ in range(rng.choice((1, 3, 12)))
    ]


@pytest.mark.server
@examples(8)
@given(st.data())
def test_every_snapshot_is_exact_and_can_be_put_back(data: st.DataObject) -> None:
    schema = data.draw(schemas())
    wanted = data.draw(projections(schema))
    rng = data.draw(st.randoms(use_true_random=True))
    with tempfile.TemporaryDirectory() as folder:
        world = new_world(Path(folder), schema_toml(schema))
        now = [START_TS]
        config = OnlineConfig(
            store=world.store,
            schema=world.schema,
            listen="127.0.0.1:0",
            metrics=None,
            retention_ms=rng.choice((DAY_MS, 40, 200)),
            commit_lead_ms=rng.choice((0, 0, 5)),
            poll_s=POLL_S,
            drain_s=1,
            wall=lambda: now[0],
        )
        online = Online(world, schema, config, now)
        taken: list[Snapshot] = []
        for _ in range(rng.choice((1, 2))):  # a second run starts anew on the same files
            with online.running():
                for _ in range(rng.choice((15, 30))):
                    act = rng.random()
                    if act < 0.35:
                        online.append(some_events(rng, schema, now[0]))
                    elif act < 0.5:
                        now[0] += rng.choice((1, 1, 7, 30, 100, -20))
                    elif act < 0.58:
                        online.hand_over()
                    else:
                        clock = online.client.describe().now_ts
                        seen = online.check(
                            rng.choice((*CROWD, STRANGER)),
                            rng.choice((0, 0, clock, clock - rng.randrange(300), clock + 9)),
                            rng.choice((0, 0, 3, 150)),
                            rng.choice((0, 0, 1, 5)),
                            wanted,
                        )
                        taken += [seen] if seen is not None else []
                now[0] += 30
                online.hand_over()
        rows = [as_example(seen.thin_row, schema) for seen in taken]
        path = world.write(
            "rows.parquet", rows_table(rows, [s.thin_row.digest for s in taken], schema)
        )
        for seen, (again, _) in zip(taken, read_thin_rows(path, examples=1), strict=True):
            batch = put_back(world.store, again, wanted)
            assert batch.statuses.tolist() == seen.batch.statuses.tolist()
            for name in seen.batch.values:
                assert same(batch.to_lists(name), seen.batch.to_lists(name))


def test_far_ahead_is_refused_and_a_little_ahead_binds_the_clock(tmp_path: Path) -> None:
    schema = Schema({"g": []})
    world = new_world(tmp_path, '[g]\nx = "int64"\n')
    now = [START_TS]
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        commit_lead_ms=0,
        wall=lambda: now[0],
    )
    online = Online(world, schema, config, now)
    with online.running():
        client = online.client
        with pytest.raises(RequestError, match="ahead of this server's clock"):
            client.snapshot(1, Projection(), request_ts=now[0] + AHEAD_MS_MAX + 1)
        ahead_ts = now[0] + AHEAD_MS_MAX
        empty = client.snapshot(1, Projection(), request_ts=ahead_ts)
        assert client.append([1], [now[0]], {"x": [1]}).arrival_ts == ahead_ts
        # The same moment again: the same answer.
        again = client.snapshot(1, Projection(), request_ts=ahead_ts)
        assert empty.thin_row == again.thin_row
        now[0] = ahead_ts + 1
        assert len(client.snapshot(1, Projection()).thin_row.mutable) == 1
        now[0] -= 10_000  # a wall clock set back
        assert client.append([1], [now[0]], {"x": [1]}).arrival_ts >= ahead_ts + 1
