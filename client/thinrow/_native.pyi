"""Loops over every event, in native code. Arrays are contiguous; without the interpreter's lock.

Raises ValueError for arrays that do not fit together, IndexError for what reaches out of bounds.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def widen_views(
    data: NDArray[np.uint8],
    widths: NDArray[np.uint8],
    bases: NDArray[np.int64],
    counts: NDArray[np.int64],
    read_as: int,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    write_as: int,
    out: NDArray[np.uint8],
    /,
) -> None: ...
def copy_views(
    source: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    item_bytes: int,
    out: NDArray[np.uint8],
    /,
) -> None: ...
def gather(
    buffer: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], /
) -> bytes: ...
def number_values(
    values: NDArray[np.int64], codes: NDArray[np.uint32], distinct: NDArray[np.int64], /
) -> int: ...
def recode(
    buffer: NDArray[np.uint8],
    starts: NDArray[np.int64],
    widths: NDArray[np.uint8],
    bases: NDArray[np.int64],
    counts: NDArray[np.int64],
    codes: NDArray[np.uint32],
    first_entries: NDArray[np.int64],
    entries: NDArray[np.int64],
    code_bytes: int,
    out: NDArray[Any],
    /,
) -> None: ...
