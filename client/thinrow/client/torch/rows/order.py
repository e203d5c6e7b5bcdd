"""The order of an epoch's rows: lanes, windows, and seeded shuffles.

docs/guides/training.md has the contract.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = [
    "EpochOrder",
    "lane_count",
    "mixed",
    "part_lane_count",
    "shuffled",
    "shuffled_blocks",
    "sorted_runs",
]

FIRST_WINDOW_ROWS = 1024
"""Rows of a lane's first window: the first lookup waits until they are decoded."""
WINDOW_GROWTH = 8
"""Each window of a lane is this many times as large as the one before, up to `window_rows`."""
LANES_MAX = 64
LANE_WINDOWS_MIN = 2
"""Full windows that each lane has rows for."""
LANES_BYTES_MAX = 256 << 20
"""Bytes, as Parquet encodes them, of one window of each lane: one shard holds all of them."""
PART_LANES_MAX = 1024
"""Limit on lanes of whole parts: as many ranks read parts of their own."""
PART_LANE_ROWS_MIN = 4096
"""Rows that a lane of whole parts has on average: those of a lookup by default."""


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


def part_lane_count(rows: int, size: int, window_rows: int, parts: int) -> int:
    """Returns the number of lanes of files in parts: a power of two.

    Args:
        rows: Rows of the files.
        size: Bytes of those rows.
        window_rows: Rows of a window.
        parts: Parts of the rows; a power of two, or rounded up to one.
    """
    lanes = 1
    while 2 * lanes <= min(parts, PART_LANES_MAX) and 2 * lanes * PART_LANE_ROWS_MIN <= rows:
        held = min(2 * lanes * window_rows, rows)
        if held * size > LANES_BYTES_MAX * rows:
            break
        lanes *= 2
    return lanes


class LaneRows(NamedTuple):
    """Places [first, last) of a lane."""

    lane: int
    first: int
    last: int


class Turns(NamedTuple):
    """Positions at which some sequences of rows take turns."""

    start: int
    rows: int
    """Rows of each turn."""
    sequences: list[list[LaneRows]]

    def segments(self, start: int, stop: int) -> Iterator[LaneRows]:
        """Yields the rows at positions [start, stop), which lie within these turns."""
        while start < stop:
            turn, offset = divmod(start - self.start, self.rows)
            number, sequence = divmod(turn, len(self.sequences))
            count = min(stop - start, self.rows - offset)
            place = number * self.rows + offset
            yield from within(self.sequences[sequence], place, place + count)
            start += count


@dataclass(frozen=True)
class EpochOrder:
    """Positions of an epoch's rows, whatever the number of ranks and workers.

    The rows, in the order of the epoch's row groups, are cut into lanes. A lane is ordered window
    by window. Lanes take turns, `interleave_rows` rows at a time, for as long as each of them has
    that many. What remains of lanes of equal size follows lane after lane. What remains of lanes of
    whole parts is joined in pairs, lane l of L with lane l + L/2, which take turns in their place,
    and so on until one sequence is left: rank r of R, a power of two, reads rows of its own parts
    until a rank has no more of its own, and then those that it shares with as few ranks as can be.
    """

    rows: int
    lanes: int
    interleave_rows: int
    window_rows: int
    whole_runs: bool = False
    """Windows end at multiples of `interleave_rows`."""
    sizes: tuple[int, ...] = ()
    """Rows of each lane of whole parts; nothing for lanes of equal size."""

    def bounds(self, lane: int) -> tuple[int, int]:
        """Returns the rows [start, stop) of a lane, in the order of row groups."""
        return self._edges[lane], self._edges[lane + 1]

    def segments(self, start: int, stop: int) -> Iterator[LaneRows]:
        """Yields the rows at the positions [start, stop), in order."""
        number = bisect_right(self._turns, start, key=lambda turns: turns.start) - 1
        for turns, after in zip(self._turns[number:], self._turns[number + 1 :], strict=False):
            yield from turns.segments(start, min(stop, after.start))
            start = max(start, after.start)
            if start >= stop:
                return
        yield from self._turns[-1].segments(start, stop)

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
    def _edges(self) -> list[int]:
        """The row at which each lane starts, and the end; shape (lanes + 1,)."""
        if self.sizes:
            return [0, *accumulate(self.sizes)]
        return [lane * self.rows // self.lanes for lane in range(self.lanes + 1)]

    @cached_property
    def _turns(self) -> list[Turns]:
        """The turns of all lanes, and of what remains of them, in the order of positions."""
        sizes = [last - first for first, last in pairwise(self._edges)]
        sequences = [[LaneRows(lane, 0, size)] for lane, size in enumerate(sizes)]
        found, start = list[Turns](), 0
        while len(sequences) > 1:
            found.append(Turns(start, self.interleave_rows, sequences))
            each = min(map(row_count, sequences)) // self.interleave_rows * self.interleave_rows
            start += each * len(sequences)
            rests = [list(within(one, each, row_count(one))) for one in sequences]
            joined = len(rests) // 2 if self.sizes else 1
            sequences = [list(chain(*rests[first::joined])) for first in range(joined)]
        return [*found, Turns(start, self.rows - start, sequences)]


def row_count(sequence: list[LaneRows]) -> int:
    """Returns the number of rows of a sequence."""
    return sum(last - first for _, first, last in sequence)


def within(sequence: list[LaneRows], start: int, stop: int) -> Iterator[LaneRows]:
    """Yields the rows [start, stop) of a sequence."""
    for lane, first, last in sequence:
        begin, end = first + max(start, 0), min(first + stop, last)
        if begin < end:
            yield LaneRows(lane, begin, end)
        start, stop = start - (last - first), stop - (last - first)
        if stop <= 0:
            return


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
