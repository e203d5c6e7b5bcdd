"""Times, durations and names as options have them: texts, and Python's own types."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from thinrow.errors import UsageError

__all__ = ["duration_ms", "duration_text", "names_of", "time_ts"]

_MS_PER = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
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


def duration_ms(value: object) -> int:
    """Converts a duration to milliseconds.

    Args:
        value: A number and a unit (ms, s, m, h, d, w), or a timedelta of whole milliseconds.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(value, timedelta):
        span_ms, rest = divmod(value, timedelta(milliseconds=1))
        if span_ms >= 0 and not rest:
            return span_ms
    match = re.fullmatch(r"(\d+)(ms|s|m|h|d|w)", value) if isinstance(value, str) else None
    if match is None or int(match[1]) * _MS_PER[match[2]] > _INT64_MAX:
        raise UsageError(
            f"{value!r} is no duration; write a number and ms, s, m, h, d or w, such as 1d or 36h."
        )
    return int(match[1]) * _MS_PER[match[2]]


def duration_text(span_ms: int) -> str:
    """Writes milliseconds as `duration_ms` reads them, in the largest unit that is exact."""
    units = sorted(_MS_PER.items(), key=lambda unit: -unit[1])
    name, unit_ms = next(
        (name, unit_ms) for name, unit_ms in units if name != "w" and span_ms % unit_ms == 0
    )
    return f"{span_ms // unit_ms}{name}" if span_ms else "0ms"


def names_of(text: str) -> tuple[str, ...]:
    """Splits names at commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
