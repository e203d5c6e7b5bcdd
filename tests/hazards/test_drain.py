"""Drain: idle streams end at once, work under way finishes, connections get GOAWAY early."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.http2 import http2
from support.idle_streams import BATCH, Idle, check_unavailable, streams_of
from support.worlds import START_TS, World, built_world, running_online, running_server
from thinrow.access.admission import CallAdmission
from thinrow.client.online import connect_online
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.database import WriteAheadLog
from thinrow.online.server import OnlineServer
from thinrow.store.history import HistoryPlan
from thinrow.v1 import online_pb2
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from pathlib import Path

LONG_S = 3600.0
"""A drain that no test waits for: what holds it up makes the test fail."""
UTILITY_METHODS = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def materialization(world: World) -> Server:
    return Server(
        ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, drain_s=LONG_S)
    )


@pytest.fixture
def online(world: World, tmp_path: Path) -> OnlineServer:
    return OnlineServer(
        OnlineConfig(
            store=world.store,
            data=tmp_path / "online",
            listen="127.0.0.1:0",
            metrics=None,
            drain_s=LONG_S,
        )
    )


def check_idle_streams_end(server: Server | OnlineServer, service: str) -> None:
    with ExitStack() as stack:
        running = ExitStack()
        stack.callback(running.close)
        running.enter_context(server)
        address = server.address
        channel = stack.enter_context(grpc.insecure_channel(address))
        idle = [
            Idle(method, [message] * answered)
            for method, message in streams_of(channel, service).values()
            for answered in (0, 2)
        ]
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running.close()
        for stream in idle:
            stream.check_ended_by_drain()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_idle_streams_of_the_materialization_service_end_at_once(materialization: Server) -> None:
    check_idle_streams_end(materialization, "materialization")


def test_idle_streams_of_the_online_service_end_at_once(online: OnlineServer) -> None:
    check_idle_streams_end(online, "online")


def test_a_call_without_its_request_ends_at_once(materialization: Server) -> None:
    """Half open: the headers came, the message did not."""
    with ExitStack() as stack:
        running = ExitStack()
        stack.callback(running.close)
        address = running.enter_context(materialization).address
        connection = stack.enter_context(http2(address))
        connection.open_call("/thinrow.v1.MaterializationService/Materialize")
        assert connection.ping()
        closing = ThreadPoolExecutor(1).submit(running.close)
        while not connection.closed:
            connection.receive()
        assert connection.goaways
        closing.result()


@pytest.mark.server
@pytest.mark.parametrize("kind", ["materialization", "online"])
def test_calls_that_open_while_the_server_drains_end_at_once(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client with a retry policy opens its idle stream again on the connection that it has."""
    server: Server | OnlineServer = request.getfixturevalue(kind)
    methods = {
        "materialization": (
            "/thinrow.v1.MaterializationService/Materialize",
            "/thinrow.v1.MaterializationService/MaterializeStream",
        ),
        "online": (
            "/thinrow.v1.OnlineService/Snapshot",
            "/thinrow.v1.OnlineService/SnapshotStream",
            "/thinrow.v1.OnlineService/AppendEvents",
            "/thinrow.v1.OnlineService/ExportEvents",
        ),
    }[kind]
    drain, opened = CallAdmission.drain, threading.Event()
    with ExitStack() as stack:
        running = ExitStack()
        stack.callback(running.close)
        running.enter_context(server)
        address = server.address
        connection = stack.enter_context(http2(address))
        assert connection.ping()

        def drain_and_open(admission: CallAdmission) -> None:
            drain(admission)
            for method in (*methods, *UTILITY_METHODS):
                connection.open_call(method)
            assert connection.ping()
            opened.set()

        monkeypatch.setattr(CallAdmission, "drain", drain_and_open)
        closing = ThreadPoolExecutor(1).submit(running.close)
        assert opened.wait(LONG_S)
        while not connection.closed:
            connection.receive()
        assert connection.goaways
        closing.result()


