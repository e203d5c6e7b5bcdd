"""Hand-overs from the online half to the store, and requests that follow them."""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from support.online_worlds import Online, as_example, projection, same, some_events
from support.oracle import Event, Pointer, Run, Schema, Trait, Wanted, columns
from support.scenarios import CROWD, STRANGER, USERS, rows_table
from support.worlds import START_TS, World
from thinrow.client import Projection, read_thin_rows
from thinrow.compaction.compact import compact
from thinrow.errors import LaggingError, RequestError
from thinrow.jobs.export import export_events
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.follower import TierFollower
from thinrow.schema import read_schema
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.client import Client
    from thinrow.client.online import Snapshot
    from thinrow.core.thin_row import ThinRow
    from thinrow.online.server import OnlineServer
    from thinrow.online.tier import MutableTier


POLL_S = 0.03


STATUS = {name.removeprefix("STATUS_"): number for name, number in wire.Status.items()}


SCHEMA = Schema(
    {
        "item": [
            Trait("item_id", "int64", key=True),
            Trait("brand", "string"),
            Trait("tags", "string", length_max=3, sparse=True),
        ],
        "feedback": [
            Trait("rating", "int8", sparse=True),
            Trait("weight", "float32", sparse=True, default=1.5),
            Trait("taste", "float32", size=2),
            Trait("codes", "int16", length_max=300, sparse=True, default=()),
        ],
    }
)


WANTED = (
    Wanted(),
    Wanted(3, False, (), ("event_id", "visible_ts", "item_id", "rating")),
    Wanted(4, True, ("feedback",), ("event_ts",)),
    Wanted(1000, False, ("item",), ("weight", "visible_ts")),
)


@dataclass
class Logged:
    """A thin row, what was requested, and every column of what inference saw."""

    row: ThinRow
    wanted: Wanted
    schema: Schema
    sequence: str


def columns_of(batch: Any, place: int = 0) -> str:  # noqa: ANN401
    """One example of a batch, by its text: nan equals nan, and zeros have signs."""
    return repr({name: batch.to_lists(name)[place] for name in batch.values})


