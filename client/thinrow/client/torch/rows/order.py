"""The order of an epoch's rows: lanes, windows, and seeded shuffles.

docs/guides/training.md has the contract.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["EpochOrder", "lane_count", "mixed", "shuffled", "shuffled_blocks", "sorted_runs"]

FIRST_WINDOW_ROWS = 1024
"""Rows of a lane's first window: the first lookup waits until they are decoded."""
WINDOW_GROWTH = 8
"""Each window of a lane is this many times as large as the one before, up to `window_rows`."""
LANES_MAX = 64
LANE_WINDOWS_MIN = 2
"""Full windows that each lane has rows for."""
LANES_BYTES_MAX = 256 << 20
"""Bytes, as Parquet encodes them, of one window of each lane: one shard holds all of them."""


def lane_count(rows: int, size: int, window_rows: int) -> int:
    """Returns the number of lanes of some files: a power of two.

    Args:
        rows: Rows of the files.
        size: Bytes of those rows.
        window_rows: Rows of a window.
    """
    lanes = 1
    while (
        lanes < LANES_MAX
        and 2 * lanes * LANE_WINDOWS_MIN * window_rows <= rows
        and 2 * lanes * window_rows * size <= LANES_BYTES_MAX * rows
    ):
        lanes *= 2
    return lanes


@dataclass(frozen=True)
class EpochOrder:
    """Positions of an epoch's rows, whatever the number of ranks and workers.

    The rows, in the order of the epoch's row groups, are cut into lanes of equal size. A lane is
    ordered window by window. Lanes then take turns, `interleave_rows` rows at a time, for as long
    as each of them has that many; what remains follows lane after lane.
    """

    rows: int
    lanes: int
    interleave_rows: int
    window_rows: int
    whole_runs: bool = False
    """Windows end at multiples of `interleave_rows`."""

    def bounds(self, lane: int) -> tuple[int, int]:
        """Returns the rows [start, stop) of a lane, in the order of row groups."""
        return lane * self.rows // self.lanes, (lane + 1) * self.rows // self.lanes

    def segments(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields the positions [start, stop) in order, as (lane, first, last): places of a lane."""
        turn = self.interleave_rows
        while start < min(stop, self._interleaved):
            block, offset = divmod(start, turn)
            number, lane = divmod(block, self.lanes)
            rows = min(stop - start, turn - offset)
            first = number * turn + offset
            yield lane, first, first + rows
            start += rows
        rest = self._rests
        while start < stop:
            lane = bisect_right(rest, start) - 1
            rows = min(stop, rest[lane + 1]) - start
            first = self._interleaved // self.lanes + start - rest[lane]
            yield lane, first, first + rows
            start += rows

    def window(self, lane: int, place: int) -> tuple[int, int]:
        """Returns the places [start, stop) of the window that holds a place of a lane."""
        step = self.interleave_rows if self.whole_runs else 1
        largest = -(-self.window_rows // step) * step
        size = min(-(-FIRST_WINDOW_ROWS // step) * step, largest)
        start = 0
        while place >= start + size:
            if size == largest:
                start += (place - start) // size * size
                break
            start += size
            size = min(size * WINDOW_GROWTH, largest)
        first, last = self.bounds(lane)
        return start, min(start + size, last - first)

    @cached_property
    def _interleaved(self) -> int:
        """The number of positions at which lanes take turns."""
        if self.lanes == 1:
            return 0
        turns = self.rows // self.lanes // self.interleave_rows
        return turns * self.interleave_rows * self.lanes

    @cached_property
    def _rests(self) -> list[int]:
        """The position at which the rest of each lane starts, and the end; shape (lanes + 1,)."""
        taken = self._interleaved // self.lanes
        starts = [self.bounds(lane)[0] - lane * taken for lane in range(self.lanes)]
        return [self._interleaved + start for start in starts] + [self.rows]


def shuffled(values: NDArray[np.int64], *salts: int) -> NDArray[np.int64]:
    """Returns values in an order that depends on the salts, the same with every numpy release."""
    return values[np.argsort(mixed(np.arange(len(values)), *salts), kind="stable")]


def sorted_runs(lengths: NDArray[np.int64], run: int, *salts: int) -> NDArray[np.int64]:
    """Returns an order of rows in which runs of `run` rows have similar lengths.

    Rows of one length, and the runs, are shuffled; a last run of fewer rows stays the last.
    """
    order = shuffled(np.arange(len(lengths)), *salts)
    order = order[np.argsort(lengths[order], kind="stable")]
    whole = len(order) // run * run
    runs = shuffled(np.arange(whole // run), *salts)
    return np.concatenate([order[:whole].reshape(-1, run)[runs].ravel(), order[whole:]])


def shuffled_blocks(count: int, block: int, *salts: int) -> NDArray[np.int64]:
    """Returns the places 0 to count, shuffled within each block of consecutive ones."""
    places = np.arange(count)
    return places[np.lexsort((mixed(places, *salts), places // block))]


def mixed(values: NDArray[np.int64], *salts: int) -> NDArray[np.uint64]:
    """Maps values to 64 bits, one to one, so that two users never collide."""
    words = values.astype(np.int64).view(np.uint64)
    for salt in salts:
        words = scatter(words ^ scatter(np.array([salt % (1 << 64)], np.uint64)))
    return words


def scatter(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies SplitMix64: a step of its sequence and its finalizer."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