def test_work_under_way_finishes_after_goaway(
    materialization: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, released = threading.Event(), threading.Event()
    read = HistoryPlan.read

    def held(plan: HistoryPlan, *limits: Any) -> int | None:  # noqa: ANN401
        entered.set()
        assert released.wait(LONG_S)
        return read(plan, *limits)

    with ExitStack() as stack:
        running = ExitStack()
        stack.callback(running.close)
        stack.callback(released.set)
        address = running.enter_context(materialization).address
        channel = stack.enter_context(grpc.insecure_channel(address))
        stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
        expected = stub.Materialize(BATCH.request)
        other = stack.enter_context(http2(address))
        assert other.ping()
        monkeypatch.setattr(HistoryPlan, "read", held)
        single = stub.Materialize.future(BATCH.request)
        assert entered.wait(LONG_S)
        entered.clear()
        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        outgoing.put(BATCH)
        stream = stub.MaterializeStream(iter(outgoing.get, None))
        assert entered.wait(LONG_S)
        closing = ThreadPoolExecutor(1).submit(running.close)
        while not other.goaways:
            other.receive()
        assert not single.done() and not closing.done()
        # The second half of a graceful GOAWAY waits until its ping is answered.
        while not other.closed:
            other.receive()
        assert not single.done() and not closing.done()
        released.set()
        assert single.result().columns == expected.columns
        assert next(stream).response.columns == expected.columns
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        outgoing.put(None)
        check_unavailable(caught.value)
        closing.result()


def test_appends_read_before_the_drain_are_acknowledged(
    online: OnlineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, released = threading.Event(), threading.Event()
    sync = WriteAheadLog.sync

    def held(log: WriteAheadLog) -> None:
        syncing.set()
        assert released.wait(LONG_S)
        sync(log)

    with ExitStack() as stack:
        running = ExitStack()
        stack.callback(running.close)
        stack.callback(released.set)
        address = running.enter_context(online).address
        client = stack.enter_context(connect_online(address))
        traits = {"item_id": [1], "brand": ["a"], "price": [1.0]}
        events = client.events([1], [START_TS], traits, [7])
        client.append([1], [START_TS], traits, [6])
        monkeypatch.setattr(WriteAheadLog, "sync", held)
        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stream = client.stub.AppendEvents(iter(outgoing.get, None))
        outgoing.put(online_pb2.AppendEventsRequest(cursor=1, events=events))
        assert syncing.wait(LONG_S)
        watch = health_pb2_grpc.HealthStub(
            stack.enter_context(grpc.insecure_channel(address))
        ).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        closing = ThreadPoolExecutor(1).submit(running.close)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        released.set()
        answer = next(stream)
        assert (answer.cursor, answer.appended) == (1, 1)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        outgoing.put(None)
        check_unavailable(caught.value)
        closing.result()


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_idle_streams_of_every_process(world: World, processes: int) -> None:
    with (
        ExitStack() as channels,
        running_server(world.store, "--processes", processes, "--drain", "1h") as server,
    ):
        idle, reached = [], set[str]()
        while len(reached) < processes:
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = channels.enter_context(grpc.insecure_channel(server.address, options))
            stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
            idle.append(Idle(stub.MaterializeStream, [BATCH]))
            reached.add(dict(idle[-1].call.initial_metadata()).get("thinrow-process", ""))
        assert server.stop() == 0
        for stream in idle:
            stream.check_ended_by_drain()
        assert not [line for line in server.events() if line["event"].startswith("worker killed")]


def test_a_peer_that_answers_no_ping_is_cut_off_after_the_drain(world: World) -> None:
    with (
        running_server(world.store, "--drain", "100ms") as server,
        http2(server.address) as connection,
    ):
        connection.open_call("/thinrow.v1.MaterializationService/MaterializeStream")
        assert connection.ping()
        assert server.stop() == 0
        assert [line["event"] for line in server.events()][-2:] == ["draining", "stopped"]


def test_sigterm_ends_idle_streams_of_the_online_service(world: World, tmp_path: Path) -> None:
    with (
        running_online(world, "--data", tmp_path / "online", "--drain", "1h") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        idle = [
            Idle(method, [message]) for method, message in streams_of(channel, "online").values()
        ]
        assert server.stop() == 0
        for stream in idle:
            stream.check_ended_by_drain()
