"""Durations as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

from thinrow.errors import UsageError

__all__ = ["duration_ms", "duration_text"]

_MS_PER = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_INT64_MAX = 2**63 - 1


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
