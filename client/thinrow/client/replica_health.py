"""The health of the replicas of one group, as one client sees it."""

from __future__ import annotations

import math
import time

__all__ = ["ReplicaHealth", "ServerHealth"]

FAILURE_S = 30.0
"""Time for which a replica that failed, or was silent, is requested last."""


class ServerHealth:
    """The health of one server. Threads share it; a stale value only costs a worse choice."""

    def __init__(self) -> None:
        self._failed_s = -math.inf

    def failed(self) -> None:
        """Records that the server failed or was silent."""
        self._failed_s = time.monotonic()

    def answered(self) -> None:
        """Records that the server works."""
        self._failed_s = -math.inf

    @property
    def has_failed(self) -> bool:
        """True if the server failed, or was silent, recently."""
        return time.monotonic() - self._failed_s < FAILURE_S


class ReplicaHealth:
    """Ranks replicas: those that failed, or that are a generation behind, come last.

    Threads share it; each value is replaced whole, and a stale one only costs a worse choice.
    """

    def __init__(self, replicas: int) -> None:
        self._servers = [ServerHealth() for _ in range(replicas)]
        self._generations = [0] * replicas

    def failed(self, replica: int) -> None:
        """Records that a replica failed or was silent."""
        self._servers[replica].failed()

    def answered(self, replica: int, generation: int) -> None:
        """Records that a replica works, and the generation that it serves."""
        self._servers[replica].answered()
        self._generations[replica] = generation

    @property
    def generation(self) -> int:
        """The newest generation known; 0 if none is."""
        return max(self._generations)

    def has_failed(self, replica: int) -> bool:
        """Returns True if a replica failed, or was silent, recently."""
        return self._servers[replica].has_failed

    def is_last_choice(self, replica: int) -> bool:
        """Returns True if a replica failed recently or is behind another one."""
        return self._rank(replica) > (False, False)

    def best(self, after: int) -> int:
        """Returns the best replica; of equals the first one after `after`, itself the last."""
        count = len(self._servers)
        return min(((after + 1 + step) % count for step in range(count)), key=self._rank)

    def _rank(self, replica: int) -> tuple[bool, bool]:
        # One whose generation is unknown is not known to be behind.
        generation = self._generations[replica]
        return self.has_failed(replica), 0 < generation < self.generation
