"""Folders of thin rows in parts, by a hash of their users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import rows_at
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.permissions import make_folder
from thinrow.core.runs import offsets_of
from thinrow.core.shards import PART_KEY, part_folder, shard_of
from thinrow.errors import InputError, UsageError
from thinrow.events.user_ids import UserIdReader
from thinrow.jobs.batch_files import read_batch, write_batches
from thinrow.jobs.shard_events import cut_by_events
from thinrow.jobs.thin_rows import thin_rows_writer, with_thin_columns
from thinrow.store.shard import fsync

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile
    from thinrow.core.ids import IdKind

__all__ = [
    "PART_FILE",
    "DividedRows",
    "ThinRowsFolder",
    "by_part",
    "byte_count",
    "check_no_part_column",
    "check_unused",
    "parts_of_users",
    "publish_folder",
    "write_part",
]

PART_FILE = "part-00000.parquet"
SPILL_BYTES = 256 << 20
"""Bytes of rows that are in memory before they are divided among parts, in a scratch file."""
GROUP_ROWS = 1 << 14
"""Rows in a row group."""


def check_unused(folder: Path) -> None:
    """Checks that a folder to be written does not exist, or is empty.

    Raises:
        UsageError: There is something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"There is something at {folder} already; name a new folder, or remove what is there."
        )


def check_no_part_column(files: Sequence[DataFile]) -> None:
    """Checks that rows have no column of the name that the folders of parts give them.

    Raises:
        InputError: A file has one.
    """
    for file in files:
        with open_parquet(file) as table:
            if PART_KEY in table.schema_arrow.names:
                raise InputError(
                    f"{file} has a column {PART_KEY}, which --row-parts makes of its folders; "
                    f"rename or remove the column."
                )


def parts_of_users(
    path: object, users: pa.ChunkedArray, kind: IdKind, parts: int
) -> NDArray[np.int64]:
    """Returns the part of each user.

    Args:
        path: Name of their origin, for errors.
        users: The users, as thin rows have them; shape (rows,).
        kind: Kind of the ids of users.
        parts: Number of parts.

    Returns:
        Shape (rows,), in [0, parts).
    """
    return shard_of(UserIdReader(kind).keys(path, users), parts)  # type: ignore[arg-type]


def by_part(table: pa.Table, kind: IdKind, parts: int) -> tuple[pa.Table, NDArray[np.int64]]:
    """Sorts rows by part; those of a part keep their order.

    Args:
        table: Thin rows.
        kind: Kind of the ids of users.
        parts: Number of parts.

    Returns:
        The rows, and the bounds of each part, shape (parts + 1,).
    """
    owners = parts_of_users("The thin rows", table.column("user_id"), kind, parts)
    order = np.argsort(owners, kind="stable")
    return rows_at(table, order), offsets_of(np.bincount(owners, minlength=parts))


def write_part(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes a file of thin rows in row groups of GROUP_ROWS rows, or of fewer with many events.

    Args:
        path: The file.
        schema: Its columns.
        tables: Its rows.

    Returns:
        The number of rows.
    """
    rows = 0
    with thin_rows_writer(path, schema) as writer:
        for group in _row_groups(schema, tables):
            writer.write_table(group, row_group_size=max(group.num_rows, 1))
            rows += group.num_rows
    return rows


def _row_groups(schema: pa.Schema, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Joins and cuts tables into row groups."""
    waiting = schema.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        *whole, last = _cut(waiting)
        yield from whole
        waiting = last
    if waiting.num_rows:
        yield waiting


def _cut(table: pa.Table) -> list[pa.Table]:
    """Cuts rows into row groups; the last one may be small."""
    carried = pc.list_value_length(table.column("mutable")).fill_null(0).to_numpy()
    found = []
    for first, last in cut_by_events(np.cumsum(carried), 0, table.num_rows):
        found += [
            table.slice(start, min(GROUP_ROWS, last - start))
            for start in range(first, last, GROUP_ROWS)
        ]
    return found or [table]


class DividedRows:
    """Thin rows, divided among the parts of their users, whose order they keep.

    Rows gather in memory up to SPILL_BYTES, and are then divided among parts in a scratch file.

    Args:
        scratch: An empty folder for scratch files.
        parts: Number of parts.
        kind: Kind of the ids of users.
    """

    def __init__(self, scratch: Path, parts: int, kind: IdKind) -> None:
        self.parts = parts
        self._scratch, self._kind = scratch, kind
        self._schema: pa.Schema | None = None
        self._waiting: list[pa.Table] = []
        self._byte_count = 0
        self._spilled: list[Path] = []

    @property
    def schema(self) -> pa.Schema:
        """The columns, once they are set."""
        assert self._schema is not None
        return self._schema

    def open(self, schema: pa.Schema) -> None:
        """Sets the columns, which the first rows set otherwise."""
        self._schema = self._schema or schema

    def write(self, rows: pa.Table, thin: pa.Table) -> None:
        """Takes rows, and `uih` and `mutable` from `thin` beside them."""
        table = with_thin_columns(rows, thin)
        self.open(table.schema)
        self._waiting.append(table)
        self._byte_count += table.nbytes
        if self._byte_count >= SPILL_BYTES:
            self._spill()

    def _spill(self) -> None:
        table, bounds = by_part(pa.concat_tables(self._waiting), self._kind, self.parts)
        path = self._scratch / f"rows-{len(self._spilled):06d}.arrow"
        write_batches(path, table, bounds)
        self._spilled.append(path)
        self._waiting, self._byte_count = [], 0

    def tables(self, part: int) -> Iterator[pa.Table]:
        """Yields the rows of a part, in their order; no table is empty."""
        if self._waiting:
            self._spill()
        tables = (read_batch(path, part) for path in self._spilled)
        yield from (table for table in tables if table.num_rows)

    def close(self) -> None:
        """Removes the scratch files."""
        for path in self._spilled:
            path.unlink()
        self._spilled = []


class ThinRowsFolder(DividedRows):
    """Thin rows in folders by the part of their user, whose order they keep. A context manager.

    At the end the files of parts are written one after another, so one is open at a time.

    Args:
        folder: The folder, which is made.
        scratch: An empty folder for scratch files.
        parts: Number of parts.
        kind: Kind of the ids of users.
    """

    def __init__(self, folder: Path, scratch: Path, parts: int, kind: IdKind) -> None:
        super().__init__(scratch, parts, kind)
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self._finish()

    def _finish(self) -> None:
        make_folder(self._folder)
        is_empty = True
        for part in range(self.parts):
            path = self._folder / part_folder(part) / PART_FILE
            filled = [*self.tables(part)]
            if filled or (is_empty and part == self.parts - 1):
                make_folder(path.parent)
                write_part(path, self.schema, filled)
                fsync(path)
                is_empty = False
        self.close()


def byte_count(place: Path) -> int:
    """Returns the bytes of a file, or of all files of a folder."""
    if place.is_dir():
        return sum(path.stat().st_size for path in place.rglob("*.parquet"))
    return place.stat().st_size


def publish_folder(new: Path, folder: Path) -> None:
    """Moves a folder to its place, in which nothing is; a crash leaves one or the other."""
    for path in new.iterdir():
        fsync(path)
    fsync(new)
    new.rename(folder)
    fsync(folder.parent)
