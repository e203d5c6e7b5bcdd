"""A server under load: deadlines, cancellation, refusals, and numbers that add up after it all."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pyarrow as pa
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import Counter, Gauge, Histogram
from support.worlds import (
    ALL,
    REPEATS,
    World,
    as_of,
    built_world,
    days,
    new_world,
    pointers_to,
    read_store,
    running_server,
    shown,
)
from thinrow.access.fair_scheduler import FairScheduler
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.errors import AnswerTooLargeError, DeadlineError, RequestError, TooManyCallsError
from thinrow.materialization.metrics import Metrics
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.worlds import Running

AT_ONCE = ClientConfig(retry_deadline_s=0, examples_per_request=8192)
SLOW = wire.MaterializeRequest(user_ids=range(1, 4001), end_ts=days(3) * 4000)
"""A request that takes a while: every user's history."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"), count=120_000, users=4000)


@pytest.fixture(scope="module")
def roomy(world: World) -> Iterator[Running]:
    """A server with room for calls that were given up and still end."""
    with running_server(world.store) as server:
        yield server


@pytest.fixture(scope="module")
def tight(world: World) -> Iterator[Running]:
    """A server of narrow limits."""
    limits = ("--calls-max", 2, "--streams-max", 2)
    with running_server(world.store, *limits) as server:
        yield server


def settled(server: Running) -> dict[str, float]:
    """The metrics, once nothing is in flight."""
    end_s = time.monotonic() + 60
    while True:
        series = server.scrape()
        if not series["thinrow_in_flight_requests"] and not series["thinrow_streams"]:
            return series
        assert time.monotonic() < end_s, series
        time.sleep(0.02)


def check_serves(server: Running, world: World) -> None:
    settled(server)
    with connect(server.address, AT_ONCE) as client:
        batch = client.materialize(pointers_to(days(3)), ALL)
    assert shown(batch) == read_store(world.store, pointers_to(days(3)))


def health(server: Running) -> int:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status)


def test_a_deadline_too_short(roomy: Running, world: World) -> None:
    pointers = Pointers(user_ids=list(SLOW.user_ids), end_ts=list(SLOW.end_ts))
    with connect(roomy.address, AT_ONCE) as client:
        client.describe_store()  # connected: from here on only the answer takes time
        for deadline_s in (0.000_001, 0.001, 0.01):
            with pytest.raises(DeadlineError):
                client.materialize(pointers, ALL, deadline_s=deadline_s)
        with pytest.raises(DeadlineError):
            list(client.stream([pointers], ALL, deadline_s=0.001))
    check_serves(roomy, world)


def test_callers_who_leave(roomy: Running, world: World) -> None:
    with grpc.insecure_channel(roomy.address) as channel:
        stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
        for pause_s in (0, 0.005, 0.05):
            call = stub.Materialize.future(SLOW)
            time.sleep(pause_s)
            call.cancel()
            requests = iter([wire.MaterializeStreamRequest(cursor=n, request=SLOW) for n in (1, 2)])
            stream = stub.MaterializeStream(requests)
            time.sleep(pause_s)
            stream.cancel()
    # A channel that goes away with calls on it, too.
    channel = grpc.insecure_channel(roomy.address)
    stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
    stub.Materialize.future(SLOW)
    channel.close()
    check_serves(roomy, world)
    assert not [line for line in roomy.events() if line["event"] == "call failed"]


def test_too_many_streams(tight: Running, world: World) -> None:
    with ExitStack() as stack:
        enough = threading.Event()
        stack.callback(enough.set)

        def one_and_wait() -> Iterator[Pointers]:
            yield pointers_to(days(3))
            enough.wait(120)

        def hold() -> None:
            with connect(tight.address, AT_ONCE) as client:
                list(client.stream(one_and_wait(), ALL))

        holders = [threading.Thread(target=hold) for _ in range(2)]
        for holder in holders:
            holder.start()
        while tight.scrape()["thinrow_streams"] < 2:
            time.sleep(0.01)
        with connect(tight.address, AT_ONCE) as client:
            with pytest.raises(TooManyCallsError, match="streams_max"):
                list(client.stream([pointers_to(days(3))], ALL))
            # Single calls have a limit of their own.
            assert len(client.materialize(pointers_to(days(3)), ALL)) == 6
        assert health(tight) == health_pb2.HealthCheckResponse.SERVING
        enough.set()
        for holder in holders:
            holder.join()
    check_serves(tight, world)


