"""Files of thin rows: their row groups, shards and schema.

docs/guides/training.md has the contract.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch.distributed
from thinrow.client.torch.file_source import READ_ROWS, FileSource
from thinrow.client.torch.row_order import shuffled
from thinrow.core.files.arrow import (
    conformed_batch,
    joint_schema,
    leaf_count,
    load_pyarrow,
    plain_type,
)
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import data_files
from thinrow.core.files.rows import check, snapshots_type
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from thinrow.core.files.parquet import ParquetTable
    from thinrow.core.files.paths import DataFile, Named
    from thinrow.core.pointers import Projection

__all__ = ["RowFiles"]

FOOTER_THREADS_MAX = 16
"""Footers read at once; most of the time goes to waiting for a remote store."""

Order = Literal["users", "rows", "files"]
EVENT_TIMES = ("event_ts", "arrival_ts")
"""Fields of mutable events that are read for every projection."""


class Footer(NamedTuple):
    """The part of a file's footer that planning needs."""

    schema: pa.Schema
    group_rows: list[int]
    group_bytes: list[int]


class RowFiles:
    """Parquet files of thin rows, the order of their rows, and this trainer's rank among others.

    The constructor reads all footers once; copies for other processes include them.

    Args:
        paths: Files, folders, globs, or URLs of either that fsspec knows, one or several. They are
            sorted, and a file named twice counts once. Keys of Hive folders are columns.
        order: "users" groups a window's rows by user, users in seeded order; "rows" shuffles a
            window's rows; both shuffle row groups, too. "files" keeps the order of the files.
        seed: Seed of the shuffle; each epoch has another order.
        window_rows: Rows shuffled with each other, and held in memory.
        rank: Rank of this trainer. Default: that of torch.distributed if it is initialized when a
            pass begins, otherwise the environment's RANK, as torchrun sets it, otherwise 0.
        world_size: Number of trainers. Default: as for `rank`, with WORLD_SIZE, otherwise 1.

    Raises:
        InputError: There is no file, or one holds no thin rows.
        UsageError: An argument is out of its range.
    """

    def __init__(
        self,
        paths: Named,
        *,
        order: Order = "users",
        seed: int = 0,
        window_rows: int = 65_536,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if order not in ("users", "rows", "files"):
            raise UsageError(f"order is {order!r}, but must be 'users', 'rows' or 'files'.")
        if window_rows < 1:
            raise UsageError(f"window_rows is {window_rows}, but must be 1 or more.")
        if (rank is None) != (world_size is None):
            raise UsageError("Give both rank and world_size, or neither.")
        self._given_ranks: tuple[int, int] | None = None
        if rank is not None and world_size is not None:
            if not 0 <= rank < world_size:
                raise UsageError(f"rank is {rank}, but must be in 0..{world_size - 1}.")
            self._given_ranks = rank, world_size
        self._ranks_of_origin = 0, 1
        self.order, self.seed, self.window_rows = order, seed, window_rows
        self.files = data_files(paths)
        self.paths = [file.name for file in self.files]
        threads = min(FOOTER_THREADS_MAX, len(self.paths))
        with ThreadPoolExecutor(threads, thread_name_prefix="thinrow-footers") as pool:
            footers = list(pool.map(read_footer, self.files))
        self._schemas = [footer.schema for footer in footers]
        self.fingerprint = fingerprint(self.paths, footers)
        counts = [len(footer.group_rows) for footer in footers]
        self._group_files = np.repeat(np.arange(len(footers)), counts)
        self._group_places = np.concatenate([np.arange(count) for count in counts])
        self._group_rows = np.array(
            [rows for footer in footers for rows in footer.group_rows], np.int64
        )
        self._group_ids = np.cumsum(self._group_rows) - self._group_rows

    def __getstate__(self) -> dict[str, Any]:
        # A worker process has no process group, so its copy keeps the rank of its trainer.
        return {**vars(self), "_ranks_of_origin": (self.rank, self.world_size)}

    @property
    def rank(self) -> int:
        """Rank of this trainer, as of now."""
        return (self._given_ranks or ranks(self._ranks_of_origin))[0]

    @property
    def world_size(self) -> int:
        """Number of trainers, as of now."""
        return (self._given_ranks or ranks(self._ranks_of_origin))[1]

    def __len__(self) -> int:
        """Returns the number of rows in all files."""
        return int(self._group_rows.sum())

    def __repr__(self) -> str:
        return f"RowFiles({len(self.paths)} files, {len(self)} rows, order {self.order!r})"

    def source(
        self,
        worker: int = 0,
        workers: int = 1,
        columns: Sequence[str] | None = None,
        traits: Sequence[str] | None = None,
    ) -> FileSource:
        """Returns the source of one worker of this rank.

        Args:
            worker: Number of the worker.
            workers: Workers of each rank.
            columns: Other columns to read. None: all.
            traits: Traits of mutable events to read. None: all.

        Raises:
            InputError: There is no such column.
        """
        schema = self.reads(columns, traits)
        return FileSource(self, self.rank * workers + worker, self.world_size * workers, schema)

    def reads(self, columns: Sequence[str] | None, traits: Sequence[str] | None) -> pa.Schema:
        """Returns the schema of the columns to read, including those of the pointers.

        Raises:
            InputError: A file lacks a column, or holds it in another type than the first.
        """
        names = list(dict.fromkeys(name for schema in self._schemas for name in schema.names))
        others = [name for name in names if name not in ("uih", "mutable")]
        if columns is not None:
            missing = [name for name in columns if name not in others]
            if missing:
                raise InputError(
                    f"The thin rows have no column {missing[0]!r}; there are {', '.join(others)}."
                )
            others = [name for name in others if name in {*columns, "user_id", "request_ts"}]
        schema = joint_schema(self.paths, self._schemas, [*others, "uih", "mutable"])
        arrow = load_pyarrow()
        mutable = snapshots_type(schema.field("mutable").type)
        if traits is not None:
            events = mutable.value_type
            kept = [field for field in events if field.name in {*EVENT_TIMES, *traits}]
            mutable = arrow.large_list(arrow.struct(kept))
        return schema.set(len(schema) - 1, arrow.field("mutable", mutable))

    def read(
        self, epoch: int, start: int, stop: int, schema: pa.Schema
    ) -> Iterator[tuple[pa.RecordBatch, int, str]]:
        """Yields the places [start, stop) of an epoch's sequence: rows, first number, file."""
        groups = np.arange(len(self._group_rows))
        if self.order != "files":
            groups = shuffled(groups, self.seed, epoch)
        ends = np.cumsum(self._group_rows[groups])
        for place in range(int(np.searchsorted(ends, start, side="right")), len(groups)):
            group = groups[place]
            begin = int(ends[place] - self._group_rows[group])
            if begin >= stop:
                return
            origin = self.files[self._group_files[group]]
            first, last = max(start - begin, 0), min(stop, int(ends[place])) - begin
            seen = 0
            with open_parquet(origin) as file:
                for batch in file.iter_batches(
                    READ_ROWS,
                    row_groups=[int(self._group_places[group])],
                    columns=schema.names,
                    leaves=leaves_of(file, schema),
                ):
                    low, high = max(first - seen, 0), min(last - seen, len(batch))
                    if low < high:
                        part = conformed_batch(origin, batch.slice(low, high - low), schema)
                        yield part, int(self._group_ids[group]) + seen + low, origin.name
                    seen += len(batch)
                    if seen >= last:
                        break


def traits_named(projection: Projection | str) -> tuple[str, ...] | None:
    """Returns the traits that a projection names; None if only the server knows them all."""
    if isinstance(projection, str) or projection.feature_groups:
        return None
    return projection.traits or None


def ranks(default: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Returns this process's rank and the world size, as known at this moment."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    # torchrun and `accelerate launch` set both before torch.distributed is initialized.
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return default


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


def leaves_of(table: ParquetTable, schema: pa.Schema) -> list[int]:
    """Returns the numbers of Parquet's columns that a schema needs."""
    traits = set(schema.field("mutable").type.value_type.names)
    leaves: list[int] = []
    for name in schema.names:
        if name != "mutable":
            leaves += table.leaves(name)
            continue
        kind = plain_type(table.schema_arrow.field(name).type)
        if snapshots_type(kind) != kind:  # no events, and one leaf of nulls
            leaves += table.leaves(name)
            continue
        first = table.leaves(name).start
        for field in kind.value_type:
            count = leaf_count(field.type)
            if field.name in traits:
                leaves += range(first, first + count)
            first += count
    return leaves


def fingerprint(paths: Sequence[str], footers: Sequence[Footer]) -> str:
    """Returns a fingerprint of a list of files, independent of their folders."""
    digest = hashlib.sha256()
    for path, footer in zip(paths, footers, strict=True):
        summary = (path.rsplit("/", 1)[-1], footer.group_rows, footer.group_bytes)
        digest.update(repr(summary).encode())
    return digest.hexdigest()[:16]
