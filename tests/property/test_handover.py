"""The hand-over: at every instant each event is in exactly one of the two parts of an answer.

Exports, compactions, publications, forgetting, restarts and kills are steps of their own here, with
requests between any two of them; whatever a request saw is put back by a real server from every
generation that follows. Seeds are printed with what fails.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections import defaultdict
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from support.hand_overs import (
    POLL_S,
    SCHEMA,
    WANTED,
    Follower,
    Killed,
    Logged,
    columns_of,
    hand_overs,
    has_erased,
    opened,
    serving,
)
from support.kafka_topics import wait_for
from support.online_events import item
from support.online_worlds import Online, projection, same, some_events
from support.oracle import DAY_MS, Event, Run, Schema, Trait, Wanted
from support.scenarios import CROWD, STRANGER, schema_toml
from support.small_disks import Disk, disk
from support.worlds import REPEATS, START_TS, World, new_world, running_online, thinrow
from support.worlds import some_events as some_event_rows
from thinrow.client import Projection, connect
from thinrow.client.online import connect_online
from thinrow.compaction.compact import compact
from thinrow.core.pointers import MutableColumn
from thinrow.errors import RequestError, StoreError, ThinRowError
from thinrow.jobs.export import export_events
from thinrow.online.config import OnlineConfig
from thinrow.online.records import batch_of
from thinrow.online.server import OnlineServer
from thinrow.online.state import TierState
from thinrow.online.tier import MutableTier, TierConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from thinrow.client import Client
    from thinrow.client.online import Snapshot
    from thinrow.online.records import Batch

__all__ = ["disk"]


@pytest.mark.parametrize("seed", range(REPEATS))
def test_each_event_is_in_one_part_at_every_step_of_every_hand_over(
    tmp_path: Path, seed: int
) -> None:
    world = new_world(tmp_path, schema_toml(SCHEMA))
    rng = random.Random(seed)
    online = hand_overs(
        world,
        seed,
        retention_ms=(120, DAY_MS, 300)[seed % 3],
        commit_lead_ms=rng.choice((0, 5)),
    )
    sent: list[list[Event]] = []
    with ExitStack() as stack:
        stack.enter_context(online.running())
        client: Client | None = None
        for _ in range(400):
            act = online.rng.random()
            if act < 0.2:
                events = some_events(online.rng, SCHEMA, online.now[0])
                online.append(events)
                sent.append([event for event in events if event.event_id is not None])
            elif act < 0.24 and sent and (again := online.rng.choice(sent)):
                online.append(again)  # delivered again, perhaps after its generation
            elif act < 0.36:
                online.now[0] += online.rng.choice((1, 1, 7, 30, 100, -20))
            elif act < 0.44:
                online.export()
            elif act < 0.53:
                if act > 0.47:
                    online.export()
                online.publish()
            elif act < 0.57:
                online.accept_generation()
                if online.opened and client is None:
                    address = stack.enter_context(serving(world))
                    client = stack.enter_context(connect(address))
                if client is not None:
                    online.put_all_back(client)
            elif act < 0.575:
                stack.pop_all().close()  # in order: clients, servers
                client = None
                stack.enter_context(online.running())
                online.counts["restarts"] += 1
            else:
                online.look_about()
        online.now[0] += 30
        online.export()
        online.publish()
        online.accept_generation()
        client = stack.enter_context(connect(stack.enter_context(serving(world))))
        online.put_all_back(client)
    print(f"seed {seed}: {dict(online.counts)}")
    assert online.counts["hand-overs"] >= 10


def test_what_retention_dropped_and_erasure_removed(tmp_path: Path) -> None:
    """Same status at the request and in training, never a short answer."""
    online = hand_overs(new_world(tmp_path, schema_toml(SCHEMA)), 7)
    with ExitStack() as stack:
        stack.enter_context(online.running())
        client: Client | None = None
        for _ in range(10):
            for _ in range(10):
                online.append(some_events(online.rng, SCHEMA, online.now[0]))
                online.now[0] += online.rng.choice((1, 7, 30))
                online.look_about()
            online.export()
            erased: tuple[int, ...] = ()
            if len(online.generations) < 4:
                online.publish()
            else:
                erased = online.rng.choice(((), (), (1, 3)))
                # Without this one, runs in which time passes otherwise might erase no one.
                erased = (1, 3) if len(online.generations) == 5 else erased
                online.publish(online.rng.choice((None, 100)), erased)
            online.accept_generation()
            for user_id in erased:
                online.look(user_id, online.oracle.watermarks[-1] - 1, 0, 0, WANTED[0])
            if client is None:
                client = stack.enter_context(connect(stack.enter_context(serving(online.world))))
            online.put_all_back(client)
    counts = online.counts
    assert counts["EXPIRED"] and counts["ERASED"], counts
    assert counts["put back EXPIRED"] and counts["put back ERASED"] and counts["put back"], counts


def test_an_erasure_that_is_rolled_back(tmp_path: Path) -> None:
    """The tier has deleted events that the generation before lacks: an error, no short history."""
    online = hand_overs(new_world(tmp_path, schema_toml(SCHEMA)), 0)
    with online.running():

        def act(erase: tuple[int, ...] = ()) -> None:
            for user_id in (1, 2):
                traits: dict[str, Any] = {
                    "item_id": 1,
                    "brand": "b",
                    "taste": (1.0, 2.0),
                    "codes": (),
                }
                event = Event(user_id, online.now[0], 0, online.now[0] + user_id, traits)
                online.append([event])
            online.now[0] += 1000  # beyond the latest arrival, however slow the disk is
            online.export()
            online.publish(erase=erase)
            online.accept_generation()

        act()
        act((1,))
        wait_for(partial(has_erased, online.server))
        done = thinrow(
            "store", "rollback", "--store", online.world.store, "--to", 1, "--newer", "keep"
        )
        assert done.returncode == 0, done.stderr
        online.server.published.refresh()
        assert online.client.describe().generation == 1
        with pytest.raises(StoreError, match="has deleted what arrived of the user"):
            online.client.snapshot(1, Projection())
        [known] = online.client.snapshot(2, Projection()).batch.to_lists("item_id")
        assert known == [1, 1]


# Killed at any moment


@pytest.mark.parametrize("seed", range(REPEATS))
@pytest.mark.timeout(300)
def test_killed_between_and_within_the_steps(tmp_path: Path, seed: int) -> None:
    world = new_world(tmp_path, schema_toml(SCHEMA))
    config = OnlineConfig(store=world.store)
    online = Killed(world, SCHEMA, config, [], seed=seed)
    online.server = Follower(online)  # type: ignore[assignment]
    for number in range(6):
        with ExitStack() as stack:
            server = stack.enter_context(running_online(world, "--retention", "4s"))
            client = stack.enter_context(connect_online(server.address))
            online.client = client
            online.resolve()
            if number % 2:  # published while no one was there to see it
                online.accept_generation()
            for _ in range(40):
                act = online.rng.random()
                if act < 0.3:
                    online.append(online.some())
                elif act < 0.4:
                    online.export()
                elif act < 0.5:
                    online.publish()
                elif act < 0.55:
                    online.accept_generation()
                else:
                    online.look_about()
            until_killed = (
                online.append_until_killed,
                online.export_until_killed,
                online.look_until_killed,
            )[(number + seed) % 3]
            kill = threading.Timer(online.rng.uniform(0, 0.06), server.process.kill)
            kill.start()
            with pytest.raises(ThinRowError):
                until_killed()
            kill.join()
            online.counts["kills"] += 1
        assert not list(tmp_path.glob(".export-*"))
        if number % 2 == 0:
            online.publish()
        if len(online.generations) > 1:
            with serving(world) as address, connect(address) as client_:
                online.put_all_back(client_)
    print(f"seed {seed}: {dict(online.counts)}")


# All at once


@dataclass
class Recorded:
    """Record of what threads did, judged afterwards."""

    appended: list[Event] = field(default_factory=list)
    snapshots: list[tuple[Snapshot, Wanted]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)


RETENTION_MS = 10_000
"""Longer than any pause between two exports on a busy machine: they lose what retention drops."""


def test_threads_append_and_look_while_hand_overs_run(tmp_path: Path) -> None:
    """A snapshot at T holds what was acknowledged as arriving before T, and nothing else."""
    world = new_world(tmp_path, schema_toml(SCHEMA))
    online = hand_overs(
        world, 2, wall=lambda: time.time_ns() // 1_000_000, retention_ms=RETENTION_MS
    )
    result, stop = Recorded(), threading.Event()

    def appending(number: int) -> None:
        rng, sent = random.Random(number), list[Event]()
        with connect_online(online.server.address) as client:
            twin = Online(world, SCHEMA, online.config, [])
            twin.client = client
            for count in range(number, 1 << 30, 2):
                if stop.is_set():
                    break
                now_ts = client.describe().now_ts
                events = [
                    replace(event, event_id=count << 8 | place)
                    for place, event in enumerate(some_events(rng, SCHEMA, now_ts))
                ]
                twin.append(events)
                sent = [*sent[-30:], *events]
                twin.append(rng.sample(sent, 2) if len(sent) > 2 else [])  # delivered again
                time.sleep(rng.uniform(0, 0.03))
            result.appended += twin.arrived

    def looking(number: int) -> None:
        rng = random.Random(number)
        with connect_online(online.server.address) as client:
            requested: list[tuple[int, int, int, int]] = []
            while not stop.is_set():
                user_id, lookback_ms = rng.choice((*CROWD, STRANGER)), rng.choice((0, 0, 200))
                request_ts = rng.choice((0, 0, time.time_ns() // 1_000_000 - rng.randrange(500)))
                what = user_id, request_ts, lookback_ms, rng.choice((0, 0, 5))
                if requested and rng.random() < 0.3:
                    what = rng.choice(requested[-10:])
                wanted = rng.choice(WANTED)
                user_id, request_ts, lookback_ms, max_length = what
                try:
                    seen = client.snapshot(
                        user_id,
                        projection(wanted),
                        request_ts=request_ts,
                        lookback_ms=lookback_ms,
                        max_length=max_length,
                    )
                except RequestError as error:  # on a machine too slow for that moment
                    age_ms = time.time_ns() // 1_000_000 - (request_ts - lookback_ms)
                    assert request_ts and age_ms > RETENTION_MS and "kept" in str(error), error
                    continue
                result.snapshots.append((seen, wanted))
                requested.append((user_id, seen.thin_row.request_ts, lookback_ms, max_length))
                time.sleep(rng.uniform(0, 0.01))

    def guarded(work: Any, number: int) -> None:  # noqa: ANN401
        try:
            work(number)
        except BaseException as error:
            result.failures.append(error)
            stop.set()

    with online.running():
        threads = [
            threading.Thread(target=guarded, args=(work, number))
            for work in (appending, looking)
            for number in (0, 1)
        ]
        for thread in threads:
            thread.start()
        watermarks = []
        for _ in range(12 * REPEATS):
            watermark_ts = online.now_ts()
            path = tmp_path / f"export-{watermark_ts}.parquet"
            export_events(online.client, watermark_ts, path)
            compact(replace(world.compaction([path], 0), watermark_ts=watermark_ts))
            watermarks.append(watermark_ts)
        stop.set()
        for thread in threads:
            thread.join()
    assert not result.failures, result.failures
    online.arrived = sorted(result.appended, key=lambda event: event.arrival_ts)
    for last, watermark_ts in zip([0, *watermarks], watermarks, strict=False):
        due = [event for event in online.arrived if last <= event.arrival_ts < watermark_ts]
        online.oracle.compact(Run(due, watermark_ts))
    same_moment = defaultdict[Any, set[str]](set)
    for seen, wanted in result.snapshots:
        row = seen.thin_row
        generation = watermarks.index(row.end_ts) + 1 if row.end_ts in watermarks else 0
        assert generation or row.start_ts == row.end_ts
        online.oracle.watermarks = watermarks[:generation]
        lookback_ms = row.request_ts - row.start_ts if row.start_ts else 0
        pointer, mutable = online.pointer(
            int(row.user_id), row.request_ts, lookback_ms, row.max_length
        )
        online.oracle.watermarks = watermarks
        status, sequence = online.oracle.answer(pointer, wanted, mutable, row.request_ts)
        assert status == "OK"
        assert same([dict(event) for event in row.mutable], [online.logged(e) for e in mutable])
        online.check_sequence(seen.batch, sequence, wanted)
        online.rows.append(Logged(row, wanted, SCHEMA, columns_of(seen.batch)))
        same_moment[row.user_id, row.request_ts, row.start_ts, row.end_ts, row.max_length].add(
            repr(row)
        )
    assert all(len(rows) == 1 for rows in same_moment.values())
    online.generations = list(range(len(watermarks) + 1))
    with serving(world) as address, connect(address) as client:
        online.put_all_back(client)
    print(
        f"{len(watermarks)} hand-overs, {len(online.arrived)} events, "
        f"{len(result.snapshots)} snapshots, {len(same_moment)} of them different"
    )
    assert len(same_moment) < len(result.snapshots)


# What goes wrong


def tier_config(world: World, now: list[int], **options: Any) -> TierConfig:  # noqa: ANN401
    return TierConfig(
        folder=world.folder / "tier", wall=lambda: now[0], **{"commit_lead_ms": 0, **options}
    )


def a_batch(tier: MutableTier, ids: Sequence[int], items: Sequence[int] | None = None) -> Batch:
    """Events of user 1."""
    assert tier.format is not None
    count = len(ids)
    given = {
        "event_ts": [START_TS] * count,
        "event_id": ids,
        "item_id": items or [7] * count,
    }
    texts = np.array(["a"] * count, object)
    columns = {name: MutableColumn(np.array(values, np.int64)) for name, values in given.items()}
    columns |= {"brand": MutableColumn(texts), "price": MutableColumn(np.ones(count))}
    known = {trait.name for trait in tier.format.schema.traits} | {"event_ts", "event_id"}
    columns = {name: column for name, column in columns.items() if name in known}
    return batch_of([1] * count, tier.format.checked(columns, count), tier.format)


def forget_at_next_read(tier: MutableTier, watermark_ts: int) -> AbstractContextManager[object]:
    """Forgets between a reader's choice of epochs and its reading of them."""
    epochs = TierState.epochs
    due = [watermark_ts]

    def chosen(state: TierState, from_ts: int, until_ts: int) -> range:
        found = epochs(state, from_ts, until_ts)
        if due:
            assert tier.accept_generation([due.pop()])
        return found

    return mock.patch.object(TierState, "epochs", chosen)


