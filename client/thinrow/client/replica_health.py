"""The health of the replicas of one group, as one client sees it."""

from __future__ import annotations

import math
import time

__all__ = ["ReplicaHealth"]

FAILURE_S = 30.0
"""Time for which a replica that failed, or was silent, is requested last."""


class ReplicaHealth:
    """Ranks replicas: those that failed, or that are a generation behind, come last.

    Threads share it; each value is replaced whole, and a stale one only costs a worse choice.
    """

    def __init__(self, replicas: int) -> None:
        self._failed_s = [-math.inf] * replicas
        self._generations = [0] * replicas

    def failed(self, replica: int) -> None:
        """Records that a replica failed or was silent."""
        self._failed_s[replica] = time.monotonic()

    def answered(self, replica: int, generation: int) -> None:
        """Records that a replica works, and the generation that it serves."""
        self._failed_s[replica] = -math.inf
        self._generations[replica] = generation

    @property
    def generation(self) -> int:
        """The newest generation known; 0 if none is."""
        return max(self._generations)

    def has_failed(self, replica: int) -> bool:
        """Returns True if a replica failed, or was silent, recently."""
        return time.monotonic() - self._failed_s[replica] < FAILURE_S

    def is_last_choice(self, replica: int) -> bool:
        """Returns True if a replica failed recently or is behind another one."""
        return self._rank(replica) > (False, False)

    def best(self, after: int) -> int:
        """Returns the best replica; of equals the first one after `after`, itself the last."""
        count = len(self._failed_s)
        return min(((after + 1 + step) % count for step in range(count)), key=self._rank)

    def _rank(self, replica: int) -> tuple[bool, bool]:
        # One whose generation is unknown is not known to be behind.
        generation = self._generations[replica]
        return self.has_failed(replica), 0 < generation < self.generation
