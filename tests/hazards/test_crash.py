"""Whatever is killed, started twice or replaced: nothing is lost, doubled or wrong."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.endless_streams import QUICK, endless, some_batches
from support.worlds import (
    ALL,
    OWN_HOST,
    REPEATS,
    World,
    built_world,
    compact_command,
    cpu_s,
    days,
    freeze,
    leftovers,
    let_work,
    pointers_to,
    read_store,
    running_server,
    shown,
    some_events,
    thinrow,
)
from thinrow.client import ClientConfig, connect
from thinrow.compaction.compact import compact
from thinrow.errors import UnavailableError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from pathlib import Path

    from support.worlds import Running

OLD, NEW = pointers_to(days(3)), pointers_to(days(3, 5))


# Compaction.


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store of one generation, and the events of the next, enough to take a moment."""
    world = built_world(tmp_path_factory.mktemp("grown"), count=20_000, users=200)
    world.write("next.parquet", some_events(60_000, users=300, days=2, first_day=3, seed=1))
    return world


def copied(world: World, folder: Path) -> World:
    shutil.copytree(world.folder, folder)
    return World(folder)


def next_command(world: World, *options: object) -> list[str]:
    events = [world.folder / "next.parquet"]
    return [*compact_command(world, events, 5), *map(str, options)]


