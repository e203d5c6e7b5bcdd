"""The tier's clock: never backwards, not across restarts, and not before a promised moment.

Events arrive at the moment they are expected to be durable, a little after now. Thus requests need
not wait for the disk, unless a commit takes longer than recent ones did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from thinrow.errors import RequestError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.online.database import TierDatabase

__all__ = ["AHEAD_MS_MAX", "LEASE_MS", "HybridClock", "TierClock", "Wall", "wall_ts"]

Wall = Callable[[], int]
"""Returns the time, ms since the epoch. May jump either way."""
LEASE_MS = 1000
"""The clock issues times up to this far beyond the ceiling on disk, so that no restart issues them
again; after a crash the clock may stand still for this long."""
AHEAD_MS_MAX = 1000
"""Limit on how far a request or a watermark may lie ahead of the clock."""
LEAD_MS_MAX = 500
"""Limit on how long after now events arrive, however slow the disk."""
SLOWEST_DECAY = 0.98
"""Factor by which the duration of the slowest recent commit decays at each commit."""
_CEILING_KEY = b"mceiling"


def wall_ts() -> int:
    """Returns the machine's time, ms."""
    return time.time_ns() // 1_000_000


class HybridClock:
    """Issues times to requests and to arrivals. Not thread-safe: its owner locks.

    Args:
        wall: The clock on the wall.
        start_ts: Later than all times issued before.
    """

    def __init__(self, wall: Wall, start_ts: int) -> None:
        self._wall = wall
        self._now_ts = start_ts
        self.floor_ts = start_ts
        """No event arrives before this any more, ms."""

    def now_ts(self) -> int:
        """Returns the time, ms; never less than before."""
        self._now_ts = max(self._now_ts, self._wall())
        return self._now_ts

    def promise(self, until_ts: int) -> None:
        """Lets no event arrive before ``until_ts``."""
        self.floor_ts = max(self.floor_ts, until_ts)

    def arrival_ts(self, lead_ms: int) -> int:
        """Returns the arrival of events that are expected to be durable in ``lead_ms``."""
        self.floor_ts = max(self.floor_ts, self.now_ts() + lead_ms)
        return self.floor_ts


class Lease:
    """The ceiling on disk that all issued times stay below. Thread-safe."""

    def __init__(self, database: TierDatabase) -> None:
        self._database = database
        with database.reading():
            self.ceiling_ts = int(database.get(_CEILING_KEY) or 0)
            """Durable ceiling, later than all times issued, ms."""
        self._written_ts = self.ceiling_ts
        self._lock = threading.Lock()

    def write(self, ceiling_ts: int) -> None:
        """Writes a ceiling, unless another thread wrote a higher one."""
        with self._lock:
            self._written_ts = max(self._written_ts, ceiling_ts)
            self._database.put(_CEILING_KEY, b"%d" % self._written_ts)

    def confirm(self, ceiling_ts: int) -> None:
        """Records that a written ceiling is durable."""
        with self._lock:
            self.ceiling_ts = max(self.ceiling_ts, ceiling_ts)

    def renew(self, ceiling_ts: int) -> None:
        """Raises the ceiling, durably. Raises StoreError."""
        with self._database.storing():
            self.write(ceiling_ts)
            self._database.sync()
        self.confirm(ceiling_ts)

    def end(self, ceiling_ts: int) -> None:
        """Lowers the ceiling, so that the next start need not wait for the lease to pass."""
        with suppress(StoreError), self._database.storing(), self._lock:
            self.ceiling_ts = self._written_ts = ceiling_ts
            self._database.put(_CEILING_KEY, b"%d" % ceiling_ts)
            self._database.sync()