@pytest.mark.parametrize("while_reading", [False, True])
def test_what_is_forgotten_is_an_error_and_not_a_short_answer(
    tmp_path: Path, while_reading: bool
) -> None:
    now, world = [START_TS], new_world(tmp_path)
    tier = opened(MutableTier(tier_config(world, now, retention_ms=100)), world)
    tier.commit([a_batch(tier, [1])])
    now[0] += 10
    watermark_ts = now[0]
    tier.seal(watermark_ts)
    now[0] += 10
    tier.commit([a_batch(tier, [2])])
    now[0] += 200
    until_ts = tier.begin(0).request_ts
    assert len(tier.read(1, START_TS, until_ts)[1]) == 2
    forgetting: AbstractContextManager[object] = nullcontext()
    if while_reading:
        forgetting = forget_at_next_read(tier, watermark_ts)
    else:
        assert tier.accept_generation([watermark_ts])
    with forgetting, pytest.raises(RequestError, match="kept events since"):
        tier.read(1, START_TS, until_ts)
    with pytest.raises(RequestError, match="kept events since"):
        list(tier.scan(START_TS, until_ts))
    assert len(tier.read(1, watermark_ts, until_ts)[1]) == 1
    tier.close()


def test_an_export_is_not_finished_over_what_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinrow.online.event_log.SCAN_EVENTS_MAX", 1)
    now, world = [START_TS], new_world(tmp_path)
    tier = opened(MutableTier(tier_config(world, now, retention_ms=100)), world)
    for _ in range(2):
        tier.commit([a_batch(tier, [now[0]])])
        now[0] += 10
        tier.seal(now[0])
    now[0] += 200
    parts = tier.scan(START_TS, now[0])
    assert len(next(parts)[2]) == 1
    assert tier.accept_generation([START_TS + 10, START_TS + 20])
    with pytest.raises(RequestError, match="kept events since"):
        list(parts)
    tier.close()


