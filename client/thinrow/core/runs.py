"""Runs of a flat array, which lie one after the other, by their lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["offsets_of", "ranges"]


def offsets_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the start of each of several runs, and the end of the last: shape (runs + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenates the ranges [starts[i], starts[i] + lengths[i]) as an index."""
    ends = np.cumsum(lengths)
    places: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(
        starts - ends + lengths, lengths
    )
    return places
