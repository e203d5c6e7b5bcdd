"""Reconstruction servers killed while a trainer streams: no example lost, doubled or wrong."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support.deliveries import PAUSE_S, Delivered, batches, keep, streamed_through, world
from support.server_processes import pids
from support.tried import SEED, times
from support.worlds import (
    OWN_HOST,
    Answers,
    World,
    running_server,
)

if TYPE_CHECKING:
    from support.worlds import Running
    from thinrow.client import Pointers

__all__ = ["batches", "world"]

WORKER_KILLS = 5
"""Kills of one server: the pause before a worker is started again doubles with each."""


@pytest.mark.timeout(3600)
def test_server_killed(world: World, batches: list[tuple[Pointers, Answers]]) -> None:
    rng, kills = random.Random(SEED), times(1, 100)
    with ExitStack() as servers:
        first = servers.enter_context(running_server(world.store, listen=f"{OWN_HOST}:0"))

        def kill_and_start_again(delivered: Delivered) -> None:
            server: Running = first
            for _ in range(kills):
                delivered.wait_for_more()
                time.sleep(rng.uniform(0, PAUSE_S))
                server.process.kill()
                server.process.wait()
                again = running_server(world.store, listen=first.address)
                server = servers.enter_context(again)

        examples = streamed_through(first.address, batches, kill_and_start_again)
    keep("`thinrow serve` under a stream: SIGKILL, started again", kills, examples)


@pytest.mark.timeout(3600)
def test_workers_killed(world: World, batches: list[tuple[Pointers, Answers]]) -> None:
    """Kills any of several processes on a port; the parent starts them again."""
    rng, examples, kills = random.Random(SEED), 0, 0
    for _ in range(times(1, 15)):
        with running_server(world.store, "--processes", 2) as server:

            def kill_workers(delivered: Delivered, server: Running = server) -> None:
                nonlocal kills
                for _ in range(times(1, WORKER_KILLS)):
                    delivered.wait_for_more()
                    time.sleep(rng.uniform(0, PAUSE_S))
                    with suppress(ProcessLookupError):  # dead already, and not yet back
                        os.kill(rng.choice(pids(server)), signal.SIGKILL)
                        kills += 1

            examples += streamed_through(server.address, batches, kill_workers)
    assert kills
    keep("A worker of `thinrow serve --processes 2` under a stream: SIGKILL", kills, examples)
