"""Settings of the Python interpreter of an online server, by which requests wait for less."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SWITCH_INTERVAL_S", "interpreter_of_a_server"]

SWITCH_INTERVAL_S = 0.0002
"""Time that a thread waits for the interpreter before it requests it. With Python's own, 5 ms,
requests would wait so long for the thread that applies events."""


@contextmanager
def interpreter_of_a_server() -> Iterator[None]:
    """Sets the interpreter of this process, within the block.

    Threads switch after SWITCH_INTERVAL_S. The objects of all modules are no longer visited by the
    garbage collector, which stops every thread meanwhile.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval_s)
