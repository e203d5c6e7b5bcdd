"""Thin rows as groups that are read one at a time: row groups of files, or parts of a table."""

from __future__ import annotations

import hashlib
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from thinrow.core.files.arrow import (
    conformed_batch,
    is_list_of_any_length,
    joint_schema,
    leaf_count,
    load_pyarrow,
    one_batch,
    plain,
    plain_type,
)
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import data_files
from thinrow.core.files.row_filter import known_of_key, known_of_range
from thinrow.core.files.rows import check, fields, leaves_of, snapshots_type
from thinrow.core.files.tables import table_name, to_table
from thinrow.core.files.user_columns import user_words
from thinrow.core.shards import PART_KEY, PARTS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    import pyarrow.compute as pc
    from numpy.typing import NDArray
    from thinrow.core.files.parquet import ParquetTable
    from thinrow.core.files.paths import DataFile, Named

__all__ = [
    "FileGroups",
    "RowGroups",
    "TableGroups",
    "all_columns",
    "conformed_rows",
    "joint_columns",
]

log = logging.getLogger("thinrow.loader")

FOOTER_THREADS_MAX = 16
"""Footers read at once; most of the time goes to waiting for a remote store."""
TABLE_GROUP_ROWS = 4096
"""Rows of a group of a table. An order of groups mixes a table the better the smaller they are."""
VALUE_BYTES = 8
POINTER = ("start_ts", "end_ts", "max_length", "digest")


