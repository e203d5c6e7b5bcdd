"""Done rows of an epoch, and the deal of the remaining ones to shards."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["AHEAD_MAX", "Deal", "Dealing", "EvenEnds", "Place", "Range"]

EvenEnds = Literal["drop", "pad"]

AHEAD_MAX = 4096
"""Ranges of positions in a state, and batches by which shards of one state may be apart."""


class Range(NamedTuple):
    """Positions, or numbers of remaining rows, [start, stop)."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealing:
    """Settings of the deal of an epoch's rows to ranks and their workers."""

    batch_examples: int = 512
    """Rows that are dealt to each shard in turn."""

    even_ends: EvenEnds | None = None
    """See LoaderConfig."""

    in_step: bool = True
    """Each batch counts `batch_examples` rows, so that one rank knows where the others are."""


@dataclass(frozen=True)
class Place:
    """The done rows of an epoch: all positions before `start`, and some ranges beyond it."""

    start: int = 0
    ahead: tuple[Range, ...] = ()

    def remaining(self, rows: int) -> int:
        """Returns how many of an epoch's rows are not done."""
        return rows - self.start - sum(stop - start for start, stop in self.ahead)

    def positions(self, first: int, last: int) -> Iterator[Range]:
        """Yields the positions of the remaining rows number [first, last)."""
        gaps, numbers = self._gaps
        gap = bisect_right(numbers, first) - 1
        while first < last:
            stop = min(last, numbers[gap + 1]) if gap + 1 < len(numbers) else last
            start = gaps[gap] + first - numbers[gap]
            yield Range(start, start + stop - first)
            first, gap = stop, gap + 1

    def with_done(self, ranges: Iterable[Range]) -> Place:
        """Returns the place at which some ranges of positions are done, too.

        Raises:
            UsageError: The done rows make more than AHEAD_MAX ranges.
        """
        start, ahead = self.start, list[Range]()
        for begin, end in sorted([*self.ahead, *ranges]):
            if begin <= start:
                start = max(start, end)
            elif ahead and begin <= ahead[-1].stop:
                ahead[-1] = Range(ahead[-1].start, max(ahead[-1].stop, end))
            else:
                ahead.append(Range(begin, end))
        if len(ahead) > AHEAD_MAX:
            raise too_far_apart()
        return Place(start, tuple(ahead))

    @cached_property
    def _gaps(self) -> tuple[list[int], list[int]]:
        """The first position of each run of remaining rows, and that row's number."""
        gaps = [self.start, *(stop for _, stop in self.ahead)]
        rows = [stop - start for start, (stop, _) in zip(gaps, self.ahead, strict=False)]
        return gaps, [0, *accumulate(rows)]


@dataclass(frozen=True)
class Deal:
    """The remaining rows of an epoch, dealt to shards: a batch to each of them in turn."""

    place: Place
    """The place at which the deal began."""
    rows: int
    """Rows of the epoch."""
    batch_examples: int
    ranks: int
    shards: int
    """Ranks times the workers of each."""
    even_ends: EvenEnds | None = None

    @cached_property
    def dealt(self) -> int:
        """The number of rows that are dealt, to all shards."""
        remaining = self.place.remaining(self.rows)
        if self.even_ends is None:
            return remaining
        step = self.ranks * self.batch_examples
        return (remaining if self.even_ends == "drop" else remaining + step - 1) // step * step

    def count(self, shard: int) -> int:
        """Returns the number of rows of a shard."""
        whole, rest = divmod(self.dealt, self.batch_examples)
        batches = (whole - shard + self.shards - 1) // self.shards
        return batches * self.batch_examples + (rest if whole % self.shards == shard else 0)

    def positions(self, shard: int, done: int) -> Iterator[Range]:
        """Yields the positions of a shard's rows after the first `done`, in order."""
        remaining = self.place.remaining(self.rows)
        for start, stop in self._numbers(shard, done, self.count(shard)):
            yield from self.place.positions(start, min(stop, remaining))
            # What fills the last batches are the epoch's first rows, as often as needed.
            start = max(start, remaining) - remaining
            while start < stop - remaining:
                begin = start % self.rows
                rows = min(self.rows - begin, stop - remaining - start)
                yield Range(begin, begin + rows)
                start += rows

    def after(self, done: Mapping[int, int]) -> Place:
        """Returns the place after a number of rows of each shard.

        Raises:
            UsageError: The shards are too far apart for a state.
        """
        counts = {shard: self.count(shard) for shard in range(self.shards)}
        if done == counts:
            return Place(self.rows)
        # A shard that has ended is as far as the others: it has no more batches.
        common = min(
            rows // self.batch_examples for shard, rows in done.items() if rows < counts[shard]
        )
        numbers = [Range(0, min(common * self.shards * self.batch_examples, self.dealt))]
        batches = 0
        for shard, rows in done.items():
            for part in self._numbers(shard, common * self.batch_examples, rows):
                numbers.append(part)
                batches += 1
                if batches > AHEAD_MAX * self.shards:
                    raise too_far_apart()
        remaining = self.place.remaining(self.rows)
        return self.place.with_done(
            part
            for start, stop in numbers
            for part in self.place.positions(start, min(stop, remaining))
        )

    def _numbers(self, shard: int, first: int, last: int) -> Iterator[Range]:
        """Yields the numbers, among the dealt rows, of a shard's rows [first, last)."""
        if self.shards == 1:
            if first < last:
                yield Range(first, last)
            return
        while first < last:
            batch, offset = divmod(first, self.batch_examples)
            rows = min(last - first, self.batch_examples - offset)
            start = (batch * self.shards + shard) * self.batch_examples + offset
            yield Range(start, start + rows)
            first += rows


def too_far_apart() -> UsageError:
    """Returns the error of shards that no state can describe together."""
    return UsageError(
        f"The states are more than {AHEAD_MAX} batches apart; resume with as many ranks and "
        f"workers, each with its own state, or restart the epoch."
    )
