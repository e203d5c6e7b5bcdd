"""Times as people read them, and the regular grid of watermarks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DAY_MS", "Cadence", "Times", "readable_time"]

Times = TypeVar("Times", int, "NDArray[np.int64]")

DAY_MS = 24 * 3600 * 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def readable_time(time_ts: int) -> str:
    """Milliseconds as RFC 3339 in UTC; the bare number where no calendar reaches."""
    try:
        moment = _EPOCH + timedelta(milliseconds=time_ts)
    except OverflowError:
        return str(time_ts)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Cadence:
    """A regular grid of watermarks: every whole multiple of a length, moved by an offset, UTC."""

    length_ms: int
    offset_ms: int = 0
    """Offset: at least 0 and less than the length."""

    def at_or_before(self, times: Times) -> Times:
        """Returns the last grid point at or before each time, ms."""
        return (times - self.offset_ms) // self.length_ms * self.length_ms + self.offset_ms

    def number(self, times: Times) -> Times:
        """Numbers the intervals of the grid from 0, the one that 1970 begins in; earlier times
        count as 1970."""
        since_zero: Times = np.maximum(times, 0) - self._zero_ts
        return since_zero // self.length_ms

    def start_of(self, number: Times) -> Times:
        """Returns where intervals begin, ms."""
        return number * self.length_ms + self._zero_ts

    @property
    def _zero_ts(self) -> int:
        return self.offset_ms - self.length_ms if self.offset_ms else 0

    def check(self, command: str) -> None:
        """Raises UsageError for values that make no sense."""
        if self.length_ms <= 0:
            raise UsageError(f"{command} needs --cadence longer than 0.")
        if not 0 <= self.offset_ms < self.length_ms:
            raise UsageError(f"{command} needs --cadence-offset shorter than --cadence.")
