"""Sets of example ids as ranges, which stay few where rows are read in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["ExampleIds"]


class ExampleIds:
    """A set of example ids, kept as ascending ranges [start, stop) that do not touch.

    Args:
        ranges: The ranges, in any order, as `to_ranges` returns them.

    Raises:
        UsageError: They are no ranges of ids.
    """

    def __init__(self, ranges: Sequence[Sequence[int]] = ()) -> None:
        try:
            found = np.array(ranges, np.int64).reshape(-1, 2)
        except (ValueError, TypeError, OverflowError) as error:
            raise UsageError("Example ids are a list of [start, stop]; see to_ranges.") from error
        if (found[:, 0] >= found[:, 1]).any() or (found < 0).any():
            raise UsageError("Example ids are ranges [start, stop) of ids from 0 on.")
        self._ranges = merged(found)

    def __len__(self) -> int:
        """Returns the number of ids."""
        return int((self._ranges[:, 1] - self._ranges[:, 0]).sum())

    def __repr__(self) -> str:
        return f"ExampleIds({len(self)} ids in {len(self._ranges)} ranges)"

    def add(self, ids: ArrayLike) -> None:
        """Adds ids, in any order."""
        distinct = np.unique(np.asarray(ids, np.int64))
        if len(distinct):
            cuts = np.flatnonzero(np.diff(distinct) > 1)
            starts = distinct[np.concatenate([[0], cuts + 1])]
            stops = distinct[np.concatenate([cuts, [len(distinct) - 1]])] + 1
            self._ranges = merged(np.concatenate([self._ranges, np.stack([starts, stops], 1)]))

    def contains(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """Returns True for each id that is in the set."""
        given = np.asarray(ids, np.int64)
        if not len(self._ranges):
            return np.zeros(given.shape, np.bool_)
        place = np.searchsorted(self._ranges[:, 0], given, "right") - 1
        found: NDArray[np.bool_] = (place >= 0) & (given < self._ranges[place, 1])
        return found

    def to_ranges(self) -> list[list[int]]:
        """Returns the ranges as JSON has them."""
        ranges: Any = self._ranges.tolist()
        return list(ranges)


def merged(ranges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Joins ranges that overlap or touch."""
    if not len(ranges):
        return ranges
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    stops = np.maximum.accumulate(ranges[:, 1])
    begins = np.concatenate([[True], ranges[1:, 0] > stops[:-1]])
    ends = np.concatenate([begins[1:], [True]])
    return np.stack([ranges[begins, 0], stops[ends]], 1)