def until(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits for a path to appear, or for the process to end."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.001)


def test_compaction_killed_at_any_moment(grown: World, tmp_path: Path) -> None:
    rng = random.Random(7)
    before = read_store(grown.store, OLD)
    whole = copied(grown, tmp_path / "whole")
    compact(whole.compaction([whole.folder / "next.parquet"], 5))
    expected = read_store(whole.store, NEW)

    # How much work it is from the first file written to the end.
    timed = copied(grown, tmp_path / "timed")
    with subprocess.Popen(next_command(timed), stdout=subprocess.DEVNULL) as process:
        until(timed.store / "building", process)
        start_s = cpu_s(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        work_s = cpu_s(process.pid) - start_s
    assert process.returncode == 0

    unpublished = 0
    for n in range(4 * REPEATS):
        world = copied(grown, tmp_path / f"killed-{n}")
        keep = rng.choice((None, 1))
        options = () if keep is None else ("--keep", keep)
        with subprocess.Popen(
            next_command(world, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            until(world.store / "building", process)
            # At least the first is killed as soon as it has begun.
            let_work(process, rng.uniform(0, work_s) if n else 0)
            process.kill()
        current = (world.store / "CURRENT").read_text(encoding="utf-8").strip()
        unpublished += current == "generation-000001"
        assert read_store(world.store, OLD) == before
        if current == "generation-000002":
            assert read_store(world.store, NEW) == expected

        events = [world.folder / "next.parquet"]
        compact(world.compaction(events, 5, shards=None, keep=keep))
        assert read_store(world.store, NEW) == expected
        assert leftovers(world.store) == []
        generations = sorted(path.name for path in world.store.glob("generation-*"))
        assert generations[-1] == "generation-000002"
        assert len(generations) == (keep or 2)
        shutil.rmtree(world.folder)
    assert unpublished, "no run was killed in the middle of its work"


def test_what_killed_runs_leave_is_removed(tmp_path: Path) -> None:
    """The rare moments by hand: killed before publishing, while writing CURRENT, while pruning."""
    world = built_world(tmp_path)
    first = world.store / "generation-000001"
    events = [world.write("next.parquet", some_events(days=2, first_day=3))]
    for name in ("generation-000002", "generation-000007", "building", "building.new"):
        left = shutil.copytree(first, world.store / name)
        (left / "UNPUBLISHED").touch()
    (world.store / "CURRENT.new").write_text("genera", encoding="utf-8")
    before = read_store(world.store, OLD)
    compact(world.compaction(events, 5, keep=1))
    assert sorted(path.name for path in world.store.iterdir()) == [
        "CURRENT",
        "HIGHEST",
        "LOCK",
        "generation-000002",
    ]
    assert read_store(world.store, OLD) == before
    # Killed after publishing, while pruning: the same run again has nothing to build.
    left = shutil.copytree(world.store / "generation-000002", world.store / "generation-000001")
    (left / "manifest.json").rename(left / "UNPUBLISHED")
    (world.store / "building.new").mkdir()
    assert compact(world.compaction(events, 5, keep=1)).already_published
    assert leftovers(world.store) == []
    assert [path.name for path in world.store.glob("generation-*")] == ["generation-000002"]


def test_two_compactions_at_once(grown: World, tmp_path: Path) -> None:
    world = copied(grown, tmp_path / "world")
    with subprocess.Popen(next_command(world), stdout=subprocess.DEVNULL) as first:
        until(world.store / "building", first)
        freeze(first.pid)
        second = thinrow(*next_command(world)[3:])
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert second.returncode == 1
    assert second.stderr.strip() == (
        f"Error: Another compaction is running on {world.store}; wait until it ends."
    )
    assert leftovers(world.store) == []
    assert [status for status, _ in read_store(world.store, NEW)] == [wire.STATUS_OK] * len(NEW)


# Streams.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


def test_server_killed_in_the_middle_of_a_stream(built: World) -> None:
    rng = random.Random(3)
    batches, expected = some_batches(rng, built.store)
    enough = threading.Event()
    with ExitStack() as servers:
        server = servers.enter_context(running_server(built.store, listen=f"{OWN_HOST}:0"))
        address = server.address

        def kill_again_and_again(server: Running) -> None:
            try:
                for _ in range(3 * REPEATS):
                    time.sleep(rng.uniform(0, 0.3))
                    server.process.kill()
                    server.process.wait()
                    again = running_server(built.store, listen=address)
                    server = servers.enter_context(again)
            finally:
                enough.set()

        killer = threading.Thread(target=kill_again_and_again, args=(server,))
        killer.start()
        delivered = 0
        with connect(address, QUICK) as client:
            for batch in client.stream(endless(batches, enough), ALL):
                assert shown(batch) == expected[delivered % len(batches)]
                delivered += 1
        killer.join()
    assert delivered % len(batches) == 0
    assert delivered >= 2 * len(batches)


def test_generations_published_while_a_client_reads(tmp_path: Path) -> None:
    world = built_world(tmp_path)
    rng = random.Random(4)
    batches, expected = some_batches(rng, world.store)
    enough = threading.Event()
    faults: list[BaseException] = []

    def publish() -> None:
        try:
            for day in range(4, 10):
                events = some_events(days=1, first_day=day - 1, seed=day)
                world.compact(events, day, keep=1)
        except BaseException as error:  # reported by the test's own thread
            faults.append(error)
        finally:
            enough.set()

    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, poll_s=0.01)
    seen = set()
    with Server(config) as server, connect(server.address, QUICK) as client:
        publisher = threading.Thread(target=publish)
        publisher.start()
        for n, batch in enumerate(client.stream(endless(batches, enough), ALL)):
            assert shown(batch) == expected[n % len(batches)]
            seen.add(batch.generation)
            if n % 5 == 0:
                again = client.materialize(batches[n % len(batches)], ALL)
                assert shown(again) == expected[n % len(batches)]
        publisher.join()
        assert not faults
        end_s = time.monotonic() + 60
        while client.describe_store().generation < 7 and time.monotonic() < end_s:
            time.sleep(0.01)
        last = client.materialize(pointers_to(days(9)), ALL)
        assert (last.generation, shown(last)) == (7, read_store(world.store, pointers_to(days(9))))
    assert len(seen) > 2, "the client saw no change of generation"
    assert sorted(path.name for path in world.store.glob("generation-*")) == ["generation-000007"]


# Stopping.


def test_a_call_under_way_is_answered(tmp_path: Path) -> None:
    world = built_world(tmp_path, count=100_000, users=3000)
    pointers = pointers_to(days(3), range(3000))
    with running_server(world.store, "--drain", "30s") as server:
        config = ClientConfig(examples_per_request=8000, retry_deadline_s=0)
        result: list[int] = []
        answers = []
        with (
            connect(server.address, config) as client,
            grpc.insecure_channel(server.address) as channel,
        ):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            result.append(next(watch).status)
            caller = threading.Thread(
                target=lambda: answers.append(client.materialize(pointers, ALL))
            )
            caller.start()
            while caller.is_alive() and not server.scrape()["thinrow_in_flight_requests"]:
                time.sleep(0.001)
            server.process.send_signal(signal.SIGTERM)
            result.append(next(watch).status)
            watch.cancel()
            caller.join()
            with pytest.raises(UnavailableError):
                client.describe_store()
        assert server.process.wait(120) == 0
        assert [line["event"] for line in server.events()][-2:] == ["draining", "stopped"]
    serving = health_pb2.HealthCheckResponse
    assert result == [serving.SERVING, serving.NOT_SERVING]
    (answer,) = answers
    assert shown(answer) == read_store(world.store, pointers)


def test_a_watcher_of_health_does_not_hold_up_the_end(built: World) -> None:
    with (
        running_server(built.store, "--drain", "10m") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        assert server.stop() == 0


@pytest.mark.parametrize("pause_s", [0, 1.0])
def test_a_stream_moves_to_the_other_replica(built: World, pause_s: float) -> None:
    """Also where the consumer dawdles for longer than the server drains."""
    batches, expected = some_batches(random.Random(5), built.store)
    with (
        running_server(built.store, "--drain", "300ms") as one,
        running_server(built.store, "--drain", "300ms") as other,
        connect([one.address, other.address], QUICK) as client,
    ):
        for n, batch in enumerate(client.stream(batches, ALL)):
            assert shown(batch) == expected[n]
            if n == 10:
                assert other.scrape()["thinrow_events_total"] == 0
                one.process.send_signal(signal.SIGTERM)
                time.sleep(pause_s)
        assert n == len(batches) - 1
        assert one.process.wait(60) == 0
        assert other.scrape()["thinrow_events_total"] > 0
        assert other.stop() == 0