def unsealed(world: World, watermark_ts: int) -> None:
    """A generation of nothing, made without an export."""
    empty = world.write("empty.parquet", some_event_rows(1).slice(0, 0))
    compact(replace(world.compaction([empty], 0), watermark_ts=watermark_ts))


@pytest.mark.parametrize("noticed", [False, True])
def test_nothing_is_sealed_over_a_generation_that_was_not(tmp_path: Path, noticed: bool) -> None:
    """Sealed over, it would pass for exported, and events in neither part be lost."""
    world, now = new_world(tmp_path), [START_TS]
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        poll_s=POLL_S if noticed else 3600,
        wall=lambda: now[0],
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        client.append([1], [START_TS], item(1), [1])
        now[0] += 1000
        unsealed(world, START_TS + 500)
        while noticed and client.describe().generation != 1:
            server.published.refresh()
        for watermark_ts in (START_TS + 400, START_TS + 500, START_TS + 900):
            with pytest.raises(RequestError, match="never sealed"):
                export_events(client, watermark_ts, tmp_path / "export.parquet")
        server.published.refresh()
        assert len(client.snapshot(1, Projection()).thin_row.mutable) == 1
    # Taken back, it was never there.
    shutil.rmtree(world.store)
    with ExitStack() as stack:
        server = stack.enter_context(OnlineServer(replace(config, poll_s=POLL_S)))
        client = stack.enter_context(connect_online(server.address))
        before = client.snapshot(1, Projection())
        export_events(client, START_TS + 900, tmp_path / "export.parquet")
        compact(
            replace(world.compaction([tmp_path / "export.parquet"], 0), watermark_ts=START_TS + 900)
        )
        while client.describe().generation != 1:
            server.published.refresh()
        after = client.snapshot(1, Projection())
        assert after.thin_row.end_ts == START_TS + 900 and not after.thin_row.mutable
        assert columns_of(before.batch) == columns_of(after.batch)


