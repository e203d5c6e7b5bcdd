"""Refusals that are told late, so that who asks again at once costs little.

A call that is held has no thread. All together are told at a bounded pace, however many callers
there are; beyond HELD_MAX they are told at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from thinrow.access.limits import RETRY_AFTER_MS

if TYPE_CHECKING:
    from collections.abc import Callable

HELD_MAX = 512
"""Refusals held at once."""
PACE_MS = 10
"""Between two that are told: their work takes less than a tenth of a core."""


class DelayedRejections:
    """Holds refusals until they are due; ended by `close`."""

    def __init__(self) -> None:
        self._held: deque[tuple[float, Callable[[], None]]] = deque()
        self._due_s = 0.0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="thinrow-refusals", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, end: Callable[[], None]) -> None:
        """Ends a call once it is due."""
        with self._changed:
            if not self._closed and len(self._held) < HELD_MAX:
                due_s = time.monotonic() + RETRY_AFTER_MS / 1000
                self._due_s = max(due_s, self._due_s + PACE_MS / 1000)
                self._held.append((self._due_s, end))
                self._changed.notify()
                return
        end()

    def close(self) -> None:
        """Ends all that are held, and from now on at once."""
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
