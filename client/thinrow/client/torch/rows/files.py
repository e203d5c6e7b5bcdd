"""Files of thin rows: their row groups, shards and schema.

docs/guides/training.md has the contract.
"""

from __future__ import annotations

import multiprocessing
import os
from copy import copy
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch.distributed
from thinrow.client.torch.rows.choosers import KeptRows
from thinrow.client.torch.rows.epoch_place import Dealing
from thinrow.client.torch.rows.file_source import READ_ROWS, FileSource
from thinrow.client.torch.rows.groups import (
    FileGroups,
    TableGroups,
    all_columns,
    conformed_rows,
    joint_columns,
)
from thinrow.client.torch.rows.order import (
    EpochOrder,
    lane_count,
    part_lane_count,
    shuffled,
)
from thinrow.client.torch.rows.selection import Selection, selections
from thinrow.core.files.rows import other_columns, with_traits
from thinrow.core.files.tables import Rows, is_named
from thinrow.errors import InputError, UsageError
from torch.utils.data import get_worker_info

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.client.torch.rows.groups import RowGroups
    from thinrow.client.torch.rows.selection import Chooser
    from thinrow.core.files.paths import Named
    from thinrow.core.files.row_filter import Condition

__all__ = ["RowFiles"]

Order = Literal["users", "mixed", "rows", "files", "lengths"]
ORDERS = get_args(Order)


