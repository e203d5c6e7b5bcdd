"""The two loops over every event: widening narrow blocks, and copying slices.

Both run in native code without the interpreter's lock. A view is a slice [start, start + length) of
a run, and goes to its own place in the output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import thinrow._native as native
from thinrow._native import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["WIDTHS", "Run", "Views", "copy_views", "look_up_views", "ranges", "widen_views"]

WIDTHS = (1, 2, 4, 8)
"""Bytes per offset of blocks that have offsets at all."""

INTEGERS = {np.dtype(name): code for code, name in enumerate(("i1", "i2", "i4", "i8"))} | {
    np.dtype(name): code for code, name in enumerate(("u1", "u2", "u4", "u8"), start=4)
}
"""The native code's numbers of what words are read as and written as."""


class Views(NamedTuple):
    """Slices of runs, and where in the output each goes; int64, shape (views,)."""

    runs: NDArray[np.int64]
    """Number of the run that each is a slice of."""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]

    def times(self, size: int) -> Views:
        """The same views of words, `size` per event."""
        if size == 1:
            return self
        return Views(self.runs, size * self.starts, size * self.lengths, size * self.places)


def copy_views(sources: Sequence[NDArray[Any]], views: Views, out: NDArray[Any]) -> None:
    """Copies view i, ``sources[runs[i]][starts[i]:][:lengths[i]]``, to ``out[places[i]:]``.

    All arrays are contiguous, of one dtype and one shape but for the first axis.
    """
    assert all(source.dtype == out.dtype for source in sources)
    assert all(source.shape[1:] == out.shape[1:] for source in sources)
    item_bytes = out.dtype.itemsize * math.prod(out.shape[1:])
    native.copy_views([as_bytes(source) for source in sources], *views, item_bytes, as_bytes(out))


def widen_views(runs: Sequence[Run], dtype: np.dtype[Any], views: Views, out: NDArray[Any]) -> None:
    """Adds bases to offsets, reads the words' lowest bits as `dtype`, and copies views of them.

    views: in words. out: of `dtype`, or of integers that hold every value.
    """
    if out.dtype == dtype:  # the bits are all that matters
        dtype = np.dtype(f"i{dtype.itemsize}")
        out = out.view(dtype)
    write_as = INTEGERS[np.dtype(f"i{out.dtype.itemsize}")]
    native.widen_views(runs, INTEGERS[dtype], *views, write_as, as_bytes(out))


def look_up_views(
    runs: Sequence[Run], dictionaries: Sequence[NDArray[np.int64]], views: Views, out: NDArray[Any]
) -> None:
    """Copies views of what words index, each in its own run's dictionary.

    out: of integers that hold every value. Raises IndexError where a word indexes nothing.
    """
    write_as = INTEGERS[np.dtype(f"i{out.dtype.itemsize}")]
    native.look_up_views(runs, dictionaries, *views, write_as, as_bytes(out))


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Looks at an array's memory."""
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenates the ranges [starts[i], starts[i] + lengths[i]) as an index."""
    ends = np.cumsum(lengths)
    places: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(
        starts - ends + lengths, lengths
    )
    return places
