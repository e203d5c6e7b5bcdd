"""Several processes on one port: killed, drained, replaced, counted; and never two servers."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from support.endless_streams import QUICK, endless, some_batches
from support.server_processes import AT_ONCE, TWO, pids, until
from support.worlds import (
    ALL,
    OWN_HOST,
    REPEATS,
    World,
    built_world,
    days,
    freeze,
    pointers_to,
    read_store,
    running_server,
    shown,
    some_events,
    thinrow,
)
from thinrow.client import ClientConfig, Pointers, connect
from thinrow.client.channel import Channels
from thinrow.errors import StoreError, UsageError
from thinrow.materialization import processes
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.merged_metrics import merged
from thinrow.materialization.metrics import Metrics
from thinrow.materialization.processes import Processes, held_port
from thinrow.materialization.server import Server
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric
    from support.worlds import Running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return b"\nState:\tZ" not in Path(f"/proc/{pid}/status").read_bytes()
    return False


def processes_reached(address: str, calls: int = 40) -> set[str]:
    """Processes that answer new connections."""
    reached = set()
    for _ in range(calls):
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options) as channel:
            stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
            request = wire.MaterializeRequest(user_ids=[1], end_ts=days(3))
            call = stub.MaterializeStream(iter([wire.MaterializeStreamRequest(request=request)]))
            result = dict(call.initial_metadata())
            assert result["thinrow-processes"] == "2"
            reached.add(result["thinrow-process"])
            assert len(list(call)) == 1
    return reached


def config_of(world: World, listen: str) -> ServerConfig:
    """Two processes whose parent is this one."""
    return ServerConfig(store=world.store, listen=listen, metrics="127.0.0.1:0", processes=2)


# Serving.


def test_both_serve_and_their_numbers_add_up(world: World) -> None:
    pointers = pointers_to(days(3))
    with running_server(world.store, *TWO) as server:
        assert len(processes_reached(server.address)) == 2
        before = server.scrape()
        assert before["thinrow_processes"] == 2
        for _ in range(20):
            with connect(server.address, AT_ONCE) as client:
                assert shown(client.materialize(pointers, ALL)) == read_store(world.store, pointers)
        after = server.scrape()
        name = 'thinrow_examples_total{status="OK",tenant=""}'
        assert after[name] - before[name] == 20 * len(pointers)
        stage = 'thinrow_stage_seconds_count{stage="plan"}'
        assert after[stage] - before[stage] == 20
        assert after[stage] == after['thinrow_stage_seconds_bucket{le="+Inf",stage="plan"}']
        assert after["thinrow_generation"] == 1
        assert after["thinrow_in_flight_requests"] == after["thinrow_streams"] == 0
        assert after["thinrow_process_deaths_total"] == 0
        assert not [name for name in after if "pid" in name]
        assert server.stop() == 0


def test_a_stream_reaches_every_process(world: World) -> None:
    """Servers in this process, so that each one's own numbers can be seen."""
    with ExitStack() as stack:
        config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, processes=3)
        servers = [stack.enter_context(Server(config))]
        for _ in range(2):
            shared = ServerConfig(
                store=world.store, listen=servers[0].address, metrics=None, processes=3
            )
            servers.append(stack.enter_context(Server(shared)))

        def answered() -> list[float]:
            name = "thinrow_examples_total"
            labels = {"tenant": "", "status": "OK"}
            return [
                server.metrics.registry.get_sample_value(name, labels) or 0 for server in servers
            ]

        def batches() -> Iterator[Pointers]:
            end_s = time.monotonic() + 60
            while not all(answered()):
                assert time.monotonic() < end_s, answered()
                yield pointers_to(days(3))

        right = read_store(world.store, pointers_to(days(3)))
        delivered = 0
        for connections, rows, reached in (
            (4, batches(), 3),
            (1, [pointers_to(days(3))] * 50, 1),
        ):
            before = answered()
            with connect(servers[0].address, ClientConfig(connections=connections)) as client:
                for batch in client.stream(rows, ALL):
                    assert shown(batch) == right
                    delivered += len(batch)
                assert isinstance(client._transport, Channels)
                assert not client._transport._extra_channels, "a connection is left"
            gained = [now - then for now, then in zip(answered(), before, strict=True)]
            assert sum(map(bool, gained)) == reached
        assert sum(answered()) == delivered


