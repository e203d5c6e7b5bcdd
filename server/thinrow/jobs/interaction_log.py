"""A raw interaction log: from CSV, Parquet or a table in memory to one frame of its columns.

Memory holds the log. Its order is that of the files' names, then of their rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import polars as pl
import pyarrow as pa
from thinrow.core.files.arrow import plain, plain_schema
from thinrow.core.files.io_errors import first_line
from thinrow.core.files.parquet import joined_batches
from thinrow.core.files.paths import DataFile, Named
from thinrow.core.files.tables import Table, is_table, table_name, to_table
from thinrow.errors import InputError
from thinrow.events.text_files import log_files, read_text, separator_of
from thinrow.events.time_columns import TimeReader
from thinrow.events.units import TimeUnit, likely_unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.events.split import Progress

__all__ = ["LOG_ROWS_MAX", "InteractionLog", "LogColumns", "read_log"]

READ_ROWS = 1 << 18
LOG_ROWS_MAX = 1 << 30
"""Limit on the interactions of a log, which memory holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogColumns:
    """Names of the columns of a log that every interaction has."""

    user: str
    item: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InteractionLog:
    """The interactions of a log, in its order."""

    name: str
    """Name of the log in errors."""
    rows: pl.DataFrame
    """Columns ``user``, ``item``, ``event_ts`` (int64 ms), ``finer_ns`` (int32), without nulls."""
    others: pl.DataFrame
    """The other columns of the log, in the same order."""
    time_unit: TimeUnit | None
    """Unit of its times, where they are integers."""


def read_log(
    events: Named | Table, columns: LogColumns, time_unit: TimeUnit | None, progress: Progress
) -> InteractionLog:
    """Reads a log.

    Args:
        events: Files, folders, globs or URLs of CSV or Parquet, or a table in memory.
        columns: Names of its columns.
        time_unit: Unit of times that are integers; None to detect it.
        progress: Receives the files read.

    Raises:
        InputError: A column is missing or has nulls, or a file or its times cannot be used.
    """
    if is_table(events):
        name = table_name(events)
        log = _frame(to_table(events))
    else:
        files = log_files(cast("Named", events))
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        name = f"{files[0]}{more}"
        log = _read_files(files, columns, progress)
    options = {"--user": columns.user, "--item": columns.item, "--time": columns.time}
    if missing := {option: each for option, each in options.items() if each not in log.columns}:
        raise InputError(
            f"{name} has no column {', '.join(missing.values())}, but {', '.join(log.columns)}; "
            f"name the right one with {', '.join(missing)}."
        )
    for column in options.values():
        if nulls := log[column].null_count():
            raise InputError(
                f"{name}: {column} has {nulls} nulls; every interaction needs one, so leave these "
                f"rows out."
            )
    if not 0 < len(log) <= LOG_ROWS_MAX:
        raise InputError(f"{name} has {len(log)} interactions; give 1 to {LOG_ROWS_MAX}.")
    time = _times(log[columns.time])
    is_integer = pa.types.is_integer(time.type)
    unit = time_unit
    if unit is None and is_integer:
        unit = likely_unit(int(np.median(time.to_numpy())))
    times = TimeReader(unit)
    file = DataFile(name)
    event_ts, finer_ns = times.read(file, time, columns.time)
    times.finish(file)
    rows = {
        "user": _ids(name, log[columns.user]),
        "item": _ids(name, log[columns.item]),
        "event_ts": pl.Series(event_ts.to_numpy(), dtype=pl.Int64),
        "finer_ns": pl.Series(finer_ns.to_numpy(), dtype=pl.Int32),
    }
    return InteractionLog(
        name=name,
        rows=pl.DataFrame(rows),
        others=log.drop(columns.user, columns.item, columns.time),
        time_unit=unit if is_integer else None,
    )


def _read_files(files: Sequence[DataFile], columns: LogColumns, progress: Progress) -> pl.DataFrame:
    frames = []
    parquet = [file for file in files if separator_of(file) is None]
    if parquet:
        schema, batches = joined_batches(parquet, READ_ROWS)
        frames.append(_frame(pa.Table.from_batches((each for _, each in batches), schema)))
    for done, file in enumerate((file for file in files if file not in parquet), len(parquet)):
        progress("Reading the log", done, len(files))
        frames.append(_read_csv(file, columns))
    progress("Reading the log", len(files), len(files))
    for file, frame in zip(files[-len(frames) :], frames, strict=True):
        if set(frame.columns) != set(frames[0].columns):
            raise InputError(
                f"{file} has the columns {', '.join(frame.columns)}, and another file "
                f"{', '.join(frames[0].columns)}; give files of one log."
            )
    try:
        return pl.concat(
            [frame.select(frames[0].columns) for frame in frames], how="vertical_relaxed"
        )
    except pl.exceptions.PolarsError as error:
        raise InputError(f"The files of the log differ in a type: {first_line(error)}.") from error


def _read_csv(file: DataFile, columns: LogColumns) -> pl.DataFrame:
    """Reads a text file; ids are texts, so that 007 is not 7."""
    texts = {columns.user: pl.String, columns.item: pl.String}
    frame = read_text(file, schema_overrides=texts)
    read = [
        _numbers_if_exact(column) if column.name in texts else _times_if_all(column)
        for column in frame.select(pl.col(pl.String).exclude([key for key, _ in file.keys]))
    ]
    return frame.with_columns(read)


def _numbers_if_exact(texts: pl.Series) -> pl.Series:
    """Converts texts that are all integers as people write them to int64."""
    numbers = texts.cast(pl.Int64, strict=False)
    return numbers if numbers.cast(pl.String).equals(texts) else texts


def _times_if_all(texts: pl.Series) -> pl.Series:
    """Converts texts that are all dates or times.

    The reader's own way, `try_parse_dates`, takes minutes for millions of rows.
    """
    try:
        times = texts.str.to_datetime(strict=False)
    except pl.exceptions.PolarsError:  # the first one is none
        return texts
    return times if times.null_count() == texts.null_count() < len(texts) else texts


def _frame(table: pa.Table) -> pl.DataFrame:
    schema = plain_schema(table.schema)
    frame = pl.from_arrow(pa.table([plain(column) for column in table.columns], schema))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _times(column: pl.Series) -> pa.ChunkedArray:
    """Returns a column of times as TimeReader takes them: dates and whole floats have no unit."""
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("ms"))
    elif column.dtype.is_float() and (column == column.round()).all():
        column = column.cast(pl.Int64, strict=False)
    elif column.dtype.is_integer() and column.dtype != pl.UInt64:
        column = column.cast(pl.Int64)
    return pa.chunked_array([column.to_arrow()])


def _ids(name: str, column: pl.Series) -> pl.Series:
    """Returns ids as integers or texts."""
    if column.dtype.is_integer() or column.dtype == pl.String:
        return column
    raise InputError(
        f"{name}: {column.name} is {column.dtype}; ids are integers or texts, so convert it."
    )
