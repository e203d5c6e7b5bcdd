"""How this process's memory comes and goes."""

from __future__ import annotations

import ctypes

__all__ = ["FREED_BYTES_MAX", "keep_freed_memory"]

# malloc.h of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

FREED_BYTES_MAX = 2**31 - 1
"""The library takes a C int."""

MMAP_BYTES_MIN = 32 << 20
"""The most that the library takes; smaller pieces come from memory that was used before."""


def keep_freed_memory(bytes_max: int) -> None:
    """Tells the GNU C library, where there is one, to hold on to so much of what is freed.

    By default a few MiB are mapped anew for every answer and their pages cleared by the kernel,
    which takes longer than the work on them. What is free beyond goes back to the system.

    bytes_max: at most FREED_BYTES_MAX.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_BYTES_MIN)
        mallopt(M_TRIM_THRESHOLD, bytes_max)
