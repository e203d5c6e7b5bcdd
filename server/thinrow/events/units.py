"""Units of times, and numbers that are probably in another unit than milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from thinrow.errors import RequestError, UsageError
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "NS_PER",
    "NS_PER_MS",
    "PLAUSIBLE_FROM_TS",
    "PLAUSIBLE_UNTIL_TS",
    "UNIT_NAMES",
    "TimeUnit",
    "check_milliseconds",
    "check_typed",
    "check_watermark",
    "likely_unit",
    "other_unit",
]

TimeUnit = Literal["s", "ms", "us", "ns"]
PLAUSIBLE_FROM_TS = 631_152_000_000
"""1990-01-01, inclusive."""
PLAUSIBLE_UNTIL_TS = 4_102_444_800_000
"""2100-01-01, exclusive."""
NS_PER: dict[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
NS_PER_MS = NS_PER["ms"]
UNIT_NAMES: dict[str, str] = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
}


def likely_unit(ticks: int) -> TimeUnit | None:
    """Returns the unit in which a number is a time from 1990 to 2100; None where none is."""
    units: tuple[TimeUnit, ...] = ("s", "ms", "us", "ns")
    for unit in units:
        if PLAUSIBLE_FROM_TS <= ticks * NS_PER[unit] // NS_PER_MS < PLAUSIBLE_UNTIL_TS:
            return unit
    return None


def check_typed(time_ts: int, option: str) -> None:
    """Refuses a time that was typed in another unit than milliseconds.

    Raises:
        UsageError: The number is a time from 1990 to 2100 in another unit.
    """
    unit = likely_unit(time_ts)
    if unit is not None and unit != "ms":
        right_ts = time_ts * NS_PER[unit] // NS_PER_MS
        raise UsageError(
            f"{option} {time_ts} is read as milliseconds and means {readable_time(time_ts)}; if "
            f"{UNIT_NAMES[unit]} were meant, give {right_ts} ({readable_time(right_ts)})."
        )


def check_watermark(watermark_ts: int) -> None:
    """Refuses a watermark in another unit than milliseconds, or so late that none can follow.

    Raises:
        UsageError: The watermark is probably a mistake.
    """
    check_typed(watermark_ts, "--watermark")
    if watermark_ts >= PLAUSIBLE_UNTIL_TS:
        raise UsageError(
            f"--watermark {watermark_ts} means {readable_time(watermark_ts)}, in milliseconds; no "
            f"generation could follow it, so give a time before 2100."
        )


def other_unit(times: NDArray[np.int64]) -> TimeUnit | None:
    """Returns the unit that most times are probably in; None where milliseconds may be right."""
    unit = likely_unit(int(np.median(times))) if len(times) else None
    return None if unit == "ms" else unit


def check_milliseconds(event_ts: NDArray[np.int64]) -> None:
    """Refuses times of one batch that are probably in another unit than milliseconds.

    Raises:
        RequestError: As another unit, their median is a time from 1990 to 2100.
    """
    unit = other_unit(event_ts)
    if unit is not None:
        raise RequestError(
            f"event_ts is in milliseconds, and as such most of these {len(event_ts)} events lie "
            f"near {readable_time(int(np.median(event_ts)))}; they look like {UNIT_NAMES[unit]}, "
            f"so convert them and append them again."
        )
