"""Group commit: batches of many streams become durable together, by one thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Self

from thinrow.errors import StoreError, ThinRowError, UnavailableError
from thinrow.online.clock import LEASE_MS

if TYPE_CHECKING:
    from thinrow.online.records import Batch
    from thinrow.online.tier import CommittedBatch, MutableTier

    Pending = tuple[Batch, Future[CommittedBatch]]

__all__ = [
    "GROUP_EVENTS_MAX",
    "PENDING_BYTES_MAX",
    "PENDING_EVENTS_MAX",
    "Appends",
]

log = logging.getLogger("thinrow.online")

GROUP_EVENTS_MAX = 8192
"""Events made durable at once, unless one batch has more."""
PENDING_EVENTS_MAX = 65_536
"""Events that wait for their turn; more wait in the streams that bring them."""
PENDING_BYTES_MAX = 32 << 20
"""Limit on the bytes of the records that wait; a batch is admitted while they are below it."""


class Appends:
    """Takes batches from any thread. A context manager: at its end all of them are durable."""

    def __init__(self, tier: MutableTier) -> None:
        self._tier = tier
        self._waiting: deque[Pending] = deque()
        self._events = self._bytes = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="thinrow-commit", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, batch: Batch) -> Future[CommittedBatch]:
        """Takes a batch, waiting for room. The future ends once it is durable, or with StoreError.

        Raises:
            UnavailableError: the server is stopping.
        """
        future: Future[CommittedBatch] = Future()
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._has_room)
            if self._stopping:
                raise UnavailableError("This server is stopping; send the events again.")
            self._waiting.append((batch, future))
            self._events += len(batch)
            self._bytes += batch.size_bytes
            self._changed.notify_all()
        return future

    @property
    def _has_room(self) -> bool:
        return self._events < PENDING_EVENTS_MAX and self._bytes < PENDING_BYTES_MAX

    def _run(self) -> None:
        while True:
            with self._changed:
                # A lease that no events renew is renewed in time all the same.
                self._changed.wait_for(
                    lambda: self._waiting or self._stopping, timeout=LEASE_MS / 4000
                )
                group = self._taken()
                if self._stopping and not group:
                    return
            if not group:
                self._renew()
                continue
            try:
                group = self._without_collisions(group)
                committed = self._tier.commit([batch for batch, _ in group])
            except Exception as error:
                # Whatever it is: this thread serves every stream, and must go on.
                if not isinstance(error, ThinRowError):
                    log.exception("commit failed")
                for _, future in group:
                    future.set_exception(error)
                continue
            for (_, future), result in zip(group, committed, strict=True):
                future.set_result(result)

    def _taken(self) -> list[Pending]:
        group: list[Pending] = []
        events = size = 0
        while self._waiting and (
            not group or events + len(self._waiting[0][0]) <= GROUP_EVENTS_MAX
        ):
            group.append(self._waiting.popleft())
            events += len(group[-1][0])
            size += group[-1][0].size_bytes
        self._events -= events
        self._bytes -= size
        self._changed.notify_all()
        return group

    def _without_collisions(self, group: list[Pending]) -> list[Pending]:
        """Returns the batches that can be committed; the futures of the others get their errors."""
        users: dict[bytes, str] = {}
        errors = [self._tier.collision(batch, users) if batch.texts else None for batch, _ in group]
        for (_, future), error in zip(group, errors, strict=True):
            if error is not None:
                future.set_exception(error)
        return [pair for pair, error in zip(group, errors, strict=True) if error is None]

    def _renew(self) -> None:
        try:
            self._tier.renew_lease()
        except StoreError:
            return  # the caller that needs the disk gets the error
        except Exception:
            log.exception("renewing the lease failed")
