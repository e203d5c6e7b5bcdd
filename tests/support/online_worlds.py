"""The online half of a drawn world, held to the oracle: appends, snapshots and hand-overs."""

# ruff: noqa: ANN401 - values are compared whatever they are

from __future__ import annotations

import time
from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from support.id_kinds import EVENT_IDS, id_array, known_id, oracle_id
from support.oracle import (
    Entry,
    Event,
    Oracle,
    Pointer,
    Run,
    Schema,
    Wanted,
    columns,
    event_order,
    trait_value,
    traits_order,
)
from support.scenarios import (
    CROWD,
    STRANGER,
    USERS,
    Example,
    values,
)
from thinrow.client import Batch, Projection
from thinrow.client.online import OnlineClient, Snapshot, connect_online
from thinrow.compaction.compact import compact
from thinrow.errors import LaggingError, RequestError, ThinRowError
from thinrow.jobs.export import export_events
from thinrow.online.server import OnlineServer
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from support.worlds import World
    from thinrow.client.online import Appended
    from thinrow.core.thin_row import ThinRow
    from thinrow.online.config import OnlineConfig


def same(left: Any, right: Any) -> bool:
    """Equality of values as bits: NaN equals itself, and zeros have signs."""
    return repr(left) == repr(right)


@dataclass
class Online:
    """A server, what it was reported, and what that means."""

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
        answer = self._append(events)
        seen = {(event.user_id, event.event_id) for event in self.arrived}
        taken = []
        for event in sorted(events, key=lambda event: self.order(event)):
            name = (event.user_id, event.event_id)
            if event.event_id is None or name not in seen:
                taken.append(replace(event, arrival_ts=answer.arrival_ts))
            seen.add(name)
        assert (answer.appended, answer.duplicates) == (len(taken), len(events) - len(taken))
        self.arrived += taken

    def _append(self, events: Sequence[Event]) -> Appended:
        traits = {
            trait.name: [event.traits.get(trait.name) for event in events]
            for trait in self.schema.traits
        }
        return self.client.append(
            [known_id(event.user_id, self.schema.user_ids) for event in events],
            [event.event_ts for event in events],
            traits,
            [event.event_id for event in events],
        )

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
        """Expected content of the thin row."""
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
        moment_ts: int,
        lookback_ms: int,
        max_length: int,
        wanted: Wanted,
    ) -> Snapshot | None:
        """Takes a snapshot, and compares everything in it; None where it was refused, rightly."""
        before = self.client.describe()
        try:
            seen = self.client.snapshot(
                known_id(user_id, self.schema.user_ids),
                projection(wanted),
                request_ts=moment_ts,
                lookback_ms=lookback_ms,
                max_length=max_length,
            )
        except (RequestError, LaggingError) as error:
            self.check_refusal(error, moment_ts, before.now_ts)
            return None
        row = seen.thin_row
        assert row.request_ts >= before.kept_from_ts
        assert row.request_ts == moment_ts or not moment_ts
        pointer, mutable, sequence = self.expected(
            user_id, row.request_ts, lookback_ms, max_length, wanted
        )
        assert (row.user_id, row.start_ts, row.end_ts, row.max_length) == (
            known_id(pointer.user_id, self.schema.user_ids),
            pointer.start_ts,
            pointer.end_ts,
            pointer.max_length,
        )
        assert same([dict(event) for event in row.mutable], [self.logged(e) for e in mutable])
        self.check_sequence(seen.batch, sequence, wanted)
        return seen

    def check_refusal(self, error: ThinRowError, moment_ts: int, before_ts: int) -> None:  # noqa: ARG002
        """Holds the server to the reasons for which it may refuse a moment."""
        assert "kept" in str(error) and moment_ts < self.client.describe().kept_from_ts, error

    def check_sequence(self, batch: Batch, sequence: list[Entry], wanted: Wanted) -> None:
        names = columns(wanted, self.schema)
        assert list(batch.values) == names
        assert batch.statuses.tolist() == [wire.STATUS_OK]
        for name in names:
            [shown] = batch.to_lists(name)
            assert shown is not None
            result = self.oracle.column(sequence, name)
            if name == "visible_ts":  # a mutable event has no place in a history yet
                result = [
                    e.event.arrival_ts if e.visible_ts is None else e.visible_ts for e in sequence
                ]
            assert same([as_value(value) for value in shown], [as_value(value) for value in result])

    def logged(self, event: Event) -> dict[str, Any]:
        traits = {trait.name: as_value(trait_value(event, trait)) for trait in self.schema.traits}
        return {
            "event_ts": event.event_ts,
            "arrival_ts": event.arrival_ts,
            "event_id": event.event_id,
            **traits,
        }

    def hand_over(self, erase: frozenset[int] = frozenset()) -> None:
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
        users = None
        if erase:
            ids = id_array(sorted(erase), self.schema.user_ids)
            users = self.world.write("erase.parquet", pa.table({"user_id": ids}))
        config = self.world.compaction([path], 0, erase_users=users)
        result = compact(replace(config, watermark_ts=watermark_ts))
        run = Run(due, watermark_ts, erase=erase)
        assert result.events_added == self.oracle.compact(run).events_added == len(due)
        self.wait_for(result.generation)

    def finish(self) -> None:
        """Publishes what is not handed over yet: nothing, after a last hand-over."""

    def close(self) -> None:
        """Closes what is open beside the server."""

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


def as_example(row: ThinRow, schema: Schema) -> Example:
    user_id = oracle_id(row.user_id, schema.user_ids, (*USERS, STRANGER))
    events = [
        Event(
            user_id,
            event["event_ts"],
            event["arrival_ts"],
            event["event_id"],
            {trait.name: event[trait.name] for trait in schema.traits},
        )
        for event in row.mutable
    ]
    pointer = Pointer(user_id, row.start_ts, row.end_ts, row.max_length)
    return Example(pointer, row.request_ts, events)


def some_events(rng: random.Random, schema: Schema, now_ts: int) -> list[Event]:
    skews = (0, 0, 1, 5, 40, 10**6, -1, -30, -(10**9))
    return [
        Event(
            rng.choice(CROWD),
            now_ts - rng.choice(skews),
            0,
            rng.choice(EVENT_IDS[schema.event_ids]),
            {trait.name: values(trait, rng) for trait in schema.traits},
        )
        for _ in range(rng.choice((1, 3, 12)))
    ]