@dataclass
class HandOvers(Online):
    """A server through many hand-overs, each in steps, and every thin row that it gave."""

    seed: int = 0
    rows: list[Logged] = field(default_factory=list)
    exported: list[tuple[int, Path, list[Event]]] = field(default_factory=list)
    generations: list[int] = field(default_factory=lambda: [0])
    """Watermarks that each generation knows, by its number."""
    opened: int = 0
    """The newest generation that a request was served from."""
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rng = random.Random(self.seed)

    def now_ts(self) -> int:
        return self.client.describe().now_ts

    def look(
        self, user_id: int, moment_ts: int, lookback_ms: int, max_length: int, wanted: Wanted
    ) -> Snapshot | None:
        """A snapshot, which one of the generations there are explains in every column."""
        self.counts["snapshots"] += 1
        known, before_ts = len(self.generations), self.now_ts()
        try:
            seen = self.client.snapshot(
                user_id,
                projection(wanted),
                request_ts=moment_ts,
                lookback_ms=lookback_ms,
                max_length=max_length,
            )
        except (RequestError, LaggingError) as error:
            self.check_refusal(error, moment_ts, before_ts)
            self.counts["refused"] += 1
            return None
        row = seen.thin_row
        assert row.request_ts == moment_ts or not moment_ts
        watermarks = self.oracle.watermarks
        for generation in range(self.opened, known):
            self.oracle.watermarks = watermarks[: self.generations[generation]]
            end_ts = self.expected_end_ts(row.request_ts, lookback_ms)
            if end_ts == row.end_ts:
                break
        else:
            raise AssertionError(f"no generation has the watermark {row.end_ts}")
        pointer, mutable = self.pointer(user_id, row.request_ts, lookback_ms, max_length)
        self.oracle.watermarks = watermarks  # the newest generation knows the past of all others
        status, sequence = self.oracle.answer(pointer, wanted, mutable, row.request_ts)
        assert Pointer(int(row.user_id), row.start_ts, row.end_ts, row.max_length) == pointer
        if status != "OK":
            assert seen.batch.statuses.tolist() == [STATUS[status]] and not row.mutable
            self.counts[status] += 1
            return None
        assert same([dict(event) for event in row.mutable], [self.logged(e) for e in mutable])
        self.check_sequence(seen.batch, sequence, wanted)
        self.rows.append(Logged(row, wanted, self.schema, columns_of(seen.batch)))
        return seen

    def expected_end_ts(self, request_ts: int, lookback_ms: int) -> int:
        place = bisect_right(self.oracle.watermarks, request_ts)
        if place:
            return self.oracle.watermarks[place - 1]
        return request_ts - lookback_ms if lookback_ms else 0

    def look_about(self) -> None:
        """Some user, some moment, some projection; sometimes requested twice."""
        rng, clock = self.rng, self.now_ts()
        moment_ts = rng.choice((0, 0, clock, clock - rng.randrange(300), clock + 9))
        if self.rows and rng.random() < 0.2:
            moment_ts = rng.choice(self.rows[-20:]).row.request_ts
        user_id = rng.choice((*CROWD, STRANGER))
        lookback_ms, max_length = rng.choice((0, 0, 3, 150)), rng.choice((0, 0, 1, 5))
        wanted = rng.choice(WANTED)
        seen = self.look(user_id, moment_ts, lookback_ms, max_length, wanted)
        if seen is not None and rng.random() < 0.3:
            again = self.look(user_id, seen.thin_row.request_ts, lookback_ms, max_length, wanted)
            if again is not None and again.thin_row.end_ts == seen.thin_row.end_ts:
                assert same(again.thin_row, seen.thin_row)

    def export(self) -> None:
        """Seals now, and takes the events; sometimes more than it needs, or the same again."""
        rng = self.rng
        watermark_ts = self.now_ts() + rng.choice((0, 0, 0, -4, 9))
        last = self.oracle.watermarks[-1] if self.oracle.watermarks else None
        if last is not None and watermark_ts <= last:
            return
        from_ts = None
        if len(self.oracle.watermarks) > 1 and rng.random() < 0.4:
            from_ts = rng.choice(self.oracle.watermarks[-3:])
        path = self.world.folder / f"export-{len(self.exported)}.parquet"
        result = self.run_export(watermark_ts, path, from_ts)
        if result is None:
            return
        if rng.random() < 0.3:
            first = path.read_bytes()
            if self.run_export(watermark_ts, path, from_ts) == result:
                assert path.read_bytes() == first
            else:  # another generation was taken up, or forgotten
                path.write_bytes(first)
        self.exported.append((watermark_ts, path, result[1]))
        self.counts["exports"] += 1
        if rng.random() < 0.3:  # one whose outcome was not heard of, perhaps published since
            self.run_export(rng.choice(self.exported[-5:])[0], path.with_name("again.parquet"))

    def run_export(
        self, watermark_ts: int, path: Path, from_ts: int | None = None
    ) -> tuple[int, list[Event]] | None:
        """Since when, and the events written, each once; None where some are forgotten."""
        try:
            report = export_events(self.client, watermark_ts, path, from_ts)
        except RequestError as error:
            assert "kept" in str(error), error
            return None
        since_ts = report.from_ts or 0
        assert since_ts in (0, *self.oracle.watermarks) and since_ts < watermark_ts
        due = [event for event in self.arrived if since_ts <= event.arrival_ts < watermark_ts]
        assert report.events == len(due)
        return since_ts, due

    def publish(self, lookback_ms: int | None = None, erase: Sequence[int] = ()) -> None:
        """Compacts any export that goes beyond what is published, as far as it goes or less."""
        rng = self.rng
        last = self.oracle.watermarks[-1] if self.oracle.watermarks else 0
        due = [export for export in self.exported if export[0] > last]
        if not due:
            return
        watermark_ts, path, events = rng.choice(due)
        if rng.random() < 0.2:
            watermark_ts = max(last + 1, watermark_ts - rng.randrange(20))
        cadence_ms = rng.choice((None, None, 50)) if last else None
        users = self.world.folder / "erase.txt"
        users.write_text("".join(f"{user_id}\n" for user_id in erase), encoding="utf-8")
        config = self.world.compaction(
            [path],
            0,
            shards=self.shards,
            cadence_ms=cadence_ms,
            lookback_ms=lookback_ms,
            erase_users=users if erase else None,
        )
        result = compact(replace(config, watermark_ts=watermark_ts))
        run = Run(
            events,
            watermark_ts,
            cadence_ms=cadence_ms,
            lookback_ms=lookback_ms,
            erase=frozenset(erase),
        )
        expected = self.oracle.compact(run)
        # Nothing says whether an event added and erased in one run was added.
        assert erase or result.events_added == expected.events_added
        self.generations.append(len(self.oracle.watermarks))
        assert result.generation == len(self.generations) - 1
        self.counts["hand-overs"] += 1

    @property
    def shards(self) -> int:
        return 1 << self.seed % 3

    def accept_generation(self) -> None:
        newest = len(self.generations) - 1
        self.wait_for(newest)
        self.opened = newest

    def put_all_back(self, client: Client) -> None:
        """Every thin row so far, from the newest generation."""
        newest = len(self.generations) - 1
        end_s = time.monotonic() + 60
        while client.describe_store().generation < newest:
            assert time.monotonic() < end_s
            time.sleep(0.005)
        groups = defaultdict[tuple[Wanted, int], list[Logged]](list)
        for each in self.rows:
            wanted = each.wanted
            if each.schema != self.schema:  # all that there was then, by name
                names = tuple(columns(wanted, each.schema))
                wanted = replace(wanted, feature_groups=(), traits=names)
            groups[wanted, len(each.schema.traits)].append(each)
        for (wanted, _), rows in groups.items():
            examples = [as_example(each.row, each.schema) for each in rows]
            digests = [each.row.digest for each in rows]
            table = rows_table(examples, digests, rows[0].schema)
            path = self.world.write("rows.parquet", table)
            [(thin, _)] = read_thin_rows(path, examples=len(rows))
            batch = client.materialize(thin, projection(wanted))
            assert batch.generation == newest
            lists = {name: batch.to_lists(name) for name in batch.values}
            statuses = batch.statuses.tolist()
            for place, (each, example) in enumerate(zip(rows, examples, strict=True)):
                status, _ = self.oracle.answer(
                    example.pointer, wanted, example.mutable, example.request_ts
                )
                assert statuses[place] == STATUS[status], each.row
                if status == "OK":
                    again = repr({name: column[place] for name, column in lists.items()})
                    assert again == each.sequence, each.row
                self.counts["put back" if status == "OK" else f"put back {status}"] += 1


