"""Replicas that take requests and do not answer, beside a healthy one: clients leave them."""

from __future__ import annotations

import logging
import random
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.deliveries import PATIENT, PAUSE_S, Delivered, batches, streamed_through, world
from support.fake_server import Fake, inputs, serving, users
from support.silent_replicas import CONFIG, PROJECTION, accepting, silent
from support.tried import SEED, Tried, times
from support.worlds import freeze, running_server
from thinrow.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.worlds import Answers, World
    from thinrow.client import Pointers

__all__ = ["batches", "world"]

BATCHES = 9
ANSWERS = (0, 1, 4)
"""Answers that a replica gives before it is silent."""


class Departures(logging.Handler):
    """Counts how often clients left each replica because it was silent."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "No answer came from" in record.getMessage() and isinstance(record.args, tuple):
            self.left.append(str(record.args[0]))


@contextmanager
def departures() -> Iterator[Departures]:
    """Listens to the clients of the block."""
    log, handler = logging.getLogger("thinrow.client"), Departures()
    log.addHandler(handler)
    try:
        yield handler
    finally:
        log.removeHandler(handler)


@pytest.mark.timeout(3600)
def test_server_stopped_in_its_tracks(
    world: World, batches: list[tuple[Pointers, Answers]]
) -> None:
    """Either of two by turns, and it goes on only after answers have come from the other."""
    rng, hangs, left = random.Random(SEED), times(2, 50), 0
    config = replace(PATIENT, silence_timeout_s=CONFIG.silence_timeout_s)
    with (
        running_server(world.store) as one,
        running_server(world.store) as other,
        departures() as departed,
    ):

        def hang(delivered: Delivered) -> None:
            nonlocal left
            for number in range(hangs):
                server = (one, other)[number % 2]
                delivered.wait_for_more()
                time.sleep(rng.uniform(0, PAUSE_S))
                before = len(departed.left)
                freeze(server.process.pid)
                try:
                    delivered.wait_for_more()
                    left += server.address in departed.left[before:]
                finally:
                    server.process.send_signal(signal.SIGCONT)

        examples = streamed_through([one.address, other.address], batches, hang, config)
    assert left
    Tried(
        fault="SIGSTOP to the replica of a stream, the other one healthy",
        times=left,
        promised="The client leaves it; each example once, in order, as the oracle has it",
        seen=f"{left} left; {examples:,} examples right; 0 lost, doubled or wrong",
    ).keep()


@pytest.mark.timeout(3600)
def test_silent_replicas() -> None:
    """A port that accepts and says nothing, and servers that stop to answer in the middle."""
    expected, tries, came = list(range(3 * BATCHES)), 0, 0
    with serving(Fake()) as (_, healthy):
        for number in range(times(4, 80)):
            with (
                accepting() if number % 4 == 3 else silent(ANSWERS[number % 4]) as hung,
                connect([hung, healthy], CONFIG) as client,
            ):
                assert users(list(client.stream(inputs(BATCHES), PROJECTION))) == expected
            with accepting() as hung, connect([hung, healthy], CONFIG) as client:
                assert users([client.materialize(next(inputs(1)), PROJECTION)]) == [0, 1, 2]
            tries, came = tries + 2, came + len(expected) + 3
    Tried(
        fault="A replica that takes connections and says nothing, or no more, beside a healthy one",
        times=tries,
        promised="The client leaves it; each example once and in order, of streams and of calls",
        seen=f"{came:,} examples, each once; 0 lost or doubled",
    ).keep()
