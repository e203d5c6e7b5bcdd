"""The tier's clock: the machine's, but never backwards, and never behind what was promised."""

from __future__ import annotations

import time
from collections.abc import Callable

Wall = Callable[[], int]
"""Tells the time, ms since the epoch. May jump either way."""


def wall_ts() -> int:
    """The machine's clock, ms."""
    return time.time_ns() // 1_000_000


class HybridClock:
    """Gives times to requests and to arrivals. Not thread-safe: its owner locks."""

    def __init__(self, wall: Wall, start_ts: int) -> None:
        """`start_ts` is later than every time given before."""
        self._wall = wall
        self._now_ts = start_ts
        self.floor_ts = start_ts
        """No event arrives before this any more, ms."""

    def now_ts(self) -> int:
        """The time, ms; never less than it was."""
        self._now_ts = max(self._now_ts, self._wall())
        return self._now_ts

    def promise(self, until_ts: int) -> None:
        """Lets no event arrive before `until_ts`."""
        self.floor_ts = max(self.floor_ts, until_ts)

    def arrival_ts(self, lead_ms: int) -> int:
        """When events arrive that are expected to be durable in `lead_ms`."""
        self.floor_ts = max(self.floor_ts, self.now_ts() + lead_ms)
        return self.floor_ts
