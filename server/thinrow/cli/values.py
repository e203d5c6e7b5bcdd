"""Times, durations and names as they are written on the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import typer

__all__ = ["duration_text", "parse_duration", "parse_names", "parse_time"]

_MS_PER = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_INT64_MAX = 2**63 - 1


def parse_time(text: str) -> int:
    """Milliseconds since the epoch, or ISO 8601 (UTC unless it says otherwise), as int64 ms."""
    if re.fullmatch(r"-?\d+", text):
        time_ts = int(text)
        if abs(time_ts) > _INT64_MAX:
            raise typer.BadParameter(f"{text} does not fit into 64 bits.")
        return time_ts
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write milliseconds since the epoch, or 2026-01-31, or "
            f"2026-01-31T06:00:00Z."
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since_epoch = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (
        since_epoch.days * _MS_PER["d"]
        + since_epoch.seconds * 1000
        + (since_epoch.microseconds // 1000)
    )


def parse_duration(text: str) -> int:
    """A number and a unit (ms, s, m, h, d, w) as milliseconds."""
    match = re.fullmatch(r"(\d+)(ms|s|m|h|d|w)", text)
    if match is None or int(match[1]) * _MS_PER[match[2]] > _INT64_MAX:
        raise typer.BadParameter(
            f"{text!r} is no duration; write a number and ms, s, m, h, d or w, such as 1d or 36h."
        )
    return int(match[1]) * _MS_PER[match[2]]


def duration_text(span_ms: int) -> str:
    """Writes milliseconds as `parse_duration` reads them, in the largest unit that is exact."""
    units = sorted(_MS_PER.items(), key=lambda unit: -unit[1])
    name, unit_ms = next(
        (name, unit_ms) for name, unit_ms in units if name != "w" and span_ms % unit_ms == 0
    )
    return f"{span_ms // unit_ms}{name}" if span_ms else "0ms"


def parse_names(text: str) -> tuple[str, ...]:
    """Splits names at commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
