"""Thin rows as record batches: of files, or of a table in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.io_errors import first_line
from thinrow.core.files.parquet import joined_batches
from thinrow.core.files.rows import check, other_columns, thin_row_files, to_thin_rows
from thinrow.core.files.tables import is_named, table_name, to_reader
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa
    from thinrow.core.files.paths import Named
    from thinrow.core.files.tables import Rows
    from thinrow.core.pointers import ThinRows

__all__ = ["POINTER_COLUMNS", "RowBatches", "chosen_columns", "open_rows"]

POINTER_COLUMNS = ("user_id", "request_ts", "uih", "mutable")
"""Columns that every lookup needs."""


@dataclass(frozen=True, slots=True)
class RowBatches:
    """Thin rows, and the other columns that come with their histories."""

    name: str
    """Name of the rows in errors."""
    schema: pa.Schema
    """The other columns, user_id and request_ts among them, if they were chosen."""
    batches: Iterable[tuple[object, pa.RecordBatch]]
    """All columns of some rows, and the name of their file."""

    def split(self) -> Iterator[tuple[ThinRows, pa.Table]]:
        """Yields the thin rows of each batch, and its other columns."""
        pa = load_pyarrow()
        for name, batch in self.batches:
            others = pa.Table.from_batches([batch.select(self.schema.names)], self.schema)
            yield to_thin_rows(name, batch), others


def open_rows(rows: Rows, columns: Sequence[str] | None, examples: int) -> RowBatches:
    """Opens thin rows, to be read in their order, each time at most `examples`.

    Args:
        rows: Files, folders, globs, or URLs of either, one or several; or a table in memory.
        columns: Other columns that come with the histories. None: all.
        examples: Most rows of a batch.

    Raises:
        InputError: There is no file, one holds no thin rows, or there is no such column.
        UsageError: The rows are neither names nor a table.
    """
    pa = load_pyarrow()
    if not is_named(rows):
        name, reader = table_name(rows), to_reader(rows)
        check(name, reader.schema)
        names = chosen_columns(reader.schema, columns)
        chosen = pa.schema([reader.schema.field(each) for each in names])
        return RowBatches(name, chosen, of_table(name, reader, examples))
    files = thin_row_files(cast("Named", rows))
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} other files"
    if columns is None:
        schema, batches = joined_batches(files, examples)
    else:
        # A file that lacks one of them is named by `joined_batches`.
        wanted = dict.fromkeys((*POINTER_COLUMNS, *as_names(columns)))
        schema, batches = joined_batches(files, examples, list(wanted))
    chosen = pa.schema([schema.field(each) for each in chosen_columns(schema, columns)])
    return RowBatches(name, chosen, batches)


def of_table(
    name: str, reader: pa.RecordBatchReader, examples: int
) -> Iterator[tuple[object, pa.RecordBatch]]:
    """Yields slices of a table's batches."""
    pa = load_pyarrow()
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name} cannot be read to its end: {first_line(error)}.") from error
        for start in range(0, len(batch), examples):
            yield name, batch.slice(start, examples)


def chosen_columns(schema: pa.Schema, columns: Sequence[str] | None) -> list[str]:
    """Returns the names of the other columns that were chosen, in their order.

    Raises:
        InputError: There is no such column.
        UsageError: The columns are one text.
    """
    others = other_columns(schema)
    wanted = others if columns is None else as_names(columns)
    for name in wanted:
        if name not in others:
            raise InputError(
                f"The thin rows have no column {name!r}; there are {', '.join(others)}."
            )
    return wanted


def as_names(columns: Sequence[str]) -> list[str]:
    """Returns names of columns without repetitions. Raises UsageError if they are one text."""
    if isinstance(columns, str):
        raise UsageError(
            f"columns is the text {columns!r}, but must be a list of names, such as [{columns!r}]."
        )
    return list(dict.fromkeys(columns))