def test_a_new_generation_is_taken_up_by_all(tmp_path: Path) -> None:
    world = built_world(tmp_path)
    with running_server(world.store, *TWO) as server:
        world.compact(some_events(days=2, first_day=3), 5)
        until(lambda: server.scrape()["thinrow_generation"] == 2)
        late = pointers_to(days(5))
        right = read_store(world.store, late)
        for _ in range(20):
            with connect(server.address, AT_ONCE) as client:
                assert shown(client.materialize(late, ALL)) == right


# Deaths.


def test_workers_killed_in_the_middle_of_a_stream(world: World) -> None:
    rng = random.Random(6)
    batches, expected = some_batches(rng, world.store)
    enough = threading.Event()
    kills = 4 * REPEATS
    faults: list[BaseException] = []
    with running_server(world.store, *TWO) as server:

        def kill_again_and_again() -> None:
            try:
                for n in range(kills):
                    time.sleep(rng.uniform(0.1, 0.4))
                    os.kill(rng.choice(pids(server)), signal.SIGKILL)
                    until(lambda n=n: len(serving(server)) == 3 + n, 60)  # type: ignore[misc]
            except BaseException as error:
                faults.append(error)
            finally:
                enough.set()

        killer = threading.Thread(target=kill_again_and_again)
        killer.start()
        delivered = 0
        with connect(server.address, QUICK) as client:
            for batch in client.stream(endless(batches, enough), ALL):
                assert shown(batch) == expected[delivered % len(batches)]
                delivered += 1
        killer.join()
        assert not faults
        assert delivered % len(batches) == 0
        series = server.scrape()
        assert series["thinrow_process_deaths_total"] == kills
        assert series["thinrow_processes"] == 2
        died = [line for line in server.events() if line["event"] == "worker died"]
        assert [line["end"] for line in died] == [f"status {-signal.SIGKILL}"] * kills
        assert len(processes_reached(server.address)) == 2


def serving(server: Running) -> list[int]:
    return [line["pid"] for line in server.events() if line["event"] == "worker serving"]


def test_a_worker_that_hangs_is_killed_and_started_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And one that only waits, or drains, is not."""
    monkeypatch.setattr(processes, "BEAT_S", 0.1)
    monkeypatch.setattr(processes, "HANG_S", 6.0)
    with Processes(config_of(world, "127.0.0.1:0")) as server:
        workers = server.workers

        def alive() -> list[int]:
            return [worker.process_id for worker in workers if worker.serves]

        first = alive()
        time.sleep(1)
        assert alive() == first
        freeze(first[0])
        until(lambda: len(alive()) == 2 and first[0] not in alive(), 90)
        assert first[1] in alive()
        assert not is_alive(first[0])
        assert "worker killed: it hangs" in caplog.messages
        with connect(server.address, AT_ONCE) as client:
            assert len(client.materialize(pointers_to(days(3)), ALL))


HALF_A_MESSAGE = """
import os, sys, time
from multiprocessing.connection import Connection

