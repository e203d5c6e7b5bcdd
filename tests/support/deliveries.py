"""A trainer's stream while servers die: each example is checked, and arrives once."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest
from support.by_oracle import answers, oracle_of
from support.endless_streams import endless
from support.tried import SEED, Tried
from support.worlds import (
    ALL,
    DAY_MS,
    START_TS,
    Answers,
    World,
    as_of,
    new_world,
    shown,
    some_events,
)
from thinrow.client import ClientConfig, Pointers, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


USERS = 60


FLOWING_BATCHES = 20


PAUSE_S = 0.1
"""A kill comes so long, at most, after answers flow again."""


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
    """The number of delivered batches, for tests that break something meanwhile."""

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
        except BaseException as error:  # reported by the test's own thread
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
