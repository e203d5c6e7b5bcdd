"""Peers that keep connections of the metrics port, of every kind, and scrapes between them."""

from __future__ import annotations

import random
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from support.stuck_scrapes import (
    PEERS,
    STUCK,
    THREADS_MAX,
    check_all_ended,
    check_scrapes,
    connected,
    padded_endpoint,
    send_endless_head,
    threads,
)
from support.tried import SEED, Tried, times

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

DRIPPING, ENDLESS = "a header byte by byte", "a head without an end"
PAUSE_S = 0.05
ROUND = PEERS // 2
"""Twice as many peers as there are places; then a scrape."""


@pytest.mark.timeout(3600)
def test_peers_of_the_metrics_port() -> None:
    rng, rounds, met, most = random.Random(SEED), times(1, 60), Counter[str](), 0
    with padded_endpoint(timeout_s=1.0) as endpoint:
        for _ in range(rounds):
            with ExitStack() as stack:
                drips = stack.enter_context(dripping())
                for kind in rng.choices([*STUCK, DRIPPING, ENDLESS], k=ROUND):
                    if kind == ENDLESS:
                        send_endless_head(endpoint, stack)
                    elif kind == DRIPPING:
                        drips.append(connected(endpoint, stack, STUCK["half a header"]))
                    else:
                        connected(endpoint, stack, STUCK[kind])
                    met[kind] += 1
                    most = max(most, threads())
                check_scrapes(endpoint)
                most = max(most, threads())
        check_all_ended()
    assert most <= THREADS_MAX
    Tried(
        fault="Peers of the metrics port that say nothing, half of a request, or more than one",
        times=met.total(),
        promised=f"Scrapes go on; at most {THREADS_MAX} threads, and none is left",
        seen=f"{2 * rounds} pages whole, {most} threads; "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(met.items())),
    ).keep()


@contextmanager
def dripping() -> Iterator[list[socket.socket]]:
    """Sends a byte to each of these peers now and then, until the block ends."""
    peers: list[socket.socket] = []
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(PAUSE_S):
            for peer in [*peers]:
                with suppress(OSError):  # the server has ended it
                    peer.sendall(b"X")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield peers
    finally:
        stop.set()
        thread.join()
