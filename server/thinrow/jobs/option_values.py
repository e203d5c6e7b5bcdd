"""Times and names as options have them: texts, and Python's own types."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from thinrow.errors import UsageError

__all__ = ["names_of", "time_ts"]

_INT64_MAX = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_ts(value: object) -> int:
    """Converts a moment to int64 milliseconds since the epoch.

    Args:
        value: Milliseconds since the epoch, as an integer or its text; ISO 8601; a datetime; or a
            date, which is its midnight. Without a time zone they are UTC.

    Raises:
        UsageError: It is none of these.
    """
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _INT64_MAX:
            raise UsageError(f"{value} does not fit into 64 bits.")
        return value
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
    elif isinstance(value, date) and not isinstance(value, datetime):
        moment = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(moment, datetime):
        raise UsageError(
            f"{value!r} is no time; write milliseconds since the epoch, or 2026-01-31, or "
            f"2026-01-31T06:00:00Z."
        )
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def names_of(text: str) -> tuple[str, ...]:
    """Splits names at commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
