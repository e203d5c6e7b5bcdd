"""Servers stopped as deployments stop them, and idle connections that ping: no one is surprised."""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest
from support.deliveries import PAUSE_S, Delivered, batches, keep, streamed_through, world
from support.http2 import http2
from support.idle_streams import BATCH, Idle, streams_of
from support.online_events import batch, ids_seen
from support.tried import SEED, Tried, times
from support.worlds import OWN_HOST, new_world, running_online, running_server
from thinrow.access import grpc_server
from thinrow.client.online import connect_online
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from support.worlds import Answers, Running, World
    from thinrow.client import Pointers

__all__ = ["batches", "world"]

LONG = "1h"
"""A drain that no test waits for."""
APPENDED = 20
"""Events of one batch."""


@pytest.mark.timeout(3600)
def test_server_stopped_under_a_stream(
    world: World, batches: list[tuple[Pointers, Answers]]
) -> None:
    rng, stops = random.Random(SEED), times(1, 30)
    with ExitStack() as servers:
        first = servers.enter_context(
            running_server(world.store, "--drain", LONG, listen=f"{OWN_HOST}:0")
        )

        def stop_and_start_again(delivered: Delivered) -> None:
            running: Running = first
            for _ in range(stops):
                delivered.wait_for_more()
                time.sleep(rng.uniform(0, PAUSE_S))
                running.process.send_signal(signal.SIGTERM)
                assert running.process.wait(60) == 0
                again = running_server(world.store, "--drain", LONG, listen=first.address)
                running = servers.enter_context(again)

        examples = streamed_through(first.address, batches, stop_and_start_again)
    keep("`thinrow serve` under a stream: SIGTERM, started again", stops, examples)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_idle_streams_of_a_stopped_server(world: World, processes: int) -> None:
    ended = 0
    for _ in range(times(1, 20)):
        options = ("--drain", LONG, "--processes", processes)
        with ExitStack() as channels, running_server(world.store, *options) as running:
            idle = []
            for answered in (0, 1, 3, 10):
                channel = channels.enter_context(
                    grpc.insecure_channel(running.address, [("grpc.use_local_subchannel_pool", 1)])
                )
                method, _ = streams_of(channel, "materialization")["MaterializeStream"]
                idle.append(Idle(method, [BATCH] * answered))
            assert running.stop() == 0
            for stream in idle:
                stream.check_ended_by_drain()
            ended += len(idle)
    Tried(
        fault=f"SIGTERM to `thinrow serve` of {processes} process(es) with idle streams, drain 1 h",
        times=ended,
        promised="Each ends at once with UNAVAILABLE and its name; the server ends",
        seen=f"{ended} streams ended so, 0 otherwise",
    ).keep()


@pytest.mark.timeout(3600)
def test_online_stopped_under_appends_and_idle_streams(tmp_path: Path) -> None:
    online, stops, ended, sent = new_world(tmp_path), times(1, 20), 0, 0
    for _ in range(stops):
        with (
            running_online(online, "--drain", LONG) as running,
            connect_online(running.address) as client,
            grpc.insecure_channel(running.address) as channel,
        ):
            idle = [
                Idle(method, [message] * answered)
                for method, message in streams_of(channel, "online").values()
                for answered in (0, 2)
            ]
            result = client.append_all([batch(client, sent, APPENDED)])
            appended = next(result)
            assert appended.appended == APPENDED
            sent += APPENDED
            # The client's own stream of appends stays open, too, until the server ends it.
            assert ids_seen(client, appended.arrival_ts) == set(range(sent))
            assert running.stop() == 0
            for stream in idle:
                stream.check_ended_by_drain()
            ended += len(idle)
    Tried(
        fault="SIGTERM to `thinrow online` with idle streams of each kind, drain 1 h",
        times=ended,
        promised="Each ends at once with UNAVAILABLE and its name; what was acknowledged is there",
        seen=f"{ended} streams ended so, 0 otherwise; {sent} events, each there once",
    ).keep()


def test_pings_of_idle_streams(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings at the pace that the server allows, which is shortened here."""
    pings, interval_ms = times(10, 2000), 10
    monkeypatch.setattr(grpc_server, "PING_INTERVAL_MS_MIN", interval_ms)
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as running, http2(running.address) as connection:
        connection.open_call("/thinrow.v1.MaterializationService/MaterializeStream")
        for _ in range(pings):
            assert connection.ping()
            time.sleep(2 * interval_ms / 1000)
        assert not connection.goaways
    Tried(
        fault="Keepalive pings of an idle stream, at twice the allowed interval",
        times=pings,
        promised="The stream stays open",
        seen=f"{pings:,} pings answered, 0 GOAWAY",
    ).keep()
