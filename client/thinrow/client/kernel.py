"""The two loops over every event: widening narrow blocks, and copying slices.

Both run in native code without the interpreter's lock; `numpy_kernel` says the same in numpy. A
view is a slice [start, start + length) of a run, and goes to its own place in the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import thinrow._native as native

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WIDTHS", "copy_views", "ranges", "widen_views"]

WIDTHS = (1, 2, 4, 8)
"""Bytes per offset of blocks that have offsets at all."""

INTEGERS = {np.dtype(name): code for code, name in enumerate(("i1", "i2", "i4", "i8"))} | {
    np.dtype(name): code for code, name in enumerate(("u1", "u2", "u4", "u8"), start=4)
}
"""The native code's numbers of what words are read as and written as."""


def copy_views(
    source: NDArray[Any],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Copies ``source[starts[i]:][:lengths[i]]`` to ``out[places[i]:]``; views shape (views,).

    Both arrays are contiguous, of one dtype and one shape but for the first axis.
    """
    assert source.dtype == out.dtype
    assert source.shape[1:] == out.shape[1:]
    item_bytes = source.dtype.itemsize * int(np.prod(source.shape[1:]))
    native.copy_views(as_bytes(source), starts, lengths, places, item_bytes, as_bytes(out))


def widen_views(
    data: NDArray[np.uint8],
    widths: NDArray[np.uint8],
    bases: NDArray[np.int64],
    counts: NDArray[np.int64],
    dtype: np.dtype[Any],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    out: NDArray[Any],
) -> None:
    """Adds bases to offsets, reads the words' lowest bits as `dtype`, and copies views of them.

    data: offsets of all blocks of width 1 in block order, then of width 2, 4 and 8.
    widths, bases, counts: bytes per offset, base and number of words of each block.
    starts, lengths, places: views of the run of words, and where in `out` each goes.
    out: of `dtype`, or of integers that hold every value.
    """
    if out.dtype == dtype:  # the bits are all that matters
        dtype = np.dtype(f"i{dtype.itemsize}")
        out = out.view(dtype)
    native.widen_views(
        *(data, widths, bases, counts, INTEGERS[dtype]),
        *(starts, lengths, places, INTEGERS[np.dtype(f"i{out.dtype.itemsize}")], as_bytes(out)),
    )


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
