"""The bound on the online server's memory holds beside appends and snapshots made to exceed it."""

from __future__ import annotations

import threading
import time
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
STREAM = "/thinrow.v1.OnlineService/SnapshotStream"
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
SNAPSHOT = "/thinrow.v1.OnlineService/Snapshot"
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


def options() -> list[object]:
    return [
        part for name, value in LIMITS.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


def test_it_grows_with_every_limit() -> None:
    config = OnlineConfig(store=Path("x"))
    assert config.memory_bound_bytes == 4_040 * MIB, "as operations.md says"
    for name in LIMITS.keys() - {"response_bytes_max"}:  # which is held in work_bytes_max
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


def texts(first: int, size: int) -> list[str]:
    """480 texts, none of which repeats another."""
    return [f"{first:04}{number:04}" * (size // 8) for number in range(480)]


def again_while(code: str, call: Callable[[float], int]) -> int:
    """Calls until the outcome is another one, for a minute."""
    end_s = time.monotonic() + 60
    while True:
        try:
            return call(60)
        except grpc.RpcError as error:
            if error.code().name != code or time.monotonic() > end_s:
                raise
            time.sleep(0.1)


def test_unread_answers_hold_the_room_of_large_ones_only(tmp_path: Path) -> None:
    """Large answers wait for room that unread ones hold; small ones are answered meanwhile."""
    world = new_world(tmp_path, SCHEMA)
    with (
        running_online(world, "--data", tmp_path / "online", *options()) as server,
        connect_online(server.address) as client,
        ExitStack() as stack,
    ):
        for first in range(0, 60, 6):
            users = [user for user in range(first, first + 6) for _ in range(80)]
            traits = {"item_id": [1] * 480, "brand": texts(first, 1000)}
            client.append(users, [START_TS] * len(users), traits, [None] * len(users))
        seen = client.append([999], [START_TS], {"item_id": [1], "brand": ["b"]}, [None])
        large = online_pb2.SnapshotBatchRequest(user_ids=range(60)).SerializeToString()
        message = online_pb2.SnapshotStreamRequest()
        for user in range(60):
            message.requests.add(cursor=user).request.user_id = user

        # The server has few connections.
        calls = stack.enter_context(grpc.insecure_channel(server.address, OPTIONS))

        batch: grpc.UnaryUnaryMultiCallable[bytes, bytes] = calls.unary_unary(BATCH)

        def answered_bytes(timeout_s: float) -> int:
            return len(batch(large, timeout=timeout_s))

        while client.describe().now_ts <= seen.arrival_ts:
            time.sleep(0.01)
        assert answered_bytes(60) > 60 * 80 * 1000
        # Calls that end while they are answered give their room back.
        for number in range(40):
            with suppress(grpc.RpcError):
                answered_bytes(0.001 + number / 1000)
        # gRPC refuses more streams while those given up are still ending, as UNAVAILABLE.
        assert again_while("UNAVAILABLE", answered_bytes) > 60 * 80 * 1000
        channels = [
            stack.enter_context(grpc.insecure_channel(server.address, OPTIONS))
            for _ in range(LIMITS["streams_max"])
        ]
        unread = []
        for channel in channels:
            stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
            unread.append(stream(iter([message.SerializeToString()] * 20)))
        end_s = time.monotonic() + 60
        outcome = ""
        while outcome != "DEADLINE_EXCEEDED" and time.monotonic() < end_s:
            try:
                answered_bytes(2)
            except grpc.RpcError as error:
                outcome = error.code().name
        assert outcome == "DEADLINE_EXCEEDED"
        single: grpc.UnaryUnaryMultiCallable[bytes, bytes] = calls.unary_unary(SNAPSHOT)
        requested = online_pb2.SnapshotRequest(user_id=999).SerializeToString()
        small = online_pb2.SnapshotResponse.FromString(single(requested, timeout=60))
        assert len(small.mutable.arrival_ts) == 1
        for call in unread:
            call.cancel()
        assert answered_bytes(60) > 60 * 80 * 1000
        bound = OnlineConfig(store=world.store, **LIMITS).memory_bound_bytes  # type: ignore[arg-type]
        assert server.most_bytes() < bound


def test_the_default_configuration_holds_hostile_load(tmp_path: Path) -> None:
    """Requests of the largest size on every stream and call at once, and unread answers."""
    world = new_world(tmp_path, SCHEMA)
    config = OnlineConfig(store=world.store)
    assert config.memory_bound_bytes < 4096 * MIB
    with (
        running_online(world, "--data", tmp_path / "online") as server,
        connect_online(server.address) as client,
        ExitStack() as stack,
    ):
        assert server.wait_for("serving")["memory_bound_bytes"] == config.memory_bound_bytes
        for first in range(0, 60, 6):
            users = [user for user in range(first, first + 6) for _ in range(80)]
            traits = {"item_id": [1] * 480, "brand": texts(first, 5000)}
            client.append(users, [START_TS] * len(users), traits, [None] * len(users))
        requested = online_pb2.SnapshotBatchRequest(user_ids=[*range(60)] * 2).SerializeToString()
        message = online_pb2.SnapshotStreamRequest()
        for user in range(60):
            message.requests.add(cursor=user).request.user_id = user
        one_text = {"item_id": [1] * 4000, "brand": ["t" * 900] * 4000}
        events = client.events([*range(4000)], [START_TS] * 4000, one_text, [None] * 4000)
        appended = online_pb2.AppendEventsRequest(cursor=1, events=events).SerializeToString()
        outcomes: list[str] = []

        def unread(channel: grpc.Channel) -> None:
            stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
            call = stream(iter([message.SerializeToString()] * 5))
            time.sleep(12)
            call.cancel()

        def calls(channel: grpc.Channel, request: bytes, method: str) -> None:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            for _ in range(2):
                try:
                    call(request, timeout=30)
                    outcomes.append("answered")
                except grpc.RpcError as error:
                    outcomes.append(error.code().name)

        def appends(channel: grpc.Channel) -> None:
            append: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(APPEND)
            with suppress(grpc.RpcError):
                outcomes.extend("appended" for _ in append(iter([appended] * 2), timeout=60))

        empty = bytes(4 * MIB - 64)
        kinds: list[Callable[[grpc.Channel], None]] = [
            unread,
            appends,
            lambda channel: calls(channel, requested, BATCH),
            lambda channel: calls(channel, empty, BATCH),
        ]
        threads = [
            threading.Thread(
                target=kinds[number % len(kinds)],
                args=(stack.enter_context(grpc.insecure_channel(server.address, OPTIONS)),),
            )
            for number in range(80)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        most = server.most_bytes()
        print(f"{most / MIB:.0f} of {config.memory_bound_bytes / MIB:.0f} MiB")
        assert {"answered", "appended", "INVALID_ARGUMENT"} <= set(outcomes)
    assert most < config.memory_bound_bytes, f"{most:,} bytes"


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
