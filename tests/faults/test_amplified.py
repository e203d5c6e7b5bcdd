"""Small requests for much memory, many at once: it stays below the bound that the limits give."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import pyarrow as pa
import pytest
from support.tried import SEED, Tried, times
from support.worlds import START_TS, days, new_world, running_online, running_server
from thinrow.client.online import connect_online
from thinrow.materialization.config import ServerConfig
from thinrow.online.config import OnlineConfig
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Request = tuple[str, bytes]

pytestmark = pytest.mark.timeout(3600)
MIB = 1 << 20
LIMITS = {
    "cache_bytes_max": 4 * MIB,
    "work_bytes_max": 32 * MIB,
    "response_bytes_max": 8 * MIB,
    "request_bytes_max": 1 * MIB,
    "calls_max": 4,
    "streams_max": 4,
    "connections_max": 32,
}
OPTIONS = [
    part for name, value in LIMITS.items() for part in (f"--{name.replace('_', '-')}", value)
]
CHANNEL = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
MATERIALIZE = "/thinrow.v1.MaterializationService/Materialize"
SNAPSHOTS = "/thinrow.v1.OnlineService/SnapshotBatch"
APPEND = "/thinrow.v1.OnlineService/AppendEvents"
SCHEMA = '[item]\nitem_id = "int64"\nbrand = "string"\n'
USERS, EVENTS, TEXT_BYTES = 12, 48, 64 * 1024
REPEATS = (1, 5, 60)
"""Repetitions of each user of a request."""
MAXIMAL_EVENTS = 6000
CALLERS = 8


def outcome_of(channel: grpc.Channel, method: str, message: bytes) -> str:
    """Calls, and reads all there is; fails for an error without a name of ours."""
    try:
        if method == APPEND:
            append: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
            answers = append(iter([message]), timeout=300)
            [answer] = map(online_pb2.AppendEventsResponse.FromString, answers)
            return "refused" if answer.refused else "appended"
        send_request: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        send_request(message, timeout=300)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return str(dict(error.trailing_metadata() or ())["thinrow-error"])
    return "answered"


def outcomes_of(address: str, requests: Sequence[Request]) -> Counter[str]:
    """Sends requests from callers at once, each on a connection of its own."""
    outcomes = Counter[str]()

    def call(part: Sequence[Request]) -> None:
        with grpc.insecure_channel(address, CHANNEL) as channel:
            for method, message in part:
                outcomes[outcome_of(channel, method, message)] += 1

    threads = [
        threading.Thread(target=call, args=(requests[number::CALLERS],))
        for number in range(CALLERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.total() == len(requests)
    return outcomes


def keep(fault: str, outcomes: Counter[str], most: int, bound: int) -> None:
    assert most < bound, f"{most:,} of {bound:,} bytes"
    Tried(
        fault=fault,
        times=outcomes.total(),
        promised="Answered or refused by name; memory below the bound that operations.md computes",
        seen=", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items()))
        + f"; {most / MIB:,.0f} of {bound / MIB:,.0f} MiB",
    ).keep()


def test_large_texts_of_materialize(tmp_path: Path) -> None:
    """Texts count in the memory of an answer also where the projection leaves them out."""
    rng, world, count = random.Random(SEED), new_world(tmp_path, SCHEMA), USERS * EVENTS
    world.compact(
        pa.table(
            {
                "user_id": [1 + number % USERS for number in range(count)],
                "event_ts": [START_TS + number for number in range(count)],
                "item_id": pa.array(range(count), pa.int64()),
                "brand": [f"{number:08}" * (TEXT_BYTES // 8) for number in range(count)],
            }
        ),
        1,
    )

    def request() -> Request:
        users = range(1, 1 + rng.choice((1, 2, USERS)))
        lookups = [user for user in users for _ in range(rng.choice(REPEATS))]
        traits = rng.choice((["item_id"], ["item_id", "brand"]))
        message = wire.MaterializeRequest(
            user_ids=lookups,
            end_ts=days(1) * len(lookups),
            projection=wire.Projection(traits=traits),
        )
        return MATERIALIZE, message.SerializeToString()

    bound = ServerConfig(store=world.store, **LIMITS).memory_bound_bytes  # type: ignore[arg-type]
    with running_server(world.store, *OPTIONS) as server:
        outcomes = outcomes_of(server.address, [request() for _ in range(times(16, 160))])
        most = server.most_bytes()
    assert outcomes["answered"] and outcomes["ANSWER_TOO_LARGE"]
    keep("Large texts through Materialize, of repeated users, many at once", outcomes, most, bound)


def test_repeated_users_and_maximal_batches(tmp_path: Path) -> None:
    rng, world = random.Random(SEED), new_world(tmp_path, SCHEMA)
    bound = OnlineConfig(store=world.store, **LIMITS).memory_bound_bytes  # type: ignore[arg-type]
    with (
        running_online(world, "--data", tmp_path / "online", *OPTIONS) as server,
        connect_online(server.address) as client,
    ):
        users = [user for user in range(USERS) for _ in range(EVENTS)]
        traits = {"item_id": [1] * len(users), "brand": ["b" * 1000] * len(users)}
        client.append(users, [START_TS] * len(users), traits, list(range(len(users))))
        # One text for all events: 16 kB of request become as many records as one batch may have.
        large = client.events(
            [1_000_000 + number for number in range(MAXIMAL_EVENTS)],
            [START_TS] * MAXIMAL_EVENTS,
            {"item_id": [1] * MAXIMAL_EVENTS, "brand": ["t" * 600] * MAXIMAL_EVENTS},
        )
        append = online_pb2.AppendEventsRequest(events=large).SerializeToString()

        def request() -> Request:
            if rng.random() < 0.3:
                return APPEND, append
            lookups = [*range(USERS)] * rng.choice(REPEATS)
            return SNAPSHOTS, online_pb2.SnapshotBatchRequest(user_ids=lookups).SerializeToString()

        outcomes = outcomes_of(server.address, [request() for _ in range(times(16, 160))])
        most = server.most_bytes()
    assert outcomes["answered"] and outcomes["appended"]
    keep(
        "Snapshots of repeated users with large texts, beside maximal batches of appends",
        outcomes,
        most,
        bound,
    )