class RowFiles:
    """Thin rows of Parquet files or of a table in memory, their order, and this trainer's rank.

    The constructor reads all footers once, and the columns of the filter; copies for other
    processes include what it found, and a table's rows.

    Args:
        rows: Files, folders, globs, or URLs of either that fsspec knows, one or several. They are
            sorted, and a file named twice counts once. Keys of Hive folders are columns. Or rows in
            memory: any table that has Arrow's PyCapsule stream, as those of pyarrow and Polars, a
            DataFrame of pandas, or a `datasets.Dataset`.
        filter: Rows to keep, as for `filter`. Default: all.
        order: "users" groups a window's rows by user, users in seeded order; "mixed" then shuffles
            each 4,096 of them; "rows" shuffles a window's rows; "lengths" gives each batch rows of
            similar length. All of these shuffle row groups, too. "files" keeps the order of the
            files.
        seed: Seed of the shuffle; each epoch has another order.
        window_rows: Rows shuffled with each other. Memory holds one window of each lane; see
            docs/guides/training.md.
        rank: Rank of this trainer. Default: that of torch.distributed if it is initialized when a
            pass begins, otherwise the environment's RANK, as torchrun sets it, otherwise 0.
        world_size: Number of trainers. Default: as for `rank`, with WORLD_SIZE, otherwise 1.
        length_column: Column of integers by which "lengths" sorts, such as the number of events
            when the row was written. Default: the row's mutable events and its `max_length`.

    Raises:
        InputError: There is no file, or one holds no thin rows.
        UsageError: An argument is out of its range.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        filter: Condition = None,  # noqa: A002 - the name that pyarrow has
        order: Order = "users",
        seed: int = 0,
        window_rows: int = 65_536,
        rank: int | None = None,
        world_size: int | None = None,
        length_column: str | None = None,
    ) -> None:
        if order not in ORDERS:
            names = ", ".join(map(repr, ORDERS[:-1]))
            raise UsageError(f"order is {order!r}, but must be {names} or {ORDERS[-1]!r}.")
        if length_column is not None and order != "lengths":
            raise UsageError("length_column needs order='lengths'; give both, or neither.")
        if window_rows < 1:
            raise UsageError(f"window_rows is {window_rows}, but must be 1 or more.")
        if (rank is None) != (world_size is None):
            raise UsageError("Give both rank and world_size, or neither.")
        self._given_ranks: tuple[int, int] | None = None
        if rank is not None and world_size is not None:
            if not 0 <= rank < world_size:
                raise UsageError(f"rank is {rank}, but must be in 0..{world_size - 1}.")
            self._given_ranks = rank, world_size
        self._origin = os.getpid(), (0, 1)
        """The process that this was copied from, and the ranks that it had."""
        self.order, self.seed, self.window_rows = order, seed, window_rows
        self.length_column = length_column
        self._groups: RowGroups = (
            FileGroups(cast("Named", rows)) if is_named(rows) else TableGroups(rows)
        )
        self.paths = self._groups.names
        self._group_ids = np.cumsum(self._groups.rows) - self._groups.rows
        self._select(Selection(self._groups.rows))
        if filter is not None:
            self._select(self.filter(filter)._selection)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_origin": (os.getpid(), self._ranks())}

    @property
    def rank(self) -> int:
        """Rank of this trainer, as of now."""
        return self._ranks()[0]

    @property
    def world_size(self) -> int:
        """Number of trainers, as of now."""
        return self._ranks()[1]

    def _ranks(self) -> tuple[int, int]:
        if self._given_ranks is not None:
            return self._given_ranks
        origin, known = self._origin
        parent = multiprocessing.parent_process()
        if get_worker_info() is not None and parent is not None and parent.pid == origin:
            # A worker process has no process group, and that of a fork server the environment of
            # the time when that server started: the rank is that of the trainer that sent this.
            return known
        return ranks(known)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return int(self._selection.counts.sum())

    def __repr__(self) -> str:
        is_table = isinstance(self._groups, TableGroups)
        parts = "a table" if is_table else f"{len(self.paths)} files"
        return f"RowFiles({parts}, {len(self)} rows, order {self.order!r})"

    def filter(self, condition: Condition) -> RowFiles:
        """Returns the rows for which a condition is true; the others and their numbers stay.

        The columns of the condition are read once, except in row groups whose statistics, or whose
        files' Hive keys, rule it out.

        Args:
            condition: An expression such as `pyarrow.compute.field("country") == "de"`, or a list
                of tuples such as `[("country", "==", "de")]`, as pyarrow's `filters` takes.

        Raises:
            InputError: A file lacks a column of the condition.
            UsageError: It is no condition on the columns that there are.
        """
        [kept] = self.divide(lambda groups: KeptRows(groups, condition), 1)
        return kept

    def divide(self, chooser: Callable[[RowGroups], Chooser], count: int) -> list[RowFiles]:
        """Returns the rows of each of `count` selections, reading the columns of the choice once.

        Args:
            chooser: Makes the choice, given the rows.
            count: Number of selections.
        """
        parts = selections(self._groups, self._selection, chooser(self._groups), count)
        return [self._with(part) for part in parts]

    def users_and_times(self) -> Iterator[tuple[pa.RecordBatch, str]]:
        """Yields the columns user_id and request_ts in the order of the files, and their file."""
        schema = joint_columns(self._groups, ["user_id", "request_ts"])
        for group in range(len(self._groups.rows)):
            wanted = self._selection.places(group, 0, int(self._selection.counts[group]))
            if len(wanted):
                for batch, _, path in self._read_places(group, wanted, schema):
                    yield batch, path

    def source(
        self,
        worker: int = 0,
        workers: int = 1,
        columns: Sequence[str] | None = None,
        traits: Sequence[str] | None = None,
        dealing: Dealing | None = None,
    ) -> FileSource:
        """Returns the source of one worker of this rank.

        Args:
            worker: Number of the worker.
            workers: Workers of each rank.
            columns: Other columns to read. None: all.
            traits: Traits of mutable events to read. None: all.
            dealing: The way in which ranks and workers share the rows.

        Raises:
            InputError: There is no such column.
        """
        schema = self.reads(columns, traits)
        return FileSource(self, worker, workers, schema, dealing or Dealing())

    def epoch_order(self, interleave_rows: int) -> EpochOrder:
        """Returns the order in which the rows of an epoch's sequence are trained on."""
        rows = len(self)
        if self.order == "files":  # Rows need not wait for a full window.
            return EpochOrder(rows, 1, interleave_rows, READ_ROWS)
        by_length = self.order == "lengths"
        if (lane_of := self._lane_of) is not None:
            sizes = np.bincount(lane_of, self._selection.counts, self._part_lanes).astype(int)
            lanes, each = self._part_lanes, tuple(sizes.tolist())
            return EpochOrder(rows, lanes, interleave_rows, self.window_rows, by_length, each)
        lanes = lane_count(rows, self._size, self.window_rows)
        return EpochOrder(rows, lanes, interleave_rows, self.window_rows, by_length)

    def group_end(self, epoch: int, place: int) -> int:
        """Returns the place after the row group that holds a place of an epoch's sequence."""
        _, ends = self._epoch_groups(epoch)
        return int(ends[np.searchsorted(ends, place, side="right")])

    def reads(self, columns: Sequence[str] | None, traits: Sequence[str] | None) -> pa.Schema:
        """Returns the schema of the columns to read, including those of the pointers.

        Raises:
            InputError: A file lacks a column, or holds it in another type than the first.
        """
        others = other_columns(all_columns(self._groups))
        wanted = [*(columns or ()), *filter(None, [self.length_column])]
        if missing := [name for name in wanted if name not in others]:
            raise InputError(
                f"The thin rows have no column {missing[0]!r}; there are {', '.join(others)}."
            )
        if columns is not None:
            others = [name for name in others if name in {*wanted, "user_id", "request_ts"}]
        schema = joint_columns(self._groups, [*others, "uih", "mutable"])
        return schema if traits is None else with_traits(schema, traits)

    def read(
        self, epoch: int, start: int, stop: int, schema: pa.Schema
    ) -> Generator[tuple[pa.RecordBatch, NDArray[np.int64], str]]:
        """Yields the places [start, stop) of an epoch's sequence: rows, their numbers, their file.

        Rows have numbers of their own among all rows, whether a filter leaves out some or not.
        """
        counts = self._selection.counts
        groups, ends = self._epoch_groups(epoch)
        for place in range(int(np.searchsorted(ends, start, side="right")), len(groups)):
            group = int(groups[place])
            begin = int(ends[place] - counts[group])
            if begin >= stop:
                return
            wanted = self._selection.places(
                group, max(start - begin, 0), min(stop, int(ends[place])) - begin
            )
            if len(wanted):
                yield from self._read_places(group, wanted, schema)

    def _epoch_groups(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns an epoch's row groups in order, and the place after each of them."""
        counts = self._selection.counts
        groups = np.arange(len(counts))
        if self.order != "files":
            groups = shuffled(groups, self.seed, epoch)
        if (lane_of := self._lane_of) is not None:
            groups = groups[np.argsort(lane_of[groups], kind="stable")]
        return groups, np.cumsum(counts[groups])

    @property
    def _size(self) -> int:
        """Bytes of the rows, as they are stored, if all of them are of average size."""
        return self._groups.size * len(self) // max(int(self._groups.rows.sum()), 1)

    @property
    def _part_lanes(self) -> int:
        """Lanes of files in parts."""
        assert self._groups.row_parts is not None
        parts = 1 << int(self._groups.row_parts.max(initial=0)).bit_length()
        return part_lane_count(len(self), self._size, self.window_rows, parts)

    @property
    def _lane_of(self) -> NDArray[np.int64] | None:
        """Shape (groups,): the lane of each row group; None if lanes do not have whole parts.

        Parts of a lane agree in their low bits, as the shards of a group of servers do.
        """
        if self._groups.row_parts is None or self.order == "files":
            return None
        return self._groups.row_parts % self._part_lanes

    def _read_places(
        self, group: int, wanted: NDArray[np.int64], schema: pa.Schema
    ) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64], str]]:
        """Yields rows of a group, by their places in it."""
        path = self.paths[self._groups.parts[group]]
        seen = 0
        for _, batch in self._groups.batches([group], schema, READ_ROWS):
            low, high = np.searchsorted(wanted, [seen, seen + len(batch)])
            if low < high:
                places = wanted[low:high] - seen
                yield (
                    conformed_rows(path, batch, places, schema),
                    self._group_ids[group] + wanted[low:high],
                    path,
                )
            seen += len(batch)
            if seen > wanted[-1]:
                return

    def _with(self, selection: Selection) -> RowFiles:
        """Returns these rows without those that a selection leaves out."""
        other = copy(self)
        other._select(selection)
        return other

    def _select(self, selection: Selection) -> None:
        self._selection = selection
        whole, kept = self._groups.fingerprint, selection.digest()
        self.fingerprint = sha256(f"{whole} {kept}".encode()).hexdigest()[:16] if kept else whole


def ranks(default: tuple[int, int] = (0, 1)) -> tuple[int, int]:
    """Returns this process's rank and the world size, as known at this moment."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    # torchrun and `accelerate launch` set both before torch.distributed is initialized.
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return default
