"""The loop over every event of a batch, in native code and without the interpreter's lock.

A view is a slice [start, start + length) of a run, in events, and goes to its place in the output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import thinrow._native as native
from thinrow._native import Run, present_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["WIDTHS", "Job", "Run", "Views", "present_counts", "ranges", "run_of_items", "write"]

WIDTHS = (1, 2, 4, 8)
"""Bytes per offset of blocks that have offsets at all."""

INTEGERS = {np.dtype(name): code for code, name in enumerate(("i1", "i2", "i4", "i8"))} | {
    np.dtype(name): code for code, name in enumerate(("u1", "u2", "u4", "u8"), start=4)
}
"""The native code's numbers of what words are read as and written as."""
BITS = {size: INTEGERS[np.dtype(f"i{size}")] for size in WIDTHS}


class Views(NamedTuple):
    """Slices of runs, and where in the output each goes; int64, shape (views,), in events."""

    runs: NDArray[np.int64]
    """Number of the run that each is a slice of."""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]


class Job(NamedTuple):
    """Views of one trait, and the array that they are written to."""

    trait: str
    runs: Sequence[Run]
    dtype: np.dtype[Any]
    """What the lowest bits of the runs' words are, or of what these index."""
    views: Views
    out: NDArray[Any]
    """Shape (events, …): of `dtype`, or of integers that hold every value."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The same for the native code."""
        out = self.out
        write_as = BITS[out.dtype.itemsize]
        # Of one dtype, the bits are all that matters.
        read_as = write_as if out.dtype == self.dtype else INTEGERS[self.dtype]
        size = math.prod(out.shape[1:])
        return (self.runs, *self.views, size, read_as, write_as, as_bytes(out))


def write(jobs: Sequence[Job], threads: int = 1) -> str | None:
    """Writes every event of the jobs' views, with several threads where there is much to do.

    Returns the trait of a job in which a word indexes nothing, or None where all is well.
    """
    first_bad = native.write([job.arguments for job in jobs], threads)
    return None if first_bad == len(jobs) else jobs[first_bad].trait


def run_of_items(items: NDArray[Any]) -> Run:
    """Makes a run of values that are as wide as they will be; shape (events, …), contiguous."""
    words = np.array([items.size], np.int64)
    widths = np.array([items.itemsize], np.uint8)
    return Run(as_bytes(items), widths, np.zeros(1, np.int64), words)


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
