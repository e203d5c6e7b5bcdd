"""Texts count in the memory that a server promises, however long the strings in its stripes are."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from support.worlds import World, days, new_world, running_online, running_server
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.client.online import connect_online
from thinrow.errors import AnswerTooLargeError
from thinrow.materialization.config import ServerConfig
from thinrow.online.config import OnlineConfig
from thinrow.store.generation import Generation

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
USERS, EVENTS, TEXT_BYTES = 48, 64, 64 * 1024
SCHEMA = '[item]\nitem_id = { type = "int64", key = true }\nbrand = "string"\n'
LIMITS = {
    "cache_bytes_max": 4 * MIB,
    "work_bytes_max": 64 * MIB,
    "response_bytes_max": 8 * MIB,
    "request_bytes_max": 64 * 1024,
    "calls_max": 4,
    "streams_max": 1,
    "connections_max": 8,
}
CALLERS = 4
ALL_USERS = list(range(1, USERS + 1))
WITHOUT_TEXT = Projection(traits=("item_id",))
AT_ONCE = ClientConfig(retry_deadline_s=0, examples_per_request=8192)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = new_world(tmp_path_factory.mktemp("world"), SCHEMA)
    count = USERS * EVENTS
    texts = pa.array([f"{number:08}" * (TEXT_BYTES // 8) for number in range(count)])
    users = [1 + number % USERS for number in range(count)]
    made.compact(
        pa.table(
            {
                "user_id": users,
                "event_ts": [days(0)[0] + number for number in range(count)],
                "item_id": pa.array(range(count), pa.int64()),
                "brand": texts,
            }
        ),
        1,
    )
    return made


def options() -> list[object]:
    return [
        part for name, value in LIMITS.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


def test_the_manifest_knows_the_largest_value(world: World) -> None:
    with Generation.open_current(world.store) as generation:
        half = EVENTS // 2  # the longest stripe of such a history
        assert half * TEXT_BYTES < generation.value_bytes_max < (half + 1) * TEXT_BYTES


def test_serve_stays_below_its_bound(world: World) -> None:
    bound = ServerConfig(store=world.store, **LIMITS).memory_bound_bytes  # type: ignore[arg-type]
    every = Pointers(user_ids=ALL_USERS, end_ts=days(1) * USERS)
    few = Pointers(user_ids=[1, 2], end_ts=days(1) * 2)
    with running_server(world.store, *options()) as server:
        outcomes: list[int] = []

        def call() -> None:
            with connect(server.address, AT_ONCE) as client:
                # The texts of all users are too large together; the client requests in parts.
                outcomes.append(int(client.materialize(every, WITHOUT_TEXT).offsets[-1]))
                outcomes.append(int(client.materialize(few, Projection()).offsets[-1]))

        callers = [threading.Thread(target=call) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        most = server.most_bytes()
        refused = 'thinrow_errors_total{name="ANSWER_TOO_LARGE"}'
        assert server.scrape()[refused] >= CALLERS
    assert sorted(outcomes) == [2 * EVENTS] * CALLERS + [USERS * EVENTS] * CALLERS
    print(f"{most / MIB:.0f} of {bound / MIB:.0f} MiB")
    assert most < bound, f"{most:,} of {bound:,} bytes"


def test_online_stays_below_its_bound(world: World, tmp_path: Path) -> None:
    config = OnlineConfig(store=world.store, **LIMITS)  # type: ignore[arg-type]
    with (
        running_online(world, "--data", tmp_path / "online", *options()) as server,
        connect_online(server.address) as client,
    ):
        assert server.wait_for("serving")["memory_bound_bytes"] == config.memory_bound_bytes
        assert server.scrape()["thinrow_memory_bound_bytes"] == config.memory_bound_bytes
        outcomes: list[int] = []

        def call() -> None:
            with pytest.raises(AnswerTooLargeError, match="work_bytes_max"):
                client.snapshot_batch(ALL_USERS, WITHOUT_TEXT)
            outcomes.append(len(client.snapshot_batch([1, 2], WITHOUT_TEXT).thin_rows))

        callers = [threading.Thread(target=call) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        most = server.most_bytes()
    assert outcomes == [2] * CALLERS
    print(f"{most / MIB:.0f} of {config.memory_bound_bytes / MIB:.0f} MiB")
    assert most < config.memory_bound_bytes, f"{most:,} of {config.memory_bound_bytes:,} bytes"
