"""Settings of the C library's allocator in this process."""

from __future__ import annotations

import ctypes

__all__ = ["FREED_BYTES_MAX", "keep_freed_memory", "limit_arenas"]

# malloc.h of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

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
    set_option(M_MMAP_THRESHOLD, MMAP_BYTES_MIN)
    set_option(M_TRIM_THRESHOLD, bytes_max)


def limit_arenas(arenas_max: int) -> None:
    """Limits the heaps of the GNU C library, if there is one, that threads allocate from.

    By default there are up to eight per core, and each keeps what its threads have freed, which
    those of the other heaps cannot use. Changes the whole process, so call it before threads start.

    Args:
        arenas_max: Maximum number of heaps, at least 1.
    """
    set_option(M_ARENA_MAX, arenas_max)


def set_option(option: int, value: int) -> None:
    """Sets an option of the allocator; does nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
