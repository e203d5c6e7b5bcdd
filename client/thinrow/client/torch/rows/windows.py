"""Windows of rows that are ordered together, read lane by lane."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from thinrow.client.torch.rows.order import mixed, shuffled, shuffled_blocks, sorted_runs
from thinrow.client.torch.source import RowChunk
from thinrow.core.files.arrow import load_pyarrow, one_batch
from thinrow.core.files.rows import complete, other_columns, to_thin_rows
from thinrow.core.files.user_columns import user_words

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.client.torch.rows.files import RowFiles
    from thinrow.client.torch.rows.order import EpochOrder
    from thinrow.core.pointers import ThinRows

    Part = tuple[pa.RecordBatch, NDArray[np.int64], str]

__all__ = ["MIXED_ROWS", "LaneReader", "Window"]

MIXED_ROWS = 4096
"""Rows that order "mixed" shuffles with each other: as many as a lookup has by default."""
JOINED_ROWS_MIN = 2048
"""Number up to which rows decoded together are joined with more, in the order of files: joining
copies their events, and fewer rows would make small lookups."""
NO_LIMIT = 1 << 40
"""Longer than any history: its pointer has no `max_length`."""


class Window:
    """Rows that are ordered together.

    Args:
        parts: Rows, their numbers, and the name of their file.
        order: The order of files: see RowFiles.
        run: Rows of similar length that "lengths" puts together.
        salts: Seed, epoch, and the window's first row in the order of row groups.
        sorts: Puts all rows into their order at once.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        files: RowFiles,
        run: int,
        salts: tuple[int, ...],
        *,
        sorts: bool,
    ) -> None:
        self._rows = one_batch(load_pyarrow().Table.from_batches([batch for batch, _, _ in parts]))
        self._ids = np.concatenate([numbers for _, numbers, _ in parts])
        self.paths = ", ".join(dict.fromkeys(path for _, _, path in parts))
        """The files of the rows, to name in errors."""
        order = np.arange(len(self._ids))
        self._is_shuffled = files.order != "files"
        if files.order in ("users", "mixed"):
            users = np.concatenate([user_words(batch["user_id"], path) for batch, _, path in parts])
            order = order[np.argsort(mixed(users, *salts), kind="stable")]
            if files.order == "mixed":
                order = order[shuffled_blocks(len(order), MIXED_ROWS, *salts)]
        elif files.order == "rows":
            order = shuffled(order, *salts)
        elif files.order == "lengths":
            order = sorted_runs(self._lengths(files.length_column), run, *salts)
        self._order = order
        if sorts and self._is_shuffled:
            self._rows, self._ids = self.take([(0, len(order))])
            self._order, self._is_shuffled = np.arange(len(order)), False

    def take(self, ranges: Sequence[tuple[int, int]]) -> tuple[pa.RecordBatch, NDArray[np.int64]]:
        """Returns the rows at some ranges of the window's order, and their numbers."""
        places = np.concatenate([self._order[first:last] for first, last in ranges])
        if self._is_shuffled or len(ranges) > 1:
            return self._rows.take(load_pyarrow().array(places)), self._ids[places]
        return self._rows.slice(int(places[0]), len(places)), self._ids[places]

    def chunk(self, ranges: Sequence[tuple[int, int]]) -> RowChunk:
        """Returns the same rows to look up; their mutable events stay where they are."""
        places = np.concatenate([self._order[first:last] for first, last in ranges])
        others = self._rows.select(other_columns(self._rows.schema))
        if self._is_shuffled or len(ranges) > 1:
            others = others.take(load_pyarrow().array(places))
        else:
            others = others.slice(int(places[0]), len(places))
        columns = load_pyarrow().Table.from_batches([others])
        return RowChunk(self._thin_rows[places], columns, self._ids[places])

    @cached_property
    def _thin_rows(self) -> ThinRows:
        return to_thin_rows(self.paths, self._rows)

    def _lengths(self, column: str | None) -> NDArray[np.int64]:
        """Returns how long the rows' histories are, or may be at most; shape (rows,)."""
        if column is not None:
            lengths = complete(self.paths, column, self._rows[column])
            return lengths.astype(np.int64, copy=False)
        arrow = load_pyarrow()
        events = arrow.compute.list_value_length(self._rows["mutable"]).fill_null(0)
        longest = arrow.compute.struct_field(self._rows["uih"], "max_length")
        stored = complete(self.paths, "uih.max_length", longest).astype(np.int64)
        stored[stored == 0] = NO_LIMIT
        stored += events.to_numpy()
        return stored


class LaneReader:
    """Reads windows of one lane; only the row groups that they need."""

    def __init__(
        self,
        files: RowFiles,
        schema: pa.Schema,
        epoch: int,
        order: EpochOrder,
        lane: int,
        *,
        sorts: bool,
    ) -> None:
        self._sorts = sorts
        self._files, self._schema, self._epoch = files, schema, epoch
        self._order, self._lane = order, lane
        self._first, self._last = order.bounds(lane)
        self._batches: Generator[Part] | None = None
        self._left: Part | None = None
        self._next = self._last
        """The place of the next row that `_left` or `_batches` has; no row if it is `_last`."""
        self._window: Window | None = None
        self._start = self._stop = 0

    def holds(self, place: int) -> bool:
        """Returns True if the window of a place is the one read last."""
        return self._start <= place < self._stop

    def window(self, place: int) -> tuple[Window, int, int]:
        """Returns the window that holds a place of the lane, and its places [start, stop)."""
        if not self.holds(place):
            self._window = None  # before the next one is read
            self._start, self._stop = self._order.window(self._lane, place)
            start, stop = self._first + self._start, self._first + self._stop
            salts = (self._files.seed, self._epoch, start)
            if self._files.order == "files":
                parts, rows = [], 0
                for part in self._read(self._first + place, self._last):
                    parts.append(part)
                    rows += len(part[0])
                    if rows >= JOINED_ROWS_MIN:
                        break
                self._start, self._stop = place, place + rows
            else:
                parts = list(self._read(start, stop))
            run = self._order.interleave_rows
            self._window = Window(parts, self._files, run, salts, sorts=self._sorts)
        assert self._window is not None
        return self._window, self._start, self._stop

    def close(self) -> None:
        """Closes the file that is open; a later window opens it again."""
        self._left, self._next = None, self._last
        if self._batches is not None:
            self._batches.close()

    def _read(self, start: int, stop: int) -> Iterator[Part]:
        """Yields the rows [start, stop) in the order of row groups."""
        near = self._files.group_end(self._epoch, self._next) if self._next < self._last else 0
        if not self._next <= start < near:
            self.close()
            self._batches = self._files.read(self._epoch, start, self._last, self._schema)
            self._next = start
        while self._next < stop:
            assert self._batches is not None
            batch, numbers, path = self._left or next(self._batches)
            self._left = None
            skipped = max(start - self._next, 0)
            last = min(len(batch), stop - self._next)
            if last < len(batch):
                self._left = batch.slice(last), numbers[last:], path
            self._next += last
            if skipped < last:
                yield batch.slice(skipped, last - skipped), numbers[skipped:last], path
