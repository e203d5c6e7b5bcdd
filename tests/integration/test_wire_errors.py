"""Errors on the wire: one table, named in three ways, and retries that gRPC makes by itself."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from support.paths import DOCS
from support.worlds import World, built_world, days, pointers_to, shown
from thinrow import errors
from thinrow.access import grpc_server
from thinrow.access.concurrency_limit import RETRY_AFTER_MS
from thinrow.access.config import UTILITY_THREADS
from thinrow.access.wire_errors import ERRORS, wire_error
from thinrow.client import ClientConfig, Projection, connect
from thinrow.client.grpc_errors import ERRORS_OF_GRPC
from thinrow.errors import (
    AnswerTooLargeError,
    StoreLockedError,
    ThinRowError,
    TooManyCallsError,
    UnavailableError,
)
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.store.history import HistoryPlan
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub
from thinrow.v1.online_pb2_grpc import OnlineServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE_CONFIG = DOCS / "reference" / "service-config.json"
WAIT_S = 60
REQUEST = wire.MaterializeRequest(user_ids=[1], end_ts=days(3))
RETRYING = [
    ("grpc.service_config", SERVICE_CONFIG.read_text(encoding="utf-8")),
    ("grpc.enable_retries", 1),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


def config(world: World, **options: int) -> ServerConfig:
    return ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, **options)  # type: ignore[arg-type]


def stub_of(channel: grpc.Channel) -> MaterializationServiceStub:
    return MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]


def details(error: grpc.RpcError) -> tuple[ErrorInfo, RetryInfo | None, dict[str, Any]]:
    """Returns the details of an error, after checking that all its parts agree."""
    assert isinstance(error, grpc.Call)
    metadata = dict(error.trailing_metadata())
    status = Status.FromString(metadata["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info, retry = ErrorInfo(), None
    assert status.details[0].Unpack(info)
    if len(status.details) > 1:
        retry = RetryInfo()
        assert status.details[1].Unpack(retry)
    assert info.domain == "thinrow.v1"
    assert info.reason == metadata["thinrow-error"]
    assert metadata.get("retry-after-ms") == (
        None if retry is None else str(retry.retry_delay.ToMilliseconds())
    )
    return info, retry, metadata


# The table.


def test_every_exception_has_a_row_and_a_name() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, ThinRowError):
            assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", kind.name)
            assert wire_error(kind("Something happened.")) in ERRORS
    assert len({row.reason for row in ERRORS}) == len(ERRORS)
    assert wire_error(StoreLockedError("x")).reason == "STORE_FAILED"


def test_the_documented_table_is_the_table_in_code() -> None:
    text = (DOCS / "operations/operations.md").read_text(encoding="utf-8")
    section = text.split("## Errors of a whole call")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \| (yes|no) \|", section, re.MULTILINE)
    assert rows == [(row.reason, row.code.name, "yes" if row.retryable else "no") for row in ERRORS]


def test_errors_of_grpc_itself_are_documented_as_they_come(world: World) -> None:
    text = (DOCS / "operations/operations.md").read_text(encoding="utf-8")
    section = text.split("### Errors without a name")[1].split("\n## ")[0]
    for known in ERRORS_OF_GRPC:
        assert known.removeprefix("CLIENT: ") in section
    with (
        Server(config(world, request_bytes_max=1000)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = (
            (stub_of(channel).Materialize, wire.MaterializeRequest(user_ids=[1] * 1000)),
            (
                OnlineServiceStub(channel).DescribeTier,  # type: ignore[no-untyped-call]
                online_pb2.DescribeTierRequest(),
            ),
        )
        for call, request in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call(request)
            error: Any = caught.value
            assert not error.trailing_metadata()
            message = re.sub(r"^SERVER: | \(.*", "", error.details())
            assert re.search(rf"^\| .*{error.code().name}.* \| .*`{message}", section, re.MULTILINE)


# What a failed call carries.


def test_an_error_that_stays_says_so(world: World) -> None:
    with Server(config(world)) as server, grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            stub_of(channel).Materialize(wire.MaterializeRequest(user_ids=[1]))
        info, retry, metadata = details(caught.value)
        assert (info.reason, dict(info.metadata)) == ("INVALID_REQUEST", {"retryable": "false"})
        assert retry is None
        assert metadata["grpc-retry-pushback-ms"] == "-1"


def test_online_errors_carry_the_same(world: World, tmp_path: Path) -> None:
    options = OnlineConfig(
        store=world.store, data=tmp_path, listen="127.0.0.1:0", metrics=None, streams_max=1
    )
    with OnlineServer(options) as server, grpc.insecure_channel(server.address) as channel:
        stub = OnlineServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Snapshot(online_pb2.SnapshotRequest(max_length=-1))
        assert details(caught.value)[0].reason == "INVALID_REQUEST"
        ended = threading.Event()

        def messages() -> Iterator[online_pb2.SnapshotStreamRequest]:
            yield online_pb2.SnapshotStreamRequest()
            ended.wait(WAIT_S)

        held = stub.SnapshotStream(messages())
        next(held)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.SnapshotStream(iter(())))
        info, retry, _ = details(caught.value)
        assert info.reason == "TOO_MANY_CALLS"
        assert retry is not None and retry.retry_delay.ToMilliseconds() == RETRY_AFTER_MS
        ended.set()


def test_a_long_message_fits_the_headers(world: World) -> None:
    """Each letter of it takes twelve bytes as gRPC writes it."""
    with Server(config(world)) as server, grpc.insecure_channel(server.address) as channel:
        request = wire.MaterializeRequest(projection=wire.Projection(traits=["\U0001f600" * 9000]))
        with pytest.raises(grpc.RpcError, match="There is no trait") as caught:
            stub_of(channel).Materialize(request)
        assert details(caught.value)[0].reason == "INVALID_REQUEST"


# The published service config.


def test_every_method_has_its_entry() -> None:
    methods = [
        (entry["service"], entry["method"])
        for part in json.loads(SERVICE_CONFIG.read_text(encoding="utf-8"))["methodConfig"]
        for entry in part["name"]
    ]
    files = (wire.DESCRIPTOR, online_pb2.DESCRIPTOR)
    services = [service for file in files for service in file.services_by_name.values()]
    assert sorted(methods) == sorted((s.full_name, m.name) for s in services for m in s.methods)


def test_grpc_retries_a_refusal_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, released = threading.Event(), threading.Event()
    read = HistoryPlan.read

    def held(plan: HistoryPlan, *limits: Any) -> int | None:  # noqa: ANN401
        entered.set()
        assert released.wait(WAIT_S)
        return read(plan, *limits)

    monkeypatch.setattr(HistoryPlan, "read", held)
    with ExitStack() as stack:
        server = stack.enter_context(Server(config(world, calls_max=1)))
        failed = server.metrics.failed

        def counted(error: str, tenant: str) -> None:
            failed(error, tenant)
            released.set()

        monkeypatch.setattr(server.metrics, "failed", counted)
        stack.callback(released.set)
        one, other = (
            stub_of(stack.enter_context(grpc.insecure_channel(server.address, RETRYING)))
            for _ in range(2)
        )
        first = one.Materialize.future(REQUEST)
        assert entered.wait(WAIT_S)
        assert other.Materialize(REQUEST, timeout=WAIT_S).generation == 1
        assert first.result().generation == 1
        assert server.metrics.errors.labels("TOO_MANY_CALLS")._value.get() >= 1


def test_grpc_does_not_retry_what_stays_refused(world: World) -> None:
    """The code is that of a refusal for now; the pushback shows them apart."""
    with (
        Server(config(world, response_bytes_max=100)) as server,
        grpc.insecure_channel(server.address, RETRYING) as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub_of(channel).Materialize(REQUEST, timeout=WAIT_S)
        info, _, metadata = details(caught.value)
        assert info.reason == "ANSWER_TOO_LARGE"
        assert metadata["grpc-retry-pushback-ms"] == "-1"
        assert server.metrics.errors.labels("ANSWER_TOO_LARGE")._value.get() == 1


class Cancelling(grpc.GenericRpcHandler):
    """Cancels the first call, as gRPC's server does with calls that it has not looked at."""

    def __init__(self) -> None:
        self.calls = 0

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def behave(__: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls += 1
            if self.calls == 1:
                context.cancel()
            return wire.MaterializeResponse(generation=1).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(behave)


@pytest.fixture
def cancelling() -> Iterator[tuple[Cancelling, str]]:
    handler = Cancelling()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(0)


def test_grpc_retries_a_call_that_its_server_cancelled(cancelling: tuple[Cancelling, str]) -> None:
    handler, address = cancelling
    with grpc.insecure_channel(address, RETRYING) as channel:
        assert stub_of(channel).Materialize(REQUEST, timeout=WAIT_S).generation == 1
    assert handler.calls == 2


# The client of this project.


def test_a_call_that_its_server_cancelled_may_be_made_again(
    cancelling: tuple[Cancelling, str],
) -> None:
    handler, address = cancelling
    with (
        connect(address, ClientConfig(retry_deadline_s=0)) as client,
        pytest.raises(UnavailableError),
    ):
        client.materialize(pointers_to(days(3)), Projection())
    assert handler.calls == 1


def test_a_refusal_by_grpc_itself_may_be_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond its limit of concurrent calls gRPC's server gives no name and no hint."""
    options = config(world)
    threads = options.call_threads
    monkeypatch.setattr(grpc_server, "HELD_MAX", 1 - threads - UTILITY_THREADS)
    ended = threading.Event()

    def messages() -> Iterator[wire.MaterializeStreamRequest]:
        yield wire.MaterializeStreamRequest(request=REQUEST)
        ended.wait(WAIT_S)

    with Server(options) as server, grpc.insecure_channel(server.address) as channel:
        held = stub_of(channel).MaterializeStream(messages())
        next(held)
        with (
            connect(server.address, ClientConfig(retry_deadline_s=0)) as client,
            pytest.raises(TooManyCallsError, match="Concurrent RPC limit") as caught,
        ):
            client.materialize(pointers_to(days(3)), Projection())
        assert caught.value.retry_after_ms == 0
        ended.set()


def test_an_answer_beyond_the_clients_own_limit_comes_in_parts(world: World) -> None:
    pointers, projection = pointers_to(days(3)), Projection()
    with Server(config(world)) as server:
        with grpc.insecure_channel(server.address) as channel:
            request = wire.MaterializeRequest(user_ids=pointers.user_ids, end_ts=pointers.end_ts)
            limit_bytes = stub_of(channel).Materialize(request).ByteSize() - 1
        with connect(server.address) as client:
            whole = client.materialize(pointers, projection)
        with connect(server.address, ClientConfig(response_bytes_max=limit_bytes)) as client:
            parts = client.materialize(pointers, projection)
        assert parts.offsets.tolist() == whole.offsets.tolist()
        assert shown(parts) == shown(whole)
        with (
            connect(server.address, ClientConfig(response_bytes_max=10)) as client,
            pytest.raises(AnswerTooLargeError, match="larger than max"),
        ):
            client.materialize(pointers, projection)
