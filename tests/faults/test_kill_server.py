"""Reconstruction servers killed while a trainer streams: no example lost, doubled or wrong."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support.by_oracle import answers, oracle_of
from support.tried import SEED, Tried, times
from support.worlds import (
    ALL,
    DAY_MS,
    OWN_HOST,
    START_TS,
    Answers,
    World,
    as_of,
    new_world,
    running_server,
    shown,
    some_events,
)
from test_crash import endless
from test_processes import pids
from thinrow.client import ClientConfig, Pointers, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.worlds import Running

USERS = 60
FLOWING_BATCHES = 20
PAUSE_S = 0.1
"""A kill comes so long, at most, after answers flow again."""
WORKER_KILLS = 5
"""Of one server: the pause before a worker is started again doubles with each."""
PATIENT = ClientConfig(
    examples_per_request=8, requests_in_flight=4, backoff_max_s=0.1, retry_deadline_s=120
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = new_world(tmp_path_factory.mktemp("world"))
    world.compact(some_events(6000, users=USERS, seed=SEED), 3)
    return world


@pytest.fixture(scope="module")
def batches() -> list[tuple[Pointers, Answers]]:
    """Batches of different sizes, no two alike, and what the oracle answers."""
    rng = random.Random(SEED)
    oracle = oracle_of((some_events(6000, users=USERS, seed=SEED), 3))
    pointers = [
        Pointers(
            user_ids=[rng.randint(1, USERS + 2) for _ in range(size)],
            end_ts=[as_of(3)] * size,
            start_ts=[START_TS + rng.randrange(3 * DAY_MS) for _ in range(size)],
            max_lengths=[rng.choice((0, 1, 20)) for _ in range(size)],
        )
        for size in (rng.choice((0, 1, 5, 20)) for _ in range(40))
    ]
    return [(each, answers(oracle, each)) for each in pointers]


class Delivered:
    """How many batches came, for who wants to break something while they do."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def add(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait_for_more(self) -> None:
        """Until answers flow again: what is killed then is at work."""
        with self._changed:
            wanted = self.count + FLOWING_BATCHES
            assert self._changed.wait_for(lambda: self.count >= wanted, PATIENT.retry_deadline_s)


def streamed_through(
    address: str | Sequence[str],
    batches: list[tuple[Pointers, Answers]],
    faults: Callable[[Delivered], None],
    config: ClientConfig = PATIENT,
) -> int:
    """Streams the batches over and over until the faults are over; how many examples came."""
    delivered, examples = Delivered(), 0
    over = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            faults(delivered)
        except BaseException as error:  # told by the test's own thread
            failures.append(error)
        finally:
            over.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with connect(address, config) as client:
            for batch in client.stream(endless([each for each, _ in batches], over), ALL):
                pointers, expected = batches[delivered.count % len(batches)]
                assert shown(batch) == expected
                examples += len(pointers)
                delivered.add()
    finally:
        thread.join()
        assert not failures, failures
    assert delivered.count and delivered.count % len(batches) == 0
    return examples


def keep(fault: str, kills: int, examples: int) -> None:
    Tried(
        fault=fault,
        times=kills,
        promised="Each example once, in order, as the oracle has it",
        seen=f"{examples:,} examples right; 0 lost, doubled or wrong",
    ).keep()


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
    """Of several processes on a port, any; the parent starts them again."""
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
