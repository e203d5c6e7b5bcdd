"""Keepalive pings of idle streams: allowed at the documented pace, and no faster."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.http2 import CALM_DOWN, http2
from support.worlds import World, built_world
from thinrow.access import grpc_server
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PINGS = 8
"""More than a server forgives, which are two."""
STREAMS = (
    "/thinrow.v1.MaterializationService/MaterializeStream",
    "/thinrow.v1.OnlineService/AppendEvents",
    "/thinrow.v1.OnlineService/SnapshotStream",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


def addresses(world: World, folder: Path, stack: ExitStack) -> dict[str, str]:
    """Both services, served in this process; their addresses by name."""
    serve = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    online = OnlineConfig(
        store=world.store, data=folder / "online", listen="127.0.0.1:0", metrics=None
    )
    return {
        "MaterializationService": stack.enter_context(Server(serve)).address,
        "OnlineService": stack.enter_context(OnlineServer(online)).address,
    }


@pytest.fixture(params=STREAMS)
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_pings_of_an_idle_stream_at_the_allowed_pace(
    world: World, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interval_ms = 20
    monkeypatch.setattr(grpc_server, "PING_INTERVAL_MS_MIN", interval_ms)
    with ExitStack() as stack:
        address = addresses(world, tmp_path, stack)[method.split("/")[1].split(".")[-1]]
        connection = stack.enter_context(http2(address))
        connection.open_call(method)
        for _ in range(PINGS):
            assert connection.ping()
            time.sleep(2 * interval_ms / 1000)
        assert not connection.goaways


def test_pings_that_come_too_fast_end_the_connection(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        for address in addresses(world, tmp_path, stack).values():
            with http2(address) as connection:
                while connection.ping():
                    pass
                assert CALM_DOWN in connection.goaways


def test_what_clients_are_promised() -> None:
    """The documented 10 s, less what the network may delay one ping more than the next."""
    assert grpc_server.PING_INTERVAL_MS_MIN <= 10_000 - 2_000
