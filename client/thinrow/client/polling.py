"""Polls of the replicas of groups: the map that each follows, and its generation."""

from __future__ import annotations

import queue
import random
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias
from weakref import WeakMethod

import grpc
from thinrow.core.cluster_map import ServerState
from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

    from thinrow.client.channel import Channels

__all__ = ["poll", "start_polling", "weak"]

Polled: TypeAlias = "queue.SimpleQueue[tuple[Channels, int, grpc.Future[bytes]]]"

POLL_S_MIN = 0.25
"""Shortest pause between two polls of the replicas."""
POLL_DEADLINE_S = 2.0
POLLED_MAX = 256
"""Replicas polled at once; with more, those of some groups wait for the next poll."""


class Polling(Protocol):
    """An object that is polled for: a router."""

    @property
    def is_closed(self) -> bool:
        """True once its client was closed."""

    @property
    def poll_pause_s(self) -> float:
        """Pause before the next poll."""

    def poll(self) -> None:
        """Polls once."""


def poll(
    groups: list[Channels],
    take: Callable[[ServerState, str], object],
    until: Callable[[], bool] | None = None,
) -> bool:
    """Requests the map, and their generations, from the replicas of some groups.

    Args:
        groups: The groups.
        take: Called with each description, and the address of its server.
        until: Ends the poll early, once it returns True or a replica of each group has answered.
            None: all replicas are waited for.

    Returns:
        True if one has answered.
    """
    replicas = [(group, number) for group in groups for number in range(len(group.targets))]
    random.shuffle(replicas)
    done: Polled = queue.SimpleQueue()
    for group, number in replicas[:POLLED_MAX]:
        arrived = partial(_put, done, group, number)
        group.describe(number, POLL_DEADLINE_S).add_done_callback(arrived)
    answered: set[Channels] = set()
    for _ in replicas[:POLLED_MAX]:
        group, number, call = done.get()
        try:
            state = ServerState.read(call.result())
            take(state, group.targets[number])
        except (grpc.RpcError, grpc.FutureCancelledError, ThinRowError):
            if group.health is not None:
                group.health.failed(number)
            continue
        answered.add(group)
        if group.health is not None:
            group.health.answered(number, state.generation)
        if until is not None and (until() or len(answered) == len(groups)):
            break
    return bool(answered)


def start_polling(router: weakref.ref[Polling], now: threading.Event) -> threading.Thread:
    """Starts a thread that polls until the client is closed or dropped.

    Args:
        router: The object that is polled for.
        now: Set for a poll at once.
    """
    thread = threading.Thread(
        target=_poll_often, args=(router, now), name="thinrow-router", daemon=True
    )
    thread.start()
    return thread


def weak(method: Callable[[], bool]) -> Callable[[], bool]:
    """Returns a method that does not keep its object; False once that is gone."""
    reference = WeakMethod(method)

    def call() -> bool:
        found = reference()
        return found is not None and found()

    return call


def _put(done: Polled, group: Channels, replica: int, call: grpc.Future[bytes]) -> None:
    done.put((group, replica, call))


def _poll_often(router: weakref.ref[Polling], now: threading.Event) -> None:
    pause_s = POLL_S_MIN
    while True:
        now.wait(pause_s)
        now.clear()
        polled = router()
        if polled is None or polled.is_closed:
            return
        with suppress(ThinRowError):  # closed meanwhile
            polled.poll()
        pause_s = max(POLL_S_MIN, polled.poll_pause_s)
        del polled
        time.sleep(POLL_S_MIN)