class TierClock:
    """The clock of a tier and of the commit in progress.

    Thread-safe, but for `commit`, which one thread enters.

    Args:
        wall: The clock on the wall.
        database: Keeps the lease.
        changed: The tier's lock; notified at the end of each commit.
        commit_lead_ms: Shortest time that a commit is expected to take; 0 if requests wait for
            commits.
    """

    def __init__(
        self, wall: Wall, database: TierDatabase, changed: threading.Condition, commit_lead_ms: int
    ) -> None:
        self._database = database
        self._changed = changed
        self._commit_lead_ms = commit_lead_ms
        self._lease = Lease(database)
        self._clock = HybridClock(wall, self._lease.ceiling_ts)
        self._committing_ts: int | None = None
        self._slowest_ms = 0.0

    def close(self) -> None:
        """Ends the lease, unless a write failed."""
        with self._changed:
            if self._database.failure is None:
                self._lease.end(max(self.floor_ts, self.now_ts) + 1)

    @property
    def now_ts(self) -> int:
        """The time, ms."""
        with self._changed:
            return self._clock.now_ts()

    @property
    def floor_ts(self) -> int:
        """No event arrives before this any more, ms."""
        return self._clock.floor_ts

    def renew_lease(self) -> None:
        """Keeps the lease ahead of the clock, while nothing is committed. Raises StoreError."""
        ceiling_ts = self.now_ts + LEASE_MS
        if ceiling_ts >= self._lease.ceiling_ts + LEASE_MS // 2:
            self._lease.renew(ceiling_ts)

    def promise(self, moment_ts: int, subject: str = "") -> int:
        """Lets no event arrive before a moment, and waits until those that did are durable.

        Args:
            moment_ts: The moment, ms; 0 for now.
            subject: Names the moment in errors; if empty, it may lie ahead of the clock.

        Returns:
            The moment.

        Raises:
            RequestError: The moment lies too far ahead of the clock.
            StoreError: The disk failed, so that earlier arrivals are unknown.
        """
        with self._changed:
            now_ts = self._clock.now_ts()
            moment_ts = moment_ts or now_ts
            if subject and moment_ts > now_ts + AHEAD_MS_MAX:
                raise RequestError(
                    f"{subject} lies {moment_ts - now_ts} ms ahead of this server's clock, which "
                    f"accepts at most {AHEAD_MS_MAX}; set the clocks, and give times in "
                    f"milliseconds."
                )
            self._clock.promise(moment_ts)
            if moment_ts >= self._lease.ceiling_ts:
                self._lease.renew(moment_ts + LEASE_MS)
            self.wait_committed(moment_ts)
            if self._database.failure is not None:
                raise self._database.failure
            return moment_ts

    def wait_committed(self, moment_ts: int) -> None:
        """Waits for the commit in progress if its events arrive before a moment.

        The caller holds the tier's lock.
        """
        while self._committing_ts is not None and self._committing_ts < moment_ts:
            self._changed.wait()

    @contextmanager
    def commit(self) -> Iterator[int]:
        """Yields the arrival_ts of events, which the block writes; they are durable at its end.

        Raises:
            StoreError: The disk failed, now or before.
        """
        started_s = time.monotonic()
        with self._changed:
            self._database.require_healthy()
            arrival_ts = self._committing_ts = self._clock.arrival_ts(self._lead_ms())
        try:
            with self._database.storing():
                # Before the events, so that a log torn after some of them still has it.
                self._lease.write(arrival_ts + LEASE_MS)
                yield arrival_ts
                self._database.sync()
            self._lease.confirm(arrival_ts + LEASE_MS)
            took_ms = 1000 * (time.monotonic() - started_s)
            self._slowest_ms = max(SLOWEST_DECAY * self._slowest_ms, took_ms)
        finally:
            with self._changed:
                self._committing_ts = None
                self._changed.notify_all()

    def _lead_ms(self) -> int:
        """Returns how long a commit may take: twice as long as the slowest recent one.

        Requests, which need what arrived before them, then seldom wait.
        """
        least_ms = self._commit_lead_ms
        return max(least_ms, min(round(2 * self._slowest_ms), LEAD_MS_MAX)) if least_ms else 0