class RowGroups(Protocol):
    """Groups of thin rows: those of one part (a file, a table) are numbered consecutively."""

    names: list[str]
    """Names of the parts in errors."""
    schemas: list[pa.Schema]
    """Columns of each part."""
    parts: NDArray[np.int64]
    """Shape (groups,): the part of each group."""
    rows: NDArray[np.int64]
    """Shape (groups,): rows of each group."""
    size: int
    """Bytes of all rows, as they are stored."""
    fingerprint: str
    """Names the rows, wherever they lie."""
    row_parts: NDArray[np.int64] | None
    """Shape (groups,): the part of the users of each group, if files are in parts by user."""

    def batches(
        self, groups: Sequence[int], schema: pa.Schema, rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields rows of groups of one part in order, at most `rows` at a time, and their group.

        The batches have the schema's columns, in the part's own types.
        """

    def known(self, part: int, schema: pa.Schema) -> list[pc.Expression]:
        """Returns what statistics say of all rows of each group of a part."""


class Footer(NamedTuple):
    """The part of a file's footer that planning needs."""

    schema: pa.Schema
    group_rows: list[int]
    group_bytes: list[int]


class FileGroups:
    """The row groups of Parquet files: RowGroups.

    The constructor reads all footers once; copies for other processes include them.

    Raises:
        InputError: There is no file, or one holds no thin rows.
    """

    def __init__(self, paths: Named) -> None:
        self._files = data_files(paths)
        self.names = [file.name for file in self._files]
        threads = min(FOOTER_THREADS_MAX, len(self.names))
        with ThreadPoolExecutor(threads, thread_name_prefix="thinrow-footers") as pool:
            footers = list(pool.map(read_footer, self._files))
        self.schemas = [footer.schema for footer in footers]
        self.size = sum(sum(footer.group_bytes) for footer in footers)
        counts = [len(footer.group_rows) for footer in footers]
        self.parts = np.repeat(np.arange(len(footers)), counts)
        row_parts = parts_of_files(self._files)
        self.row_parts = None if row_parts is None else np.repeat(row_parts, counts)
        self.fingerprint = fingerprint(self.names, footers, row_parts)
        self._places = np.concatenate([np.arange(count) for count in counts])
        self.rows = np.array([rows for footer in footers for rows in footer.group_rows], np.int64)

    def batches(
        self, groups: Sequence[int], schema: pa.Schema, rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields rows of one file, which is opened once; see RowGroups."""
        with open_parquet(self._files[self.parts[groups[0]]]) as file:
            leaves = leaves_of(file, schema)
            for group in groups:
                place = [int(self._places[group])]
                for batch in file.iter_batches(
                    rows, row_groups=place, columns=schema.names, leaves=leaves
                ):
                    yield group, batch

    def known(self, part: int, schema: pa.Schema) -> list[pc.Expression]:
        """Returns what statistics and keys of folders say; see RowGroups."""
        arrow = load_pyarrow()
        file, groups = self._files[part], int(np.sum(self.parts == part))
        keys = dict(file.keys) | {key: None for key in file.other_keys if key in schema.names}
        always = arrow.compute.scalar(True)
        for name, value in keys.items():
            if name in schema.names:
                always &= known_of_key(schema.field(name), value)
        if set(schema.names) <= set(keys):
            return [always] * groups
        with open_parquet(file) as table:
            return [always & known_of_group(table, group, schema) for group in range(groups)]


class TableGroups:
    """A table in memory, cut into groups: RowGroups.

    Args:
        rows: See `to_table`.

    Raises:
        InputError: The table holds no thin rows.
    """

    def __init__(self, rows: object) -> None:
        self.names = [table_name(rows)]
        self._table: pa.Table = to_table(rows).replace_schema_metadata(None)
        check(self.names[0], self._table.schema)
        self.schemas = [self._table.schema]
        starts = range(0, len(self._table), TABLE_GROUP_ROWS)
        self.rows = np.array(
            [min(TABLE_GROUP_ROWS, len(self._table) - start) for start in starts], np.int64
        )
        self.parts = np.zeros(len(self.rows), np.int64)
        self.size = table_size(self._table)
        self.row_parts: NDArray[np.int64] | None = None
        self.fingerprint = self._fingerprint()

    def batches(
        self, groups: Sequence[int], schema: pa.Schema, rows: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields rows of the table; see RowGroups."""
        table = self._table.select(schema.names)
        for group in groups:
            batch = one_batch(table.slice(group * TABLE_GROUP_ROWS, TABLE_GROUP_ROWS))
            for first in range(0, len(batch), rows):
                yield group, batch.slice(first, rows)

    def known(self, part: int, schema: pa.Schema) -> list[pc.Expression]:
        """Returns that nothing is known: a table has no statistics."""
        del part, schema
        return [load_pyarrow().compute.scalar(True)] * len(self.rows)

    def _fingerprint(self) -> str:
        """Returns a hash of all users, request times and pointers, whatever their layout."""
        digest = hashlib.sha256(repr(sorted(self._table.schema.names)).encode())
        pointers = [fields(plain(chunk)) for chunk in self._table["uih"].chunks]
        for chunk in self._table["user_id"].chunks:
            digest.update(user_words(chunk).data)
        columns = [plain(self._table["request_ts"]).chunks]
        columns += [[chunk[name] for chunk in pointers] for name in POINTER]
        for chunk in itertools.chain.from_iterable(columns):
            numbers = chunk.fill_null(0).to_numpy().astype(np.int64, copy=False)
            digest.update(np.ascontiguousarray(numbers).data)
        return digest.hexdigest()[:16]


def table_size(table: pa.Table) -> int:
    """Returns the bytes of a table's numbers, whatever their layout: an order depends on it."""
    compute = load_pyarrow().compute
    counts = {field.name: leaf_count(plain_type(field.type)) for field in table.schema}
    of_events = counts.pop("mutable")
    # A dictionary of lists has no lengths; lists of texts take long to convert.
    lists = (
        chunk if is_list_of_any_length(chunk.type) else plain(chunk)
        for chunk in table["mutable"].chunks
    )
    events = sum(
        compute.sum(compute.list_value_length(each)).as_py() or 0
        for each in lists
        if is_list_of_any_length(each.type)
    )
    return VALUE_BYTES * (len(table) * sum(counts.values()) + events * of_events)


def all_columns(groups: RowGroups) -> pa.Schema:
    """Returns the columns of all parts, as the first part with each has it."""
    fields: dict[str, pa.Field] = {}
    for schema in groups.schemas:
        for field in schema:
            fields.setdefault(field.name, field)
    return load_pyarrow().schema(list(fields.values()))


def joint_columns(groups: RowGroups, names: Sequence[str]) -> pa.Schema:
    """Returns the types of columns, in the one layout, that all parts have in common.

    Raises:
        InputError: A part lacks a column, or holds it in another type than the first.
    """
    schema = joint_schema(groups.names, groups.schemas, names)
    place = schema.get_field_index("mutable")
    if place < 0:
        return schema
    mutable = snapshots_type(schema.field(place).type)
    return schema.set(place, load_pyarrow().field("mutable", mutable))


def conformed_rows(
    path: str, batch: pa.RecordBatch, places: NDArray[np.int64], schema: pa.Schema
) -> pa.RecordBatch:
    """Returns the rows at ascending places of a batch, in the types of a schema."""
    first, count = int(places[0]), len(places)
    if int(places[-1]) - first + 1 == count:
        return conformed_batch(path, batch.slice(first, count), schema)
    # Arrow selects no rows of every layout, so they come into the one layout first.
    return conformed_batch(path, batch, schema).take(load_pyarrow().array(places))


def read_footer(file: DataFile) -> Footer:
    """Reads a file's footer.

    Raises:
        InputError: The file holds no thin rows.
    """
    with open_parquet(file) as table:
        check(file, table.schema_arrow)
        metadata = table.metadata
        groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
        return Footer(
            table.schema_arrow.remove_metadata(),
            [group.num_rows for group in groups],
            [group.total_byte_size for group in groups],
        )


def known_of_group(table: ParquetTable, group: int, schema: pa.Schema) -> pc.Expression:
    """Returns what the statistics of a row group say of its rows."""
    known = load_pyarrow().compute.scalar(True)
    row_group = table.metadata.row_group(group)
    for field in schema:
        leaves = table.leaves(field.name)
        if len(leaves) != 1 or table.metadata.schema.column(leaves[0]).max_repetition_level:
            continue
        statistics = row_group.column(leaves[0]).statistics
        if statistics is None or not statistics.has_min_max:
            continue
        has_nulls = not statistics.has_null_count or statistics.null_count > 0
        of_field = known_of_range(field, statistics.min, statistics.max, has_nulls=has_nulls)
        known = known if of_field is None else known & of_field
    return known


def parts_of_files(files: Sequence[DataFile]) -> NDArray[np.int64] | None:
    """Returns the part of the users of each file, shape (files,); None if one has none."""
    keys = [dict(file.keys).get(PART_KEY) for file in files]
    found = [part for part in keys if isinstance(part, int) and 0 <= part < PARTS_MAX]
    if len(found) == len(files):
        return np.array(found, np.int64)
    if found:
        log.warning(
            "%d of %d files of thin rows have no part=NNNN folder, so no rank gets whole parts.",
            len(files) - len(found),
            len(files),
        )
    return None


def fingerprint(
    paths: Sequence[str], footers: Sequence[Footer], row_parts: NDArray[np.int64] | None
) -> str:
    """Returns a fingerprint of a list of files, independent of their folders but for parts."""
    digest = hashlib.sha256(b"" if row_parts is None else row_parts.astype("<i8").tobytes())
    for path, footer in zip(paths, footers, strict=True):
        summary = (path.rsplit("/", 1)[-1], footer.group_rows, footer.group_bytes)
        digest.update(repr(summary).encode())
    return digest.hexdigest()[:16]