def has_erased(server: OnlineServer) -> bool:
    """Lets a server look at its store; true once it has deleted what a generation erased."""
    published = server.published
    assert isinstance(published, TierFollower)
    published.refresh()
    state = published._tier.state.now
    return state.erased_until_ts > 0 and not state.purge_due


def hand_overs(world: World, seed: int, **options: Any) -> HandOvers:  # noqa: ANN401
    now = [START_TS]
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        poll_s=POLL_S,
        drain_s=1,
        **{"wall": lambda: now[0], **options},
    )
    return HandOvers(world, SCHEMA, config, now, seed=seed)


@contextmanager
def serving(world: World) -> Iterator[str]:
    config = ServerConfig(
        store=world.store, listen="127.0.0.1:0", metrics=None, poll_s=POLL_S, drain_s=1
    )
    with Server(config) as server:
        yield server.address


@dataclass
class Killed(HandOvers):
    """State of a process that is killed: what was under way is in doubt until it is back."""

    doubtful: list[Event] = field(default_factory=list)
    next_id: int = 1

    def some(self) -> list[Event]:
        now_ts = time.time_ns() // 1_000_000
        events = []
        for event in some_events(self.rng, SCHEMA, now_ts):
            events.append(replace(event, event_id=self.next_id))
            self.next_id += 1
        return events

    def resolve(self) -> None:
        """Finds which of the unacknowledged events are stored; sends the others again."""
        seen = self.client.snapshot_batch(list(USERS), Projection(), request_ts=self.now_ts() + 20)
        there = {event["event_id"]: event for row in seen.thin_rows for event in row.mutable}
        known = {event.event_id for event in self.arrived}
        for event in self.doubtful:
            if event.event_id in there:
                arrival_ts: Any = there[event.event_id]["arrival_ts"]
                self.arrived.append(replace(event, arrival_ts=arrival_ts))
                self.counts["arrived unacknowledged"] += 1
        rest = [event for event in self.doubtful if event.event_id not in there]
        assert not known & {event.event_id for event in self.doubtful}
        self.append(self.doubtful)  # counts those as duplicates
        self.counts["sent again"] += len(rest)
        self.doubtful = []

    def append_until_killed(self) -> None:
        while True:
            # More than one write's worth.
            self.doubtful = [event for _ in range(60) for event in self.some()][:300]
            self.append(self.doubtful)
            self.doubtful = []

    def export_until_killed(self) -> None:
        while True:
            self.export()

    def look_until_killed(self) -> None:
        while True:
            self.look_about()


class Follower:
    """Stands for the server in this process: the one of another process is only requested."""

    def __init__(self, online: Killed) -> None:
        self._online = online
        self.published = self

    @property
    def number(self) -> int:
        return self._online.client.describe().generation

    def refresh(self) -> None:
        """It looks by itself."""


def opened(tier: MutableTier, world: World) -> MutableTier:
    tier.use_schema(read_schema(world.schema))
    return tier