def test_events_of_a_later_epoch_keep_an_unsealed_generation_out(tmp_path: Path) -> None:
    """Those between a seal in the past and the clock's floor belong to the epoch before it."""
    now, world = [START_TS], new_world(tmp_path)
    tier = opened(MutableTier(tier_config(world, now)), world)
    tier.begin(0)
    tier.seal(START_TS - 5)
    now[0] += 5
    tier.commit([a_batch(tier, [1])])
    assert not tier.accept_generation([START_TS + 100])
    assert tier.sealed_ts == START_TS - 5
    tier.close()


class SlowTier(MutableTier):
    """Writes events once ``may_write`` is set."""

    def __init__(self, config: TierConfig) -> None:
        super().__init__(config)
        self.writing, self.may_write = threading.Event(), threading.Event()
        write = self.events.write

        def slow(*arguments: Any) -> None:  # noqa: ANN401
            self.writing.set()
            assert self.may_write.wait(120)
            write(*arguments)

        self.events.write = slow  # type: ignore[assignment, method-assign]


def test_an_event_on_its_way_to_the_disk_keeps_an_unsealed_generation_out(tmp_path: Path) -> None:
    now, world = [START_TS], new_world(tmp_path)
    tier = SlowTier(tier_config(world, now))
    opened(tier, world)
    commit = threading.Thread(target=tier.commit, args=([a_batch(tier, [1])],))
    commit.start()
    assert tier.writing.wait(120)
    taken: list[bool] = []
    accepting = threading.Thread(
        target=lambda: taken.append(tier.accept_generation([START_TS + 100]))
    )
    accepting.start()
    accepting.join(0.2)
    tier.may_write.set()
    for thread in (commit, accepting):
        thread.join(120)
    assert taken == [False]
    tier.close()


