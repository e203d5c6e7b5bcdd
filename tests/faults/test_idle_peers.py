"""Calls of one tenant that wait for it at either service: the calls of another are answered."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.half_open import (
    CHECK,
    GREEDY,
    REFLECTION,
    STEADY,
    WATCH,
    check_answers,
    running,
    soon,
)
from support.raw_http2 import Connection
from support.tried import SEED, Tried, times
from support.worlds import built_world, days
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from support.half_open import Running

CONNECTIONS, CALLS_OF_ONE = 3, 50
STREAM = wire.MaterializeStreamRequest(
    request=wire.MaterializeRequest(user_ids=[1], end_ts=days(3), tenant="greedy")
).SerializeToString()
APPEND = online_pb2.AppendEventsRequest(events=online_pb2.EventBatch()).SerializeToString()
ANSWERED = 3
"""Calls of the other tenant, each time the first one has opened its calls."""


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("no_pause_before_goaway")
@pytest.mark.parametrize("kind", ["serve", "online"])
def test_calls_that_wait_for_one_tenant(kind: str, tmp_path: Path) -> None:
    rng, calls, answered = random.Random(SEED), 0, 0
    first = STREAM if kind == "serve" else APPEND
    with running(kind, built_world(tmp_path / "world"), tmp_path, tokens=True) as server:
        for _ in range(times(2, 60)):
            with ExitStack() as stack:
                for _ in range(CONNECTIONS):
                    connection = stack.enter_context(Connection(server.address))
                    # Its stream is answered once, and is idle from then on.
                    connection.send(connection.open(server.stream, GREEDY), first)
                    for _ in range(CALLS_OF_ONE):
                        leave_half_open(connection, server, rng)
                    calls += 1 + CALLS_OF_ONE
                soon(lambda: held(server) > 0)
                for _ in range(ANSWERED):
                    check_answers(server, STEADY)
                    answered += 1
                # Those answers took the places of none: the other tenant still has its own.
                assert held(server) > 0
            soon(lambda: held(server) == 0)
    Tried(
        fault=f"`thinrow {kind}`: idle streams and half-open calls of one tenant, hundreds at once",
        times=calls,
        promised="Calls of another tenant, and of health, are answered meanwhile",
        seen=f"{answered} calls of another tenant answered, and as many of health; 0 locked out",
    ).keep()


def leave_half_open(connection: Connection, server: Running, rng: random.Random) -> None:
    """Opens a call with the token or none, and sends no message or a part of one."""
    method = rng.choice((server.stream, server.unary, CHECK, WATCH, REFLECTION))
    number = connection.open(method, rng.choice((GREEDY, ())))
    if rng.random() < 0.5:
        connection.send(number, bytes(100), last=rng.randrange(1, 105))


def held(server: Running) -> float:
    """Streams that the first tenant has open."""
    return server.metrics("thinrow_tenant_streams", {"tenant": "greedy"}) or 0  # type: ignore[call-arg]