connection = Connection(int(sys.argv[1]))
connection.recv()
connection.send(None)
os.write(connection.fileno(), (1000).to_bytes(4, "big") + b"half of it")
time.sleep(600)
"""


def test_a_worker_that_hangs_within_a_message_is_killed(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The parent does not wait for the rest."""
    monkeypatch.setattr(processes, "BEAT_S", 0.1)
    monkeypatch.setattr(processes, "HANG_S", 0.5)
    start = subprocess.Popen
    begun: list[subprocess.Popen[bytes]] = []

    def half(command: list[str], **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
        begun.append(start([sys.executable, "-c", HALF_A_MESSAGE, command[-1]], **options))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", half)
    monkeypatch.setattr(processes, "STOP_S", 0.5)
    with Processes(replace(config_of(world, "127.0.0.1:0"), drain_s=0.5)):
        until(lambda: sum(process.poll() is not None for process in begun) >= 2, 90)
    assert caplog.messages.count("worker killed: it hangs") >= 2


def test_counts_outlive_their_process_and_gauges_do_not(world: World) -> None:
    name = 'thinrow_examples_total{status="OK",tenant=""}'
    with running_server(world.store, *TWO) as server:
        requested = 0
        enough = threading.Event()

        def one_and_wait() -> Iterator[Pointers]:
            yield pointers_to(days(3))
            enough.wait(120)

        def hold() -> None:
            with suppress(Exception), connect(server.address, AT_ONCE) as client:
                list(client.stream(one_and_wait(), ALL))

        holders = [threading.Thread(target=hold) for _ in range(12)]
        for holder in holders:
            holder.start()
            requested += 6
        until(lambda: server.scrape()["thinrow_streams"] == 12)
        until(lambda: server.scrape().get(name) == requested)
        one, other = pids(server)
        freeze(one)
        assert server.scrape()[name] == requested, "a process that does not answer"
        os.kill(one, signal.SIGKILL)
        until(lambda: server.scrape()["thinrow_process_deaths_total"] == 1)
        series = server.scrape()
        assert series[name] == requested
        assert series["thinrow_streams"] < 12
        until(lambda: server.scrape()["thinrow_processes"] == 2)
        # Reported to leave by somebody else, it shows its last numbers first.
        enough.set()
        for holder in holders:
            holder.join()
        before = server.scrape()[name]
        for _ in range(20):
            with connect(server.address, AT_ONCE) as client:
                requested = len(client.materialize(pointers_to(days(3)), ALL))
        os.kill(other, signal.SIGTERM)
        until(lambda: server.scrape()["thinrow_process_deaths_total"] == 2)
        assert server.scrape()[name] == before + 20 * requested


def test_a_worker_that_cannot_start_again(tmp_path: Path) -> None:
    """The other serves on; as soon as it can, it is back."""
    world = built_world(tmp_path)
    current = world.store / "CURRENT"
    with running_server(world.store, *TWO) as server:
        current.rename(world.store / "AWAY")
        os.kill(pids(server)[0], signal.SIGKILL)
        result = server.wait_for("worker cannot serve", worker=0)
        assert str(world.store) in result["reason"]
        assert server.scrape()["thinrow_processes"] == 1
        with connect(server.address, AT_ONCE) as client:
            assert len(client.materialize(pointers_to(days(3)), ALL)) == 6
        (world.store / "AWAY").rename(current)
        until(lambda: server.scrape()["thinrow_processes"] == 2)
        pauses = [line["restart_s"] for line in server.events() if line["event"] == "worker died"]
        assert pauses == sorted(pauses)
        assert pauses[1] == 2 * pauses[0]
        assert server.stop() == 0


def test_workers_end_with_their_parent(world: World) -> None:
    with running_server(world.store, *TWO) as server:
        workers = pids(server)
        assert all(map(is_alive, workers))
        server.process.kill()
        until(lambda: not any(map(is_alive, workers)))
        assert [line["event"] for line in server.events()].count("stopped") == 2
        assert "Traceback" not in server.log.read_text(encoding="utf-8")


# Stopping.


def test_a_call_under_way_is_answered(tmp_path: Path) -> None:
    world = built_world(tmp_path, count=100_000, users=3000)
    pointers = pointers_to(days(3), range(3000))
    with running_server(world.store, *TWO, "--drain", "30s") as server:
        config = ClientConfig(examples_per_request=8000, retry_deadline_s=0)
        answers = []
        with connect(server.address, config) as client:
            caller = threading.Thread(
                target=lambda: answers.append(client.materialize(pointers, ALL))
            )
            caller.start()
            while caller.is_alive() and not server.scrape()["thinrow_in_flight_requests"]:
                time.sleep(0.001)
            workers = pids(server)
            assert server.stop() == 0
            caller.join()
        assert not any(map(is_alive, workers))
    (answer,) = answers
    assert shown(answer) == read_store(world.store, pointers)


def test_ctrl_c_is_for_the_parent(world: World) -> None:
    with running_server(world.store, *TWO) as server:
        workers = pids(server)
        assert {os.getpgid(pid) for pid in workers} == set(workers)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(120) == 0
        assert not any(map(is_alive, workers))


# Ports.


def test_a_second_server_is_refused(world: World) -> None:
    """One or several processes first, one or several second."""
    for first, seconds in (((), (TWO, ())), (TWO, (TWO,))):
        with running_server(world.store, *first, listen=f"{OWN_HOST}:0") as server:
            listen = ("--listen", server.address, "--metrics", "off")
            for second in seconds:
                refused = thinrow("serve", "--store", world.store, *listen, *second)
                assert refused.returncode != 0
                assert f"Cannot listen on {server.address}" in refused.stderr
            assert server.scrape()["thinrow_generation"] == 1
            address = server.address
            assert server.stop() == 0
    # At once, and whatever connections linger.
    with running_server(world.store, *TWO, listen=address) as server:
        assert server.address == address
        assert server.stop() == 0


def test_a_held_port_is_kept_while_no_process_listens(world: World) -> None:
    with held_port("127.0.0.1:0") as address:
        with pytest.raises(UsageError, match="Cannot listen"), held_port(address):
            pass
        config = ServerConfig(store=world.store, listen=address, metrics=None)
        with pytest.raises(UsageError, match="Cannot listen"), Server(config):
            pass
        assert "thinrow-peers" not in {thread.name for thread in threading.enumerate()}
        host, port = address.split(":")
        with socket.socket() as client:
            assert client.connect_ex((host, int(port))) != 0
        shared = ServerConfig(store=world.store, listen=address, metrics=None, processes=2)
        with Server(shared), connect(address, AT_ONCE) as client_of_one:
            assert client_of_one.describe_store().generation == 1
    with Server(config):
        pass


def test_of_servers_that_start_at_once_one_gets_the_port() -> None:
    rivals = 8
    for _ in range(20 * REPEATS):
        with socket.create_server((OWN_HOST, 0)) as free:
            address = f"{OWN_HOST}:{free.getsockname()[1]}"
        begin, end = threading.Barrier(rivals), threading.Barrier(rivals)
        winners: list[str] = []

        def take(
            address: str = address,
            begin: threading.Barrier = begin,
            end: threading.Barrier = end,
            winners: list[str] = winners,
        ) -> None:
            with ExitStack() as stack:
                begin.wait(120)
                with suppress(UsageError):
                    winners.append(stack.enter_context(held_port(address)))
                end.wait(120)

        threads = [threading.Thread(target=take) for _ in range(rivals)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert winners == [address]


@pytest.mark.parametrize("listen", ["localhost:0", "0.0.0.0:0", "[::1]:0"])
def test_names_and_other_families(world: World, listen: str) -> None:
    if "::1" in listen:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    with Processes(config_of(world, listen)) as server:
        host, port = server.address.rsplit(":", 1)
        assert host == listen.rsplit(":", 1)[0]
        with connect(f"localhost:{port}", AT_ONCE) as client:
            assert len(client.materialize(pointers_to(days(3)), ALL)) == 6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((*TWO, "--store", "nowhere"), "nowhere"),
        ((*TWO, "--listen", "no.such.name.invalid:1"), "Cannot listen on no.such.name.invalid:1"),
        (("--processes", 0), "processes is 0"),
        (("--processes", 100_000), "at most 256"),
    ],
)
def test_what_cannot_start_says_why(
    world: World, options: tuple[object, ...], sentence: str
) -> None:
    defaults = ("--store", world.store, "--listen", "127.0.0.1:0", "--metrics", "off")
    refused = thinrow("serve", *defaults, *options)
    assert refused.returncode != 0
    assert refused.stderr.startswith("Error: ")
    assert sentence in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_processes_that_cannot_start_leave_nothing(tmp_path: Path) -> None:
    config = ServerConfig(store=tmp_path, listen="127.0.0.1:0", metrics=None, processes=3)
    with pytest.raises(StoreError, match=str(tmp_path)), Processes(config):
        pass
    assert not [thread for thread in threading.enumerate() if "thinrow-worker" in thread.name]


