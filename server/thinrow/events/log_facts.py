"""Facts of a log's columns, from footers and a sample of bounded size, to propose a schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import conformed, plain_type
from thinrow.core.files.io_errors import first_line
from thinrow.core.files.nested import field_names, field_type, with_fields
from thinrow.core.files.parquet import open_parquet
from thinrow.errors import InputError
from thinrow.events.text_files import read_text, separator_of
from thinrow.schema.proposal import ColumnFacts, ProposedSchema, propose

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.core.files.parquet import ParquetTable
    from thinrow.core.files.paths import DataFile
    from thinrow.events.split import Progress

__all__ = ["SAMPLE_ROWS", "propose_schema"]

SAMPLE_ROWS = 1 << 17
"""Limit on the rows whose values are looked at."""
SAMPLE_PLACES = 64
"""Limit on the places of a log, evenly apart, from which the sample comes."""


def propose_schema(
    files: Sequence[DataFile], progress: Progress = lambda *_: None
) -> ProposedSchema:
    """Proposes a schema for a log.

    Absent values are counted by the footers of all files; values come from a sample of at most
    SAMPLE_ROWS rows, from places all over a log of Parquet, and from the start of each text file.

    Args:
        files: Parquet, CSV or TSV, one at least.
        progress: Receives the files and places read.

    Raises:
        InputError: A file cannot be read, types of a column differ, or there is no trait.
    """
    columns: dict[str, _Column] = {}
    rows = 0
    for number, file in enumerate(files):
        progress("Reading footers", number, len(files))
        if separator_of(file) is None:
            rows += _count(file, columns)
        else:
            rows += _add_text(file, columns, SAMPLE_ROWS // len(files))
    progress("Reading footers", len(files), len(files))
    for table in _samples([file for file in files if separator_of(file) is None], progress):
        names = [name for each in table.schema for name in field_names(each.type, each.name)]
        flat = with_fields(table, names)
        for name in names:
            columns[name].sample += flat.column(name).chunks
    return propose(
        str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more",
        [column.facts(name, rows) for name, column in columns.items()],
    )


@dataclass(slots=True)
class _Column:
    """The facts of one column that are known so far."""

    kind: pa.DataType
    where: DataFile
    present: int | None = 0
    """Values in all files, by their footers; None if one does not count them."""
    sample: list[pa.Array] = field(default_factory=list)

    def add(self, name: str, kind: pa.DataType, present: int | None, where: DataFile) -> None:
        """Adds a file's column. Raises InputError if its type is another one."""
        try:
            merged = pa.unify_schemas(
                [pa.schema([(name, plain_type(each))]) for each in (self.kind, kind)],
                promote_options="permissive",
            )
        except pa.ArrowException as error:
            raise InputError(
                f"{where} has {name} as {kind}, and {self.where} as {self.kind}; write both alike."
            ) from error
        self.kind = merged.field(0).type
        self.present = None if None in (self.present, present) else self.present + present  # type: ignore[operator]

    def facts(self, name: str, rows: int) -> ColumnFacts:
        """Returns the facts, and looks at the sample for them."""
        types = pa.types
        try:
            chunks = [conformed(each, self.kind) for each in self.sample if not _is_null(each)]
        except pa.ArrowException as error:
            raise InputError(
                f"{name} does not fit into {self.kind}, which the types of all files make up: "
                f"{first_line(error)}; write it alike in all."
            ) from error
        values = pa.chunked_array(chunks, self.kind).drop_null()
        distinct, lengths = None, None
        if types.is_large_list(self.kind) and len(values):
            found = pc.min_max(pc.list_value_length(values))
            lengths = found["min"].as_py(), found["max"].as_py()
        elif (
            len(values)
            and not types.is_nested(self.kind)
            and not isinstance(self.kind, pa.BaseExtensionType)
        ):
            distinct = len(values.unique())
        return ColumnFacts(
            name=name,
            kind=self.kind,
            rows=rows,
            absent=None if self.present is None else rows - self.present,
            sampled=len(values),
            sampled_absent=sum(map(len, self.sample)) - len(values),
            distinct=distinct,
            lengths=lengths,
            whole=types.is_floating(self.kind) and _is_whole(values),
            text=types.is_large_binary(self.kind) and _is_text(values),
        )


def _is_null(values: pa.Array) -> bool:
    return bool(pa.types.is_null(values.type))


def _is_whole(values: pa.ChunkedArray) -> bool:
    """Returns True if integers take these floats: NaN is absent there, and some are not exact."""
    exact_below = 2.0 ** (np.finfo(values.type.to_pandas_dtype()).nmant + 1)
    numbers = values.cast(pa.float64()).to_numpy()
    numbers = numbers[~np.isnan(numbers)]
    return bool(((np.trunc(numbers) == numbers) & (np.abs(numbers) < exact_below)).all())


def _is_text(values: pa.ChunkedArray) -> bool:
    try:
        values.cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def _count(file: DataFile, columns: dict[str, _Column]) -> int:
    """Adds a file's columns, with the values that its footer counts; returns its rows."""
    with open_parquet(file) as table:
        rows: int = table.metadata.num_rows
        for named in table.schema_arrow:
            nulls = _nulls(table, named)
            present = None if nulls is None else rows - nulls
            for name in field_names(named.type, named.name):
                kind = field_type(table.schema_arrow, name)
                assert kind is not None
                if pa.types.is_null(kind):  # such as a key that other folders have
                    present = 0
                _column(columns, name, kind, file).add(name, kind, present, file)
        return rows


def _add_text(file: DataFile, columns: dict[str, _Column], sampled: int) -> int:
    """Adds a text file's columns and its sample; returns the rows that were read."""
    table = read_text(file, n_rows=SAMPLE_ROWS, try_parse_dates=True).to_arrow()
    is_whole = len(table) < SAMPLE_ROWS
    for name, values in zip(table.column_names, table.columns, strict=True):
        present = len(values) - values.null_count if is_whole else None
        column = _column(columns, name, values.type, file)
        column.add(name, values.type, present, file)
        column.sample += values.slice(0, sampled).chunks
    return len(table)


def _column(columns: dict[str, _Column], name: str, kind: pa.DataType, file: DataFile) -> _Column:
    return columns.setdefault(name, _Column(plain_type(kind), file))


def _nulls(table: ParquetTable, named: pa.Field) -> int | None:
    """Counts a column's nulls by the footer; None where it does not say."""
    total = 0
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        for leaf in table.leaves(named.name):
            statistics = group.column(leaf).statistics
            if statistics is None or not statistics.has_null_count:
                return None
            total += statistics.null_count
    # What is null within a list or struct counts, too.
    return None if total and pa.types.is_nested(named.type) else total


def _samples(files: Sequence[DataFile], progress: Progress) -> Iterator[pa.Table]:
    """Yields rows of row groups evenly apart."""
    places = [(file, group) for file in files for group in range(_groups(file))]
    chosen = places[:: max(1, -(-len(places) // SAMPLE_PLACES))]
    for number, (file, group) in enumerate(chosen):
        progress("Reading a sample", number, len(chosen))
        with open_parquet(file) as table:
            for batch in table.iter_batches(SAMPLE_ROWS // len(chosen), row_groups=[group]):
                yield pa.table(batch)
                break
    if chosen:
        progress("Reading a sample", len(chosen), len(chosen))


def _groups(file: DataFile) -> int:
    with open_parquet(file) as table:
        return int(table.metadata.num_row_groups)
