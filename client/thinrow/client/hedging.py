"""The decision to repeat a request at another replica, within a budget."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Hedging"]

LATENCIES_MAX = 128
"""Latencies that are kept, the most recent ones."""
LATENCIES_MIN = 16
"""Latencies that are needed before their percentile counts."""
PERCENTILE = 0.95
UNKNOWN_LATENCY_S = 0.5
"""Replaces the percentile until enough latencies are known."""
SILENCE_S_MIN, SILENCE_LATENCIES = 0.5, 8.0
"""Silence after which a replica is left, if no budget remains: at least seconds, and a multiple of
the percentile."""
BUDGET_MAX = 16.0
"""Hedges that the budget may save up."""


class Hedging:
    """Latencies of one group's responses, and the budget of its hedges. Thread-safe.

    Each request adds a share to the budget, and each hedge takes 1 from it.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._budget = 1.0
        self._lock = threading.Lock()
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES_MAX)
        self._percentile_s: float | None = None

    def sent(self) -> None:
        """Records a request."""
        with self._lock:
            self._budget = min(BUDGET_MAX, self._budget + self._share)

    def answered(self, latency_s: float) -> None:
        """Records the time from a request to its response."""
        with self._lock:
            self._latencies_s.append(latency_s)
            self._percentile_s = None

    def acquire(self) -> bool:
        """Takes a hedge from the budget; returns False if it has none."""
        with self._lock:
            if self._budget < 1:
                return False
            self._budget -= 1
            return True

    @property
    def after_s(self) -> float:
        """Age of a request, seconds, at which it is repeated at another replica."""
        with self._lock:
            if self._percentile_s is None:
                known = sorted(self._latencies_s)
                if len(known) < LATENCIES_MIN:
                    return UNKNOWN_LATENCY_S
                self._percentile_s = known[int(PERCENTILE * (len(known) - 1))]
            return self._percentile_s

    @property
    def silence_s(self) -> float:
        """Silence, seconds, after which a replica is left without a hedge."""
        return max(SILENCE_S_MIN, SILENCE_LATENCIES * self.after_s)