# Metrics.


class Given(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def exposed(families: Iterable[Metric]) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(Given(list(families)))
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs if "_created" not in name}


def test_merged_metrics_are_those_of_one_server() -> None:
    began_s, (one, other, both) = time.time(), (Metrics(), Metrics(), Metrics())
    rng = random.Random(8)
    for n in range(300):
        for metrics in (both, (one, other)[n % 3 == 0]):
            draw = random.Random(n)
            stage = draw.choice(("plan", "read", f"only {n % 3 == 0}"))
            metrics.stage_seconds.labels(stage).observe(draw.randrange(100) / 64)
            metrics.examples.labels("", draw.choice(("OK", "EXPIRED"))).inc(draw.randrange(9))
            metrics.in_flight.inc()
    one.bind_generation(lambda: 7, lambda: 1000)
    other.bind_generation(lambda: 6, lambda: 2000)
    both.bind_generation(lambda: 6, lambda: 1000)
    parts = [list(metrics.registry.collect()) for metrics in (one, other)]
    rng.shuffle(parts)
    found, right = exposed(merged(parts)), exposed(both.registry.collect())
    age = "thinrow_watermark_age_seconds"
    ages = [found.pop(age), right.pop(age)]
    assert found == right
    again = exposed(merged([merged(parts)]))
    ages.append(again.pop(age))
    assert again == found
    assert all(began_s <= older + 1 <= time.time() for older in ages)
