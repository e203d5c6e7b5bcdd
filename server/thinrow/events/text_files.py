"""Text files of a log: CSV and TSV, plain or compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
from thinrow.core.files.io_errors import first_line
from thinrow.core.files.paths import SUFFIXES, DataFile, data_files, located
from thinrow.errors import InputError

if TYPE_CHECKING:
    from thinrow.core.files.paths import Named

__all__ = ["log_files", "read_text", "separator_of"]

SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
"""Separators by extension."""


def log_files(named: Named) -> list[DataFile]:
    """Lists the files of a log, Parquet or text; errors as of `data_files`."""
    return data_files(named, (*SUFFIXES, *SEPARATORS))


def separator_of(file: DataFile) -> str | None:
    """Returns the separator of a text file; None for Parquet."""
    name = file.name.lower()
    return next((mark for suffix, mark in SEPARATORS.items() if name.endswith(suffix)), None)


def read_text(file: DataFile, **options: Any) -> pl.DataFrame:  # noqa: ANN401
    """Reads a text file, and adds the keys of its folders as columns.

    Args:
        file: The file.
        options: As `polars.read_csv` takes them.

    Raises:
        InputError: It cannot be read as text in columns.
    """
    path, filesystem = located(file.name)
    try:
        source = path if filesystem is None else filesystem.cat_file(path)
        separator = separator_of(file) or ","
        frame = pl.read_csv(source, separator=separator, infer_schema_length=None, **options)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{file} cannot be read as CSV: {first_line(error)}.") from error
    return frame.with_columns(pl.lit(value).alias(key) for key, value in file.keys)
