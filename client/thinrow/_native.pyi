# Loops over every event, in native code, without the interpreter's lock. Arrays are contiguous.
# They raise ValueError for arrays that do not fit together, IndexError for what is out of bounds.

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Run:
    def __init__(
        self,
        data: NDArray[np.uint8],
        widths: NDArray[np.uint8],
        bases: NDArray[np.int64],
        counts: NDArray[np.int64],
        /,
    ) -> None: ...

def widen_views(
    runs: Sequence[Run],
    read_as: int,
    run_of: NDArray[np.int64],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    write_as: int,
    out: NDArray[np.uint8],
    /,
) -> None: ...
def copy_views(
    sources: Sequence[NDArray[np.uint8]],
    run_of: NDArray[np.int64],
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