def test_an_export_waits_for_what_is_on_its_way_to_the_disk(tmp_path: Path) -> None:
    now, world = [START_TS], new_world(tmp_path)
    tier = SlowTier(tier_config(world, now))
    opened(tier, world)
    commit = threading.Thread(target=tier.commit, args=([a_batch(tier, [1])],))
    commit.start()
    assert tier.writing.wait(120)
    now[0] += 10
    exported: list[int] = []

    def export() -> None:
        tier.seal(now[0])
        exported.extend(len(records) for _, _, records in tier.scan(START_TS, now[0]))

    sealing = threading.Thread(target=export)
    sealing.start()
    sealing.join(0.2)
    tier.may_write.set()
    for thread in (commit, sealing):
        thread.join(120)
    assert exported == [1]
    tier.close()


def test_the_same_event_in_two_schemas_at_once(tmp_path: Path) -> None:
    """A trait before all others: values in one place then are of two kinds."""
    now, world = [START_TS], new_world(tmp_path, '[item]\nitem_id = "int64"\n')
    tier = opened(MutableTier(tier_config(world, now)), world)
    old = a_batch(tier, [1, 2], [3, 9])
    world.schema.write_text(
        '[item]\nbrand = { type = "string", default = "" }\nitem_id = "int64"\n',
        encoding="utf-8",
    )
    opened(tier, world)
    new = a_batch(tier, [1, 2], [3, 9])
    first, second = tier.commit([old, new])
    assert first.appended + second.appended == 2
    now[0] += 1
    assert len(tier.read(1, START_TS, tier.begin(0).request_ts)[1]) == 2
    tier.close()