def test_too_many_calls(tight: Running, world: World) -> None:
    """More callers than are let in: each is answered rightly or refused by name, none hangs."""
    pointers = Pointers(user_ids=list(SLOW.user_ids), end_ts=list(SLOW.end_ts))
    right = read_store(world.store, pointers, Projection(traits=("event_ts",)))
    errors = []
    answers = []

    def send_request() -> None:
        with connect(tight.address, AT_ONCE) as client:
            for _ in range(4):
                try:
                    answers.append(client.materialize(pointers, Projection(traits=("event_ts",))))
                except TooManyCallsError as error:
                    errors.append(str(error))

    callers = [threading.Thread(target=send_request) for _ in range(8)]
    for caller in callers:
        caller.start()
    while any(caller.is_alive() for caller in callers):
        assert health(tight) == health_pb2.HealthCheckResponse.SERVING
    assert len(answers) + len(errors) == 32
    assert answers
    assert errors
    assert {shown(answer) == right for answer in answers} == {True}
    assert all("calls_max" in error and error.endswith(".") for error in errors)
    check_serves(tight, world)


def names_of(metrics: Metrics) -> set[str]:
    """Series as Prometheus names them."""
    suffixes = {Counter: ["_total"], Gauge: [""], Histogram: ["_bucket", "_count", "_sum"]}
    return {
        f"{series._name}{suffix}"
        for series in vars(metrics).values()
        for kind, ends in suffixes.items()
        if isinstance(series, kind)
        for suffix in ends
    }


def test_numbers_add_up(world: World) -> None:
    """Known traffic, counted: a server of its own."""
    began_s = time.time()
    tenants = world.folder / "tenants.toml"
    tenants.write_text('[ranker]\nsequence_length = 3\ntraits = ["brand"]\n', encoding="utf-8")
    with running_server(world.store, "--tenants", tenants) as server:
        with connect(server.address, AT_ONCE) as client:
            whole = client.materialize(pointers_to(days(3)), ALL)
            short = client.materialize(pointers_to(days(3)), "ranker")
            late = Pointers(user_ids=[1, 2, 3], end_ts=days(3, 4, 3), digests=[0, 0, 1])
            mixed = client.materialize(late, ALL)
            streamed = list(client.stream([pointers_to(days(3))] * 5, ALL))
            with pytest.raises(RequestError):
                client.materialize(late, Projection(traits=("colour",)))
            with pytest.raises(RequestError):
                client.materialize(late, "nobody")
        series = settled(server)
        held = {name.split("{")[0] for name in series}
        assert names_of(Metrics()) <= held
        counted = {
            (tenant, status): series.get(
                f'thinrow_examples_total{{status="{status}",tenant="{tenant}"}}'
            )
            for tenant in ("", "ranker")
            for status in ("OK", "NOT_READY", "DIGEST_MISMATCH", "EXPIRED")
        }
        assert {key: count for key, count in counted.items() if count} == {
            ("", "OK"): 6 + 1 + 5 * 6,
            ("ranker", "OK"): 6,
            ("", "NOT_READY"): 1,
            ("", "DIGEST_MISMATCH"): 1,
        }
        events = sum(int(batch.offsets[-1]) for batch in (whole, short, mixed, *streamed))
        assert series["thinrow_events_total"] == events
        assert series['thinrow_errors_total{name="INVALID_REQUEST"}'] == 1
        assert series['thinrow_errors_total{name="UNKNOWN_TENANT"}'] == 1
        for stage in ("wait", "plan", "read", "assemble"):
            assert series[f'thinrow_stage_seconds_count{{stage="{stage}"}}'] == 8, stage
        assert 0 < series["thinrow_sent_bytes_total"] < series["thinrow_read_bytes_total"] * 10
        assert series["thinrow_generation"] == 1
        age_s = series["thinrow_watermark_age_seconds"]
        assert began_s <= age_s + as_of(3) / 1000 <= time.time()
        assert series["thinrow_generation_open_failures_total"] == 0
        assert server.stop() == 0


