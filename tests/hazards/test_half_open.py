"""Calls that wait for their peers take nothing from others: half open, dripping, idle, unread."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest
from support.half_open import (
    CHECK,
    DEADLINE_S,
    GREEDY,
    ONLINE,
    REFLECTION,
    STEADY,
    WATCH,
    check_answers,
    running,
    soon,
)
from support.raw_http2 import Connection
from support.worlds import World, built_world, days
from thinrow.access import admission as admissions
from thinrow.access.config import OPENING_MAX, UTILITY_CALLS_MAX
from thinrow.access.peers import PeerPlaces
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    Begin = grpc.StreamStreamMultiCallable[bytes, bytes]
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


KINDS = pytest.mark.parametrize("kind", ["serve", "online"])


@KINDS
@pytest.mark.parametrize("method", [CHECK, WATCH, REFLECTION, "unary", "stream"])
@pytest.mark.parametrize("connections", [1, 5])
def test_half_open_calls_lock_no_one_out(
    kind: str, method: str, connections: int, world: World, tmp_path: Path
) -> None:
    with running(kind, world, tmp_path) as server, ExitStack() as stack:
        method = {"unary": server.unary, "stream": server.stream}.get(method, method)
        for _ in range(connections):
            hostile = stack.enter_context(Connection(server.address))
            for _ in range(150):
                number = hostile.open(method)
                hostile.send(number, bytes(100), last=7)  # and a part of a message
        for _ in range(3):
            check_answers(server)


@KINDS
def test_half_open_calls_of_a_tenant_are_its_own(kind: str, world: World, tmp_path: Path) -> None:
    with running(kind, world, tmp_path, tokens=True) as server, ExitStack() as stack:
        for _ in range(3):
            hostile = stack.enter_context(Connection(server.address))
            for _ in range(50):
                hostile.open(server.stream, GREEDY)
                hostile.open(server.unary, GREEDY)
                hostile.open(server.stream)  # and without a token
        soon(lambda: server.metrics("thinrow_tenant_streams", {"tenant": "greedy"}) == 4)  # type: ignore[call-arg]
        for _ in range(3):
            check_answers(server, STEADY)


def outcome(call: grpc.Call) -> tuple[str, str]:
    """The code of a call that ends, and the error's name."""
    code = call.code()
    metadata = {str(key): str(value) for key, value in call.trailing_metadata() or ()}
    return code.name, metadata.get("thinrow-error", "")


ENDED = threading.Event()


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """Releases the threads that wait to send."""
    ENDED.clear()
    yield
    ENDED.set()


def never() -> Iterator[bytes]:
    """Requests of which none is sent."""
    ENDED.wait(DEADLINE_S)
    yield from ()


@KINDS
def test_a_first_request_is_waited_for_so_long(kind: str, world: World, tmp_path: Path) -> None:
    with (
        running(kind, world, tmp_path, first_request_s=0.3) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        begin: Begin = channel.stream_stream(server.stream)
        call = begin(never())
        assert outcome(call) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
        check_answers(server)


def once(message: bytes) -> Iterator[bytes]:
    yield message
    yield from never()


@KINDS
def test_an_idle_stream_ends_and_says_so(kind: str, world: World, tmp_path: Path) -> None:
    with (
        running(kind, world, tmp_path, idle_s=0.3) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        request = wire.MaterializeRequest(user_ids=[1], end_ts=days(3))
        message = wire.MaterializeStreamRequest(request=request).SerializeToString()
        method = server.stream if kind == "serve" else ONLINE + "SnapshotStream"
        if kind == "online":
            message = online_pb2.SnapshotStreamRequest().SerializeToString() or b""
        begin: Begin = channel.stream_stream(method)
        call = begin(once(message))
        assert next(iter(call)) is not None
        assert outcome(call) == ("UNAVAILABLE", "UNAVAILABLE")


def test_an_idle_stream_gives_its_place_to_a_busy_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places(limit: int, name: str, **settings: float) -> PeerPlaces:
        return PeerPlaces(limit, name, **{**settings, "idle_s_min": 0.05})  # type: ignore[arg-type]

    monkeypatch.setattr(admissions, "PeerPlaces", places)
    request = wire.MaterializeRequest(user_ids=[1], end_ts=days(3))
    message = wire.MaterializeStreamRequest(request=request).SerializeToString()
    with running("serve", world, tmp_path) as server, ExitStack() as stack:
        calls = []
        for _ in range(8 + 3):
            channel = stack.enter_context(
                grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            end_s = time.monotonic() + DEADLINE_S
            begin: Begin = channel.stream_stream(server.stream)
            while True:  # refused until the first of those before has been idle for long enough
                call = begin(once(message))
                try:
                    assert next(iter(call))
                    break
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    assert time.monotonic() < end_s
            calls.append(call)
        ended = [call for call in calls if not call.is_active()]
        soon(lambda: sum(not call.is_active() for call in calls) == 3)
        assert {outcome(call) for call in calls if not call.is_active()} == {
            ("UNAVAILABLE", "UNAVAILABLE")
        }
        assert len(ended) <= 3


@KINDS
def test_peers_that_read_nothing_do_not_hold_up_health(
    kind: str, world: World, tmp_path: Path
) -> None:
    with running(kind, world, tmp_path) as server, ExitStack() as stack:
        for method in (CHECK, WATCH):
            for _ in range(3):
                hostile = stack.enter_context(Connection(server.address, window_bytes=0))
                for _ in range(UTILITY_CALLS_MAX):
                    hostile.send(hostile.open(method), b"")
        for _ in range(3):
            check_answers(server)


def test_a_drain_waits_for_no_half_open_call(world: World, tmp_path: Path) -> None:
    """It would take an hour for one that never ends."""
    with (
        ExitStack() as stack,
        running("serve", world, tmp_path, drain_s=3600, first_request_s=1) as server,
    ):
        hostile = stack.enter_context(Connection(server.address))
        for method in (server.stream, server.unary, CHECK, REFLECTION):
            hostile.open(method)
        hostile.send(hostile.open(WATCH), b"")
        check_answers(server)


def test_more_may_open_than_there_are_places(world: World, tmp_path: Path) -> None:
    """Half-open calls below the bound are left alone."""
    with running("serve", world, tmp_path) as server, Connection(server.address) as hostile:
        for _ in range(min(OPENING_MAX, 16)):
            hostile.open(server.unary)
        for _ in range(20):
            check_answers(server)
        assert not server.metrics("thinrow_errors_total", {"name": "TOO_MANY_CALLS"})  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("listen", "tokens"), [("0.0.0.0:0", False), ("127.0.0.1:0", False), ("0.0.0.0:0", True)]
)
def test_it_warns_that_everyone_is_served(
    listen: str, tokens: bool, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running("serve", world, tmp_path, tokens=tokens, listen=listen):  # type: ignore[arg-type]
        warned = any("everyone who reaches" in record.message for record in caplog.records)
    assert warned == (listen == "0.0.0.0:0" and not tokens)