@mock.patch("thinrow.online.event_log.WRITE_PAIRS_MAX", 128)  # so that a commit is several writes
def test_a_log_torn_anywhere_gives_no_moment_twice(tmp_path: Path) -> None:
    """State after a loss of power, on a machine whose clock stands still: what is sent again counts
    once, and nothing is written over."""
    now, world = [START_TS], new_world(tmp_path)
    config = tier_config(world, now, commit_lead_ms=5000)  # beyond the lease
    tier = opened(MutableTier(config), world)
    whole = world.folder / "whole"
    shutil.copytree(config.folder, whole)
    [log] = [path for path in whole.glob("*.log") if path.stat().st_size]
    begun = log.stat().st_size
    tier.commit([a_batch(tier, list(range(200)))])
    full = (config.folder / log.name).read_bytes()
    tier.close()
    kept = set()
    for size in [*range(begun, len(full), (len(full) - begun) // 8), len(full)]:
        shutil.rmtree(config.folder)
        shutil.copytree(whole, config.folder)
        (config.folder / log.name).write_bytes(full[:size])
        again = MutableTier(config)
        result = again.commit([a_batch(again, list(range(100, 300)))])[0]
        kept.add(result.duplicates)
        until_ts = result.arrival_ts + 1
        now[0] += 60_000
        assert again.begin(until_ts).request_ts == until_ts
        _, records = again.read(1, START_TS, until_ts)
        assert len(records) == len(set(records))
        assert len(records) == 300 or (not result.duplicates and len(records) >= 200)
        now[0] -= 60_000
        again.close()
    assert {0, 100} < kept  # torn before the first write, between two, and not at all


def test_a_new_schema_in_a_running_tier(tmp_path: Path) -> None:
    """Events of both schemas lie side by side, and old rows go on naming the same."""
    online = hand_overs(new_world(tmp_path, schema_toml(SCHEMA)), 5, retention_ms=200)
    grown = Schema(
        {
            "item": [*SCHEMA.groups["item"], Trait("colour", "string", sparse=True)],
            "feedback": SCHEMA.groups["feedback"],
            "place": [Trait("city", "int32", sparse=True, default=4)],
        }
    )
    with ExitStack() as stack:
        stack.enter_context(online.running())

        def some_requests() -> None:
            for _ in range(12):
                online.append(some_events(online.rng, online.schema, online.now[0]))
                online.now[0] += online.rng.choice((1, 7, 30))
                online.look_about()

        def hand_over() -> None:
            online.export()
            online.publish()
            online.accept_generation()

        some_requests()
        hand_over()
        client = stack.enter_context(connect(stack.enter_context(serving(online.world))))
        some_requests()
        old_client = online.client
        old_client.traits  # noqa: B018 - as the first call found them
        online.export()
        online.world.schema.write_text(schema_toml(grown), encoding="utf-8")
        some_requests()
        online.publish()
        online.accept_generation()
        online.schema = online.oracle.schema = grown
        with connect_online(online.server.address) as new_client:
            for _ in range(3):
                # An old client knows nothing of the new traits, but may go on.
                online.client, online.schema = old_client, SCHEMA
                online.append(some_events(online.rng, SCHEMA, online.now[0]))
                online.client, online.schema = new_client, grown
                some_requests()
                hand_over()
                online.put_all_back(client)
    sizes = {len(SCHEMA.traits), len(grown.traits)}
    assert {len(each.schema.traits) for each in online.rows} == sizes


def test_a_full_disk_refuses_and_loses_nothing(disk: Disk, tmp_path: Path) -> None:
    world, acknowledged = new_world(tmp_path), set[int]()
    config = OnlineConfig(
        store=world.store,
        data=disk.path / "tier",
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
    )
    traits = {name: values * 500 for name, values in item(1).items()}
    with OnlineServer(config) as server, connect_online(server.address) as client:
        disk.leave(400_000)
        with pytest.raises(StoreError, match="full"):
            for first in range(0, 1 << 20, 500):
                ids = list(range(first, first + 500))
                client.append([1] * 500, [START_TS] * 500, traits, ids)
                acknowledged |= set(ids)
        # No one knows which of those refused are on disk: a row that shows one could lose it.
        with pytest.raises(StoreError):
            client.snapshot(1, Projection())
        with pytest.raises(StoreError):
            client.append([1], [START_TS], item(1), [1])
    disk.leave(8 << 20)
    with OnlineServer(config) as server, connect_online(server.address) as client:
        now_ts = client.describe().now_ts + 50
        seen = client.snapshot(1, Projection(traits=("event_id",)), request_ts=now_ts)
        [there] = seen.batch.to_lists("event_id")
        assert there is not None and acknowledged <= set(there) and len(set(there)) == len(there)
    assert acknowledged
