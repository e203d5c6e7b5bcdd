"""Settings of the C library's allocator in this process."""

from __future__ import annotations

import ctypes

__all__ = ["FREED_BYTES_MAX", "keep_freed_memory"]

# malloc.h of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

FREED_BYTES_MAX = 2**31 - 1
"""The library takes a C int."""

MMAP_BYTES_MIN = 32 << 20
"""The most that the library takes; smaller allocations reuse freed memory."""


def keep_freed_memory(bytes_max: int) -> None:
    """Makes the GNU C library, if there is one, keep freed memory for the next allocations.

    By default the kernel maps and clears new pages for each response of some MiB, which takes
    longer than the work on them. Changes the whole process.

    Args:
        bytes_max: Freed memory to keep, at most FREED_BYTES_MAX; more returns to the system.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES_MIN)
        mallopt(M_TRIM_THRESHOLD, bytes_max)
