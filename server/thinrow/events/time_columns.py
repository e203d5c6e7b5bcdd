"""Time columns as users write them: any unit to milliseconds, and times that make no sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import shown_type
from thinrow.core.files.io_errors import first_line
from thinrow.errors import InputError
from thinrow.events.units import (
    NS_PER,
    NS_PER_MS,
    PLAUSIBLE_FROM_TS,
    PLAUSIBLE_UNTIL_TS,
    UNIT_NAMES,
    TimeUnit,
    likely_unit,
)
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from thinrow.core.files.paths import AnyFile

__all__ = [
    "TimeReader",
    "TimeSpan",
    "Times",
    "add_spans",
    "read_spans",
    "times_ms",
]

NARROW_BITS = 32
"""Integers of this size or less cannot hold milliseconds of this century."""


class Times(NamedTuple):
    """A time column in two parts."""

    ms: pa.ChunkedArray
    """int64 milliseconds since the epoch, rounded down."""
    finer_ns: pa.ChunkedArray
    """int32, the part finer than a millisecond, in [0, 1_000_000)."""


@dataclass(slots=True, kw_only=True)
class TimeSpan:
    """Range of the times of one column, and how many of them make sense."""

    count: int = 0
    earliest_ts: int = np.iinfo(np.int64).max
    latest_ts: int = np.iinfo(np.int64).min
    """Both are meaningless where ``count`` is 0."""
    earliest_plausible_ts: int | None = None
    latest_plausible_ts: int | None = None
    """The earliest and the latest from 1990 on and before 2100."""
    before: int = 0
    """Times before 1990."""
    after: int = 0
    """Times from 2100 on."""

    @staticmethod
    def of(times: NDArray[np.int64]) -> TimeSpan:
        """Measures an array of milliseconds."""
        if not len(times):
            return TimeSpan()
        span = TimeSpan(
            count=len(times),
            earliest_ts=int(times.min()),
            latest_ts=int(times.max()),
        )
        if span.earliest_ts >= PLAUSIBLE_FROM_TS and span.latest_ts < PLAUSIBLE_UNTIL_TS:
            span.earliest_plausible_ts, span.latest_plausible_ts = span.earliest_ts, span.latest_ts
            return span
        before, after = times < PLAUSIBLE_FROM_TS, times >= PLAUSIBLE_UNTIL_TS
        span.before, span.after = int(before.sum()), int(after.sum())
        plausible = times[~(before | after)]
        if len(plausible):
            span.earliest_plausible_ts = int(plausible.min())
            span.latest_plausible_ts = int(plausible.max())
        return span

    def add(self, other: TimeSpan) -> None:
        """Takes in the times of another span."""
        self.count += other.count
        self.earliest_ts = min(self.earliest_ts, other.earliest_ts)
        self.latest_ts = max(self.latest_ts, other.latest_ts)
        if self.earliest_plausible_ts is None or self.latest_plausible_ts is None:
            self.earliest_plausible_ts = other.earliest_plausible_ts
            self.latest_plausible_ts = other.latest_plausible_ts
        elif other.earliest_plausible_ts is not None and other.latest_plausible_ts is not None:
            self.earliest_plausible_ts = min(
                self.earliest_plausible_ts, other.earliest_plausible_ts
            )
            self.latest_plausible_ts = max(self.latest_plausible_ts, other.latest_plausible_ts)
        self.before += other.before
        self.after += other.after

    @property
    def outliers(self) -> int:
        """Times before 1990 or from 2100 on."""
        return self.before + self.after

    @property
    def start_ts(self) -> int | None:
        """Start of the data: the earliest plausible time, or the earliest where none is."""
        if self.earliest_plausible_ts is not None or not self.count:
            return self.earliest_plausible_ts
        return self.earliest_ts

    def __str__(self) -> str:
        if not self.count:
            return "none"
        return f"{readable_time(self.earliest_ts)} to {readable_time(self.latest_ts)}"


def add_spans(spans: dict[str, TimeSpan], more: Mapping[str, TimeSpan]) -> None:
    """Takes in the spans of other times, by column."""
    for name, span in more.items():
        spans.setdefault(name, TimeSpan()).add(span)


def read_spans(body: Mapping[str, Mapping[str, Any]]) -> dict[str, TimeSpan]:
    """Reads spans by column from their fields, as JSON keeps them."""
    return {name: TimeSpan(**span) for name, span in body.items()}


class TimeReader:
    """Reads the time columns of one run, all in one unit, and measures what it reads.

    Args:
        unit: Unit of integer columns; a timestamp column has its own. None: milliseconds, and
            times that are probably in another unit are refused.
    """

    def __init__(self, unit: TimeUnit | None = None) -> None:
        self.unit = unit
        self.spans: dict[str, TimeSpan] = {}
        """Times by column, of all files finished."""
        self._file: dict[str, tuple[pa.DataType, TimeSpan, int]] = {}

    def of_exports(self) -> TimeReader:
        """Returns a reader of files that an online tier exported: their times are milliseconds."""
        reader = TimeReader("ms")
        reader.spans = self.spans
        return reader

    def read(
        self, path: AnyFile, column: pa.ChunkedArray, name: str, *, nullable: bool = False
    ) -> Times:
        """Converts some rows of a column, exactly.

        Raises:
            InputError: It is neither an integer nor a timestamp, is too narrow for milliseconds,
                has times that do not fit into int64, or holds nulls and must not.
        """
        if column.null_count and not nullable:
            raise InputError(f"{path}: {name} has {column.null_count} nulls; every row needs one.")
        ticks, unit = self._ticks(path, column, name)
        times = _split(path, ticks, name, unit)
        known = times.ms.drop_null() if times.ms.null_count else times.ms
        span = TimeSpan.of(known.to_numpy())
        if span.count:
            whole = ticks.drop_null() if ticks.null_count else ticks
            middle = int(np.median(whole.to_numpy().astype(np.float64)))
            if name in self._file:
                _, total, middle = self._file[name]
                total.add(span)
                span = total
            self._file[name] = (column.type, span, middle)
        return times

    def finish(self, path: AnyFile) -> None:
        """Ends a file.

        Raises:
            InputError: The median of a column lies before 1990 or after 2100, and the unit given
                does not say that this is right.
        """
        for name, (kind, span, middle) in self._file.items():
            if 2 * max(span.before, span.after) > span.count:
                self._refuse(path, name, kind, span, middle)
            add_spans(self.spans, {name: span})
        self._file = {}

    def _ticks(
        self, path: AnyFile, column: pa.ChunkedArray, name: str
    ) -> tuple[pa.ChunkedArray, TimeUnit]:
        kind = column.type
        if pa.types.is_timestamp(kind):
            return column.cast(pa.int64()), kind.unit
        if not len(column):  # pandas gives columns of empty tables any type
            return pa.chunked_array([], pa.int64()), "ms"
        if not pa.types.is_integer(kind):
            raise InputError(
                f"{path}: {name} is {shown_type(kind)}; it must be int64 milliseconds or a "
                f"timestamp."
            )
        if self.unit is None and kind.bit_width <= NARROW_BITS:
            raise InputError(
                f"{path}: {name} is {kind}, which cannot hold milliseconds since 1970; give "
                f"--time-unit s if it holds seconds, or write int64 milliseconds or timestamps."
            )
        try:
            return column.cast(pa.int64()), self.unit or "ms"
        except pa.ArrowInvalid as error:
            reason = first_line(error)
            raise InputError(f"{path}: {name} does not fit into int64: {reason}.") from error

    def _refuse(
        self, path: AnyFile, name: str, kind: pa.DataType, span: TimeSpan, middle: int
    ) -> None:
        when = "before 1990" if span.before > span.after else "after 2100"
        if pa.types.is_timestamp(kind):
            if self.unit is None:
                raise InputError(
                    f"{path}: {name} is {kind}, and most of its times lie {when} ({span}); fix the "
                    f"job that wrote them, or give --time-unit ms if they are right."
                )
            return
        unit = self.unit or "ms"
        other = likely_unit(middle)
        if self.unit is None or (self.unit != "ms" and other is not None):
            advice = (
                f"they look like {UNIT_NAMES[other]}, so give --time-unit {other}" if other else ""
            )
            right = f"give --time-unit {unit} if they are right"
            if self.unit is not None and other is not None:
                # One unit is given for all files, such as requests beside events.
                right = "write this column as timestamps if other files are in another unit"
            advice = f"{advice}, or {right}" if advice else right
            raise InputError(
                f"{path}: {name} is {kind}, and as {UNIT_NAMES[unit]} most of its times lie {when} "
                f"({span}); {advice}."
            )


def times_ms(
    path: AnyFile,
    column: pa.ChunkedArray,
    name: str,
    *,
    unit: TimeUnit | None = None,
    nullable: bool = False,
) -> pa.ChunkedArray:
    """Converts a time column to int64 milliseconds; ``unit`` is that of integers.

    Raises:
        InputError: It is neither an integer nor a timestamp, or holds nulls and must not.
    """
    return TimeReader(unit or "ms").read(path, column, name, nullable=nullable).ms


def _split(path: AnyFile, ticks: pa.ChunkedArray, name: str, unit: TimeUnit) -> Times:
    """Milliseconds and the rest of times in a unit."""
    if unit == "s":
        try:
            ms = pc.multiply_checked(ticks, 1000)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{path}: {name} has times that do not fit into int64 milliseconds; correct them, "
                f"or the --time-unit."
            ) from error
    elif unit == "ms":
        ms = ticks
    else:
        per_ms = NS_PER_MS // NS_PER[unit]
        # Integer division rounds towards zero; times before 1970 must go down as well.
        whole = pc.divide(ticks, per_ms)
        below = pc.less(ticks, pc.multiply(whole, per_ms))
        ms = pc.subtract(whole, below.cast(pa.int64()))
        rest = pc.subtract(ticks, pc.multiply(ms, per_ms))
        return Times(ms, pc.multiply(rest, NS_PER[unit]).cast(pa.int32()))
    return Times(ms, pa.chunked_array([pa.array(np.zeros(len(ticks), np.int32))]))
