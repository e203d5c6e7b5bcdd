"""The loop over every event of a batch, in native code and without the interpreter's lock.

A view is a slice [start, start + length) of a run, in events, and has a place in the output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import thinrow._native as native
from thinrow._native import Run, present_counts
from thinrow.core.wire.malformed import MalformedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "Job",
    "Run",
    "Views",
    "present_counts",
    "run_jobs",
    "run_of_items",
]

INTEGERS = {np.dtype(name): code for code, name in enumerate(("i1", "i2", "i4", "i8"))} | {
    np.dtype(name): code for code, name in enumerate(("u1", "u2", "u4", "u8"), start=4)
}
"""The native code's numbers for the dtypes that words are read as and written as."""
BITS = {size: INTEGERS[np.dtype(f"i{size}")] for size in (1, 2, 4, 8)}


class Views(NamedTuple):
    """Slices of runs and their places in the output; int64, shape (views,), in events."""

    runs: NDArray[np.int64]
    """Number of the run that holds each slice."""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]


class Job(NamedTuple):
    """Views of one trait, and the array that they are written to."""

    trait: str
    runs: Sequence[Run]
    dtype: np.dtype[Any]
    """The dtype of the lowest bits of the runs' words, or of the entries that they index."""
    views: Views
    out: NDArray[Any]
    """Shape (events, …): of `dtype`, or of integers that hold every value."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The job as the native code takes it."""
        out = self.out
        write_as = BITS[out.dtype.itemsize]
        # Of one dtype, the bits are all that matters.
        read_as = write_as if out.dtype == self.dtype else INTEGERS[self.dtype]
        size = math.prod(out.shape[1:])
        return (self.runs, *self.views, size, read_as, write_as, as_bytes(out))


def run_jobs(jobs: Sequence[Job], threads: int = 1) -> None:
    """Writes every event of the jobs' views, on several threads if there is much to write.

    Raises:
        MalformedError: A word indexes no entry; names the first such job's trait.
    """
    first_bad = native.write([job.arguments for job in jobs], threads)
    if first_bad != len(jobs):
        raise MalformedError(f"{jobs[first_bad].trait} has a value that does not exist")


def run_of_items(items: NDArray[Any]) -> Run:
    """Returns a run of values in their final width; shape (events, …), contiguous."""
    words = np.array([items.size], np.int64)
    widths = np.array([items.itemsize], np.uint8)
    return Run(as_bytes(items), widths, np.zeros(1, np.int64), words)


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Views an array's memory."""
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8)