def test_the_oldest_few_of_a_long_history_fit_a_small_budget(tmp_path: Path) -> None:
    long = built_world(tmp_path, count=60_000, users=1)
    pointers = pointers_to(days(3), users=(1,))
    oldest = Projection(5, truncation="head")
    with (
        running_server(long.store, "--work-bytes-max", 1 << 18) as server,
        connect(server.address, AT_ONCE) as client,
    ):
        batch = client.materialize(pointers, oldest)
        shown_by_inspect = client.inspect(1, 0, oldest).events
        with pytest.raises(AnswerTooLargeError, match="work_bytes_max"):
            client.materialize(pointers, ALL)
    assert shown(batch) == read_store(long.store, pointers, oldest)
    every = read_store(long.store, pointers)[0][1]["event_ts"]
    assert every is not None
    assert [event.event_ts for event in shown_by_inspect] == every[:5]


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    budget, stop = FairScheduler(100), threading.Event()

    def nibble() -> None:
        while not stop.is_set():
            with budget.hold(40, None):
                time.sleep(0.001)

    threads = [threading.Thread(target=nibble) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with budget.hold(100, timeout_s=20):
            pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_who_gives_up_waiting_leaves_the_queue() -> None:
    budget = FairScheduler(100)
    with budget.hold(60, None):
        with pytest.raises(DeadlineError), budget.hold(60, timeout_s=0.05):
            pass
        with budget.hold(40, timeout_s=0.05):
            pass
    with pytest.raises(AnswerTooLargeError), budget.hold(101, None):
        pass


def test_what_is_held_grows_only_while_no_one_waits() -> None:
    budget, granted = FairScheduler(100), threading.Event()

    def wait_for_most() -> None:
        with budget.hold(95, 60, "other"):
            granted.set()

    waiter = threading.Thread(target=wait_for_most)
    with budget.hold(40, None, "own", 70) as extend:
        assert not extend(61), "more than is free"
        assert not extend(31), "more than the tenant may hold"
        assert extend(20)
        waiter.start()
        while not budget.waiting:
            time.sleep(0.001)
        assert not extend(5), "another request waits"
        assert not granted.is_set()
    assert granted.wait(60), "what was added is given back, too"
    waiter.join()


def test_a_long_message_does_not_take_the_errors_place(tmp_path: Path) -> None:
    names = [f"trait_with_a_name_of_some_length_{number}" for number in range(800)]
    wide = new_world(tmp_path, "[group]\n" + "".join(f'{name} = "int8"\n' for name in names))
    columns = {name: pa.array([1], pa.int8()) for name in names}
    wide.compact(pa.table({"user_id": [1], "event_ts": days(1), **columns}), 3)
    with running_server(wide.store) as server, connect(server.address, AT_ONCE) as client:
        for requested in ("nope", "n" * 10_000, "\u00e9" * 5_000):
            with pytest.raises(RequestError, match="There is no trait"):
                client.materialize(pointers_to(days(3)), Projection(traits=(requested,)))


def test_no_leak_over_thousands_of_batches(world: World) -> None:
    batches = [pointers_to(days(3), range(n, n + 4)) for n in range(1, 801, 4)]
    with running_server(world.store) as server, connect(server.address, AT_ONCE) as client:

        def traffic(rounds: int) -> None:
            for _ in range(rounds):
                for batch in client.stream(batches, ALL):
                    assert len(batch) == 4
                for pointers in batches[:100]:
                    client.materialize(pointers, Projection(5))
                with pytest.raises(RequestError):
                    client.materialize(batches[0], "nobody")

        traffic(2)  # caches, pools and arenas fill
        before, threads = server.resident_bytes(), server.threads()
        traffic(7 * REPEATS)
        grown = server.resident_bytes() - before
        assert grown < 6 << 20, f"{grown:,} bytes more after {2100 * REPEATS} batches"
        assert server.threads() <= threads + 2
        assert settled(server)["thinrow_in_flight_requests"] == 0
