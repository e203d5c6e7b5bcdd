"""The bound on a server's memory, worked out from its limits, holds when all of them are used."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from support.worlds import World, built_world, days, running_server
from thinrow.access.config import BASE_BYTES
from thinrow.materialization.config import ServerConfig
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable


MIB = 1 << 20
STREAM = "/thinrow.v1.MaterializationService/MaterializeStream"
CALL = "/thinrow.v1.MaterializationService/Materialize"
LIMITS = {
    "cache_bytes_max": 8 * MIB,
    "work_bytes_max": 48 * MIB,
    "response_bytes_max": 4 * MIB,
    "request_bytes_max": 64 * 1024,
    "calls_max": 12,
    "streams_max": 12,
    "connections_max": 32,
}
CALLERS = 30


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"), count=60_000, users=400)


def options() -> list[object]:
    return [
        part for name, value in LIMITS.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


def request(users: int) -> wire.MaterializeRequest:
    """Request for short histories, over and over: the answer is far larger than the request."""
    return wire.MaterializeRequest(user_ids=range(1, users + 1), end_ts=days(3) * users)


def test_slow_readers_and_full_queues_stay_below_it(world: World) -> None:
    bound = ServerConfig(store=world.store, **LIMITS).memory_bound_bytes  # type: ignore[arg-type]
    requested = request(400)
    with running_server(world.store, *options()) as server, ExitStack() as stack:
        series = server.scrape()
        assert series["thinrow_memory_bound_bytes"] == bound
        assert server.wait_for("serving")["memory_bound_bytes"] == bound
        assert server.most_bytes() < BASE_BYTES, "before the first call"
        channels = [
            stack.enter_context(
                grpc.insecure_channel(
                    server.address,
                    [
                        ("grpc.use_local_subchannel_pool", 1),
                        ("grpc.max_receive_message_length", -1),
                    ],
                )
            )
            for _ in range(CALLERS)
        ]
        message = wire.MaterializeStreamRequest(request=requested).SerializeToString()
        assert len(message) < LIMITS["request_bytes_max"]
        stop = threading.Event()

        def never_reads(channel: grpc.Channel) -> None:
            """A stream of many requests whose answers no one takes; refused, it comes again."""
            stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
            while not stop.is_set():
                call = stream(iter([message] * 200))
                while call.is_active() and not stop.wait(0.05):
                    pass
                call.cancel()

        def keeps_requesting(channel: grpc.Channel) -> None:
            """One single call after the other, refused or not."""
            send_request: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CALL)
            while not stop.is_set():
                with suppress(grpc.RpcError):
                    send_request(requested.SerializeToString(), timeout=60)

        def sends_too_much(channel: grpc.Channel) -> None:
            send_request: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CALL)
            while not stop.is_set():
                with pytest.raises(grpc.RpcError):
                    send_request(bytes(16 * MIB), timeout=60)

        kinds: list[Callable[[grpc.Channel], None]] = [never_reads, never_reads, keeps_requesting]
        kinds += [keeps_requesting, sends_too_much]
        threads = [
            threading.Thread(target=kinds[number % len(kinds)], args=(channel,))
            for number, channel in enumerate(channels)
        ]
        for thread in threads:
            thread.start()
        streams, answered = 0.0, 0.0
        while streams < LIMITS["streams_max"] or answered < 200_000:
            series = server.scrape()
            streams = max(streams, series["thinrow_streams"])
            answered = series.get('thinrow_examples_total{status="OK",tenant=""}', 0.0)
            time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        most = server.most_bytes()
        assert streams == LIMITS["streams_max"], "all streams were taken"
    assert most < bound, f"{most:,} of {bound:,} bytes"


def test_it_grows_with_every_limit() -> None:
    config = ServerConfig(store=Path("x"))
    assert config.memory_bound_bytes == 13_408 * MIB, "as operations.md says"
    for name in LIMITS:
        more = ServerConfig(store=Path("x"), **{name: 2 * getattr(config, name)})
        assert more.memory_bound_bytes > config.memory_bound_bytes, name
