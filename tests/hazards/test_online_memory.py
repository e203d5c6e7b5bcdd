"""The bound on the online server's memory holds beside appends and snapshots made to exceed it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from support.worlds import START_TS, new_world, running_online
from thinrow.client.online import connect_online
from thinrow.online.config import OnlineConfig
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
BATCH = "/thinrow.v1.OnlineService/SnapshotBatch"
APPEND = "/thinrow.v1.OnlineService/AppendEvents"
LIMITS = {
    "cache_bytes_max": 4 * MIB,
    "work_bytes_max": 64 * MIB,
    "response_bytes_max": 8 * MIB,
    "request_bytes_max": 1 * MIB,
    "calls_max": 8,
    "streams_max": 8,
    "connections_max": 32,
}
SCHEMA = '[item]\nitem_id = "int64"\nbrand = "string"\n'
USERS, EVENTS = 100, 80
ROUNDS, BATCHES = 3, 12
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


def options() -> list[object]:
    return [
        part for name, value in LIMITS.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


def test_it_grows_with_every_limit() -> None:
    config = OnlineConfig(store=Path("x"))
    assert config.memory_bound_bytes == 99_024 * MIB, "as operations.md says"
    for name in LIMITS:
        more = OnlineConfig(store=Path("x"), **{name: 2 * getattr(config, name)})
        assert more.memory_bound_bytes > config.memory_bound_bytes, name


def test_amplified_snapshots_and_maximal_batches_stay_below_it(tmp_path: Path) -> None:
    """Small requests for many events, repeated users, and batches as large as any."""
    world = new_world(tmp_path, SCHEMA)
    bound = OnlineConfig(store=world.store, **LIMITS).memory_bound_bytes  # type: ignore[arg-type]
    with (
        running_online(world, "--data", tmp_path / "online", *options()) as server,
        connect_online(server.address) as client,
        ExitStack() as stack,
    ):
        users = [user for user in range(USERS) for _ in range(EVENTS)]
        traits = {"item_id": [1] * len(users), "brand": ["b" * 100] * len(users)}
        client.append(users, [START_TS] * len(users), traits, list(range(len(users))))
        request = online_pb2.SnapshotBatchRequest(user_ids=[*range(USERS)] * 5).SerializeToString()
        assert len(request) < 4096
        # One text for all events: 16 kB of request become as many records as one batch may have.
        large = client.events(
            [1_000_000 + number for number in range(6000)],
            [START_TS] * 6000,
            {"item_id": [1] * 6000, "brand": ["t" * 600] * 6000},
            [None] * 6000,
        )
        message = online_pb2.AppendEventsRequest(cursor=1, events=large).SerializeToString()
        channels = [
            stack.enter_context(grpc.insecure_channel(server.address, OPTIONS)) for _ in range(16)
        ]
        outcomes: list[str] = []

        def snapshots(channel: grpc.Channel) -> None:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(BATCH)
            for _ in range(ROUNDS):
                try:
                    call(request, timeout=300)
                    outcomes.append("answered")
                except grpc.RpcError as error:
                    outcomes.append(str(error.details()))

        def appends(channel: grpc.Channel) -> None:
            append: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(APPEND)
            with suppress(grpc.RpcError):
                for answer in append(iter([message] * BATCHES), timeout=300):
                    refused = online_pb2.AppendEventsResponse.FromString(answer).refused
                    outcomes.append(refused or "appended")

        kinds: list[Callable[[grpc.Channel], None]] = [snapshots, appends]
        threads = [
            threading.Thread(target=kinds[number % 2], args=(channel,))
            for number, channel in enumerate(channels)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        most = server.most_bytes()
        print(f"{most / MIB:.0f} of {bound / MIB:.0f} MiB")
        assert "appended" in outcomes
        assert "answered" in outcomes
    assert most < bound, f"{most:,} of {bound:,} bytes"


@pytest.mark.parametrize("text", ["é", "漢", "\U0001f600"])
def test_texts_of_a_batch_count_in_bytes(tmp_path: Path, text: str) -> None:
    world = new_world(tmp_path, SCHEMA)
    limits = ("--request-bytes-max", 64 * 1024, "--data", tmp_path / "online")
    with (
        running_online(world, *limits) as server,
        connect_online(server.address) as client,
        pytest.raises(Exception, match="would take"),
    ):
        long = text * (300 * 1024 // len(text.encode()) // 10)
        client.append([1] * 10, [START_TS] * 10, {"item_id": [1] * 10, "brand": [long] * 10})
