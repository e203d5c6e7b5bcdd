"""A stream of a client in a thread, of which every batch is compared with what one server has."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from support.server_processes import until
from support.worlds import ALL, as_of, shown
from thinrow.client import ClientConfig, Pointers, connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.worlds import Answers

__all__ = ["CheckedStream"]

CONFIG = ClientConfig(examples_per_request=16)


class CheckedStream:
    """Streams for ever; batch n has all users from the n-th on, so that each differs from the last.

    Args:
        target: Address of any server.
        users: The users.
        expected: Answers for these users, in their order.
    """

    def __init__(self, target: str, users: Sequence[int], expected: Answers) -> None:
        self._users, self._expected = list(users), list(expected)
        self._client = connect(target, CONFIG)
        self._ended = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._arrived_s = time.monotonic()
        self.batches = 0
        self.stall_s = 0.0
        """Longest time between two batches since `reset`."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()
        if self._failed is not None:
            raise self._failed

    @property
    def groups(self) -> int:
        """Groups that the client is connected to."""
        return self._client.routing.groups

    def reset(self) -> None:
        """Begins to measure stalls again."""
        self.stall_s = 0.0

    def goes_on(self, batches: int = 20) -> float:
        """Waits for further batches; returns the longest stall, seconds, since `reset`."""
        wanted = self.batches + batches
        until(lambda: self.batches >= wanted or self._failed is not None, 120)
        if self._failed is not None:
            raise self._failed
        return self.stall_s

    def _rotated(self, number: int) -> int:
        return number % len(self._users)

    def _pointers(self) -> Iterator[Pointers]:
        number = 0
        while not self._ended.is_set():
            first = self._rotated(number)
            users = self._users[first:] + self._users[:first]
            yield Pointers(user_ids=users, end_ts=[as_of(3)] * len(users))
            number += 1

    def _run(self) -> None:
        try:
            for batch in self._client.stream(self._pointers(), ALL):
                now_s = time.monotonic()
                if self.batches:
                    self.stall_s = max(self.stall_s, now_s - self._arrived_s)
                self._arrived_s = now_s
                first = self._rotated(self.batches)
                assert shown(batch) == self._expected[first:] + self._expected[:first]
                self.batches += 1
        except BaseException as error:
            self._failed = error
