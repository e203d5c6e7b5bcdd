"""Refusals are delayed, at a bounded pace, and hold no thread; and overload refuses the same."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.worlds import World, built_world, days
from thinrow.access.concurrency_limit import RETRY_AFTER_MS
from thinrow.access.delayed_rejections import HELD_MAX, PACE_MS, DelayedRejections
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

METHOD = "/thinrow.v1.MaterializationService/Materialize"
LIMITED = """
[flood]
calls_max = 1

[steady]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


def test_they_are_reported_one_after_the_other() -> None:
    refusals, reported = DelayedRejections(), list[tuple[int, float]]()
    started_s = time.monotonic()
    for number in range(50):
        refusals.hold(lambda n=number: reported.append((n, time.monotonic() - started_s)))  # type: ignore[misc]
    assert len(refusals) == 50
    while len(reported) < 50:
        time.sleep(0.01)
    refusals.close()
    numbers, times_s = zip(*reported, strict=True)
    assert numbers == tuple(range(50))
    assert times_s[0] >= RETRY_AFTER_MS / 1000
    assert times_s[-1] >= (RETRY_AFTER_MS + 49 * PACE_MS) / 1000


def test_they_are_few_and_none_is_forgotten() -> None:
    refusals, reported = DelayedRejections(), list[int]()
    for number in range(HELD_MAX + 3):
        refusals.hold(lambda n=number: reported.append(n))  # type: ignore[misc]
    assert reported == [HELD_MAX, HELD_MAX + 1, HELD_MAX + 2], (
        "beyond the limit they are sent at once"
    )
    refusals.close()
    assert sorted(reported) == list(range(HELD_MAX + 3))
    refusals.hold(lambda: reported.append(-1))
    assert reported[-1] == -1
    refusals.close()


def send_request(address: str, tenant: str) -> tuple[str, dict[str, str], float]:
    """The code of a raw call, its trailing metadata, and how long it took, in seconds."""
    request = wire.MaterializeRequest(user_ids=[1], end_ts=days(3), tenant=tenant)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        started_s = time.monotonic()
        send_request: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        call = send_request.future(request.SerializeToString(), timeout=60)
        code = call.code()
        metadata = {str(key): str(value) for key, value in call.trailing_metadata() or ()}
        return code.name, metadata, time.monotonic() - started_s


def test_a_flood_is_refused_late_and_others_are_answered(world: World, tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text(LIMITED, encoding="utf-8")
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, tenants=tenants)
    with Server(config) as server, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: send_request(server.address, "flood"), range(200)))
        code, _, _ = send_request(server.address, "steady")
        assert code == "OK"
        refused = [(metadata, took_s) for code, metadata, took_s in answers if code != "OK"]
    for metadata, took_s in refused:
        assert metadata["thinrow-error"] == "TENANT_LIMIT"
        assert metadata["retry-after-ms"] == str(RETRY_AFTER_MS)
        assert took_s >= RETRY_AFTER_MS / 1000
    assert refused, "24 at once and one place"


def test_overload_leaves_health_its_threads(world: World) -> None:
    """More streams at once than there are threads: refused by name, and health still answers."""
    config = ServerConfig(
        store=world.store, listen="127.0.0.1:0", metrics=None, calls_max=2, streams_max=2
    )
    ended = threading.Event()

    request = wire.MaterializeStreamRequest(
        request=wire.MaterializeRequest(user_ids=[1], end_ts=days(3))
    )

    def one() -> Iterator[bytes]:
        yield request.SerializeToString()
        ended.wait(120)

    with Server(config) as server:
        channels = [
            grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(40)
        ]
        stream = METHOD + "Stream"
        calls = []
        for channel in channels:
            begin: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(stream)
            calls.append(begin(one()))
        end_s = time.monotonic() + 60
        # Two get in, and wait.
        while sum(not call.is_active() for call in calls) < len(calls) - 2:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        reported = [call for call in calls if not call.is_active()]
        for call in reported:
            assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert dict(call.trailing_metadata())["thinrow-error"] == "TOO_MANY_CALLS"
        with grpc.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ended.set()
        for channel in channels:
            channel.close()


def test_connections_are_bounded(world: World) -> None:
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, connections_max=3)
    with Server(config) as server:
        channels = [
            grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(4)
        ]
        for channel in channels[:3]:
            grpc.channel_ready_future(channel).result(10)
        with pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channels[3]).result(1)
        channels[0].close()
        grpc.channel_ready_future(channels[3]).result(20)
        for channel in channels:
            channel.close()
