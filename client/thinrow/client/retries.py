"""Patience with replicas, and retries of requests."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

from thinrow.errors import ThinRowError, TooManyCallsError, UnavailableError

if TYPE_CHECKING:
    from thinrow.client.config import ClientConfig
    from thinrow.client.transport import Transport

__all__ = ["Patience", "Retries"]

log = logging.getLogger("thinrow.client")


class Patience:
    """Divides the deadline of one request among the replicas."""

    def __init__(self, transport: Transport, deadline_s: float) -> None:
        self._transport = transport
        self._deadline_s = deadline_s
        self.reset()

    def reset(self) -> None:
        """Starts over after a response."""
        self._silent: set[int] = set()
        self._waited_s = 0.0

    def timeout_s(self, replica: int) -> float:
        """Returns the time to wait for this replica's response."""
        left_s = max(self._deadline_s - self._waited_s, 0.0)
        others = self._others(replica)
        if not others:
            return left_s
        return min(self._transport.config.silence_timeout_s, left_s / (others + 1))

    def has_other(self, replica: int) -> bool:
        """Returns True if a replica besides this one has not exceeded its time."""
        return self._others(replica) > 0

    def _others(self, replica: int) -> int:
        return len(set(range(len(self._transport.targets))) - self._silent - {replica})

    def is_silent(self, replica: int, waited_s: float) -> bool:
        """Records that a replica exceeded its time; returns True if another one may try."""
        self._silent.add(replica)
        self._waited_s += waited_s
        targets = self._transport.targets
        more = len(self._silent) < len(targets) and self._waited_s < self._deadline_s
        if more:
            log.warning(
                "No answer came from %s in %.3g s; trying the next replica.",
                targets[replica],
                waited_s,
            )
        return more


class Retries:
    """Paces and bounds the retries since the last response: exponential backoff, full jitter."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Starts over after a response."""
        self._pause_s_max = self._config.backoff_initial_s
        self._give_up_s: float | None = None

    def pause(self, failure: ThinRowError) -> bool:
        """Waits before the next attempt.

        A request may be repeated if no server answered, or if one at a limit rejected it with a
        hint; the pause is then at least as long as the hint.

        Returns:
            False, without waiting, if no time is left or a retry cannot help.
        """
        at_least_s = 0.0
        if isinstance(failure, TooManyCallsError) and failure.retry_after_ms is not None:
            at_least_s = failure.retry_after_ms / 1000
        elif not isinstance(failure, UnavailableError):
            return False
        now_s = time.monotonic()
        if self._give_up_s is None:
            self._give_up_s = now_s + self._config.retry_deadline_s
            log.warning("%s Retrying for %g s.", failure, self._config.retry_deadline_s)
        pause_s = at_least_s + random.uniform(0, self._pause_s_max)
        if now_s + pause_s >= self._give_up_s:
            return False
        self._pause_s_max = min(2 * self._pause_s_max, self._config.backoff_max_s)
        time.sleep(pause_s)
        return True
