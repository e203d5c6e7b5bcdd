"""Tables in memory, of any library that shares Arrow data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.io_errors import first_line
from thinrow.core.files.paths import Named
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Rows", "Table", "is_named", "is_table", "table_name", "to_reader", "to_table"]


class Table(Protocol):
    """A table of any library that shares Arrow data by Arrow's PyCapsule interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Returns a capsule of the stream of the table's record batches."""


Rows: TypeAlias = Named | Table
"""Names of files, or rows in memory."""


def is_table(rows: object) -> bool:
    """Returns True for what `to_table` takes."""
    has_stream = hasattr(rows, "__arrow_c_stream__")
    return has_stream or _is_pandas(rows) or _is_hugging_face(rows) or _is_spark(rows)


def is_named(rows: object) -> bool:
    """Returns True for names of files, False for rows in memory.

    Raises:
        UsageError: The rows are neither.
    """
    if is_table(rows):
        return False
    if isinstance(rows, str | Path | list | tuple | set | frozenset | Iterator):
        return True
    raise UsageError(
        f"The rows are a {type(rows).__name__}, but must be a path, a list of paths, or a table in "
        f"memory; collect a lazy frame first."
    )


def table_name(rows: object) -> str:
    """Returns the name of a table in memory in errors."""
    return f"The {type(rows).__name__} in memory"


def to_table(rows: Any) -> pa.Table:  # noqa: ANN401 - any class with Arrow's protocol
    """Takes the data of a table in memory, without a copy where its library holds Arrow data.

    Args:
        rows: Any object with Arrow's PyCapsule stream (`__arrow_c_stream__`), such as a Table, a
            RecordBatch, a RecordBatchReader (which is read to its end) or a DataFrame of Polars; a
            DataFrame of pandas, whose index is left out; a `datasets.Dataset`; or a DataFrame of
            Spark, which its driver collects.

    Raises:
        InputError: The data is no table, or Arrow cannot hold it.
    """
    pa = load_pyarrow()
    try:
        if _is_pandas(rows):
            # A frame may change later, and Arrow would have its numbers where they lie.
            return pa.Table.from_pandas(rows.copy(), preserve_index=False)
        if _is_hugging_face(rows):
            return rows.with_format("arrow")[:]  # in the order of `select`, `shuffle` and `filter`
        if _is_spark(rows):
            return _collected(rows)
        return pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"{table_name(rows)} cannot be read as an Arrow table: {first_line(error)}."
        ) from error


def to_reader(rows: Any) -> pa.RecordBatchReader:  # noqa: ANN401
    """Opens a table in memory as a stream of record batches, of which none is copied.

    Args:
        rows: As `to_table` takes it. A RecordBatchReader is read as it is used, so that memory
            holds one of its batches.

    Raises:
        InputError: The data is no table, or Arrow cannot hold it.
    """
    pa = load_pyarrow()
    if _is_pandas(rows) or not hasattr(rows, "__arrow_c_stream__"):
        return to_table(rows).to_reader()
    try:
        return pa.RecordBatchReader.from_stream(rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"{table_name(rows)} cannot be read as an Arrow table: {first_line(error)}."
        ) from error


def _collected(rows: Any) -> pa.Table:  # noqa: ANN401
    """Collects a frame of Spark. Raises InputError where Spark cannot give Arrow data."""
    if not hasattr(rows, "toArrow"):
        raise InputError(
            "This version of Spark cannot hand a frame over as Arrow data; write it with "
            "df.write.parquet(FOLDER) and name the folder, or install pyspark 4 or later."
        )
    return rows.toArrow()


def _is_spark(rows: object) -> bool:
    return "pyspark.DataFrame" in _class_names(rows)


def _is_pandas(rows: object) -> bool:
    return "pandas.DataFrame" in _class_names(rows)


def _is_hugging_face(rows: object) -> bool:
    return "datasets.Dataset" in _class_names(rows)


def _class_names(rows: object) -> set[str]:
    """Returns the classes of an object as PACKAGE.CLASS, so that no package is imported."""
    return {f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in type(rows).__mro__}
