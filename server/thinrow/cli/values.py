"""Parsers of times and durations for the command line, which reports their errors as its own."""

from __future__ import annotations

import typer
from thinrow.errors import UsageError
from thinrow.jobs.option_values import time_ts
from thinrow.store.durations import duration_ms

__all__ = ["parse_duration", "parse_time"]


def parse_time(text: str) -> int:
    """Reads milliseconds since the epoch, or ISO 8601 (UTC unless it says otherwise)."""
    try:
        return time_ts(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def parse_duration(text: str) -> int:
    """Reads a number and a unit (ms, s, m, h, d, w) as milliseconds."""
    try:
        return duration_ms(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None
