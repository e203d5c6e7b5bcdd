"""Delayed rejections, which make clients that retry at once cost little.

A held call has no thread. Held calls end at a bounded pace, however many clients there are; beyond
HELD_MAX calls end at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from thinrow.access.concurrency_limit import RETRY_AFTER_MS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HELD_MAX", "PACE_MS", "DelayedRejections"]

HELD_MAX = 512
"""Rejections held at once."""
PACE_MS = 10
"""Interval between two rejections, so that sending them takes less than a tenth of a core."""


class DelayedRejections:
    """Holds rejections until they are due; ended by `close`. Thread-safe."""

    def __init__(self) -> None:
        self._held: deque[tuple[float, Callable[[], None]]] = deque()
        self._due_s = 0.0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="thinrow-rejections", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, end: Callable[[], None]) -> None:
        """Calls `end` once the rejection is due."""
        with self._changed:
            if not self._closed and len(self._held) < HELD_MAX:
                due_s = time.monotonic() + RETRY_AFTER_MS / 1000
                self._due_s = max(due_s, self._due_s + PACE_MS / 1000)
                self._held.append((self._due_s, end))
                self._changed.notify()
                return
        end()

    def close(self) -> None:
        """Ends all held calls, and later ones at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._closed)
                if not self._held:
                    return
                due_s, end = self._held[0]
                if self._changed.wait_for(lambda: self._closed, due_s - time.monotonic()):
                    due_s = 0.0
                self._held.popleft()
            end()
