"""Memory of a serving process: freed memory is reused, from one heap."""

from __future__ import annotations

from thinrow.core.memory import keep_freed_memory, limit_arenas

__all__ = ["set_up_memory"]

FREED_BYTES_KEPT = 1 << 30
"""Freed memory beyond this goes back to the system."""
ARENAS_MAX = 1
"""Several, by default eight per core, may keep more together than the server's memory bound."""


def set_up_memory() -> None:
    """Makes the process reuse the memory that it frees, from one heap.

    Call it first of all: a heap that a library's thread has made stays.
    """
    limit_arenas(ARENAS_MAX)
    keep_freed_memory(FREED_BYTES_KEPT)
