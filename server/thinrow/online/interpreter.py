"""Settings of the Python interpreter of an online server, by which requests wait for less."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OWN_LOG_SWITCH_S", "TOPIC_SWITCH_S", "interpreter_of_a_server"]

OWN_LOG_SWITCH_S = 0.0002
"""Time that a thread waits for the interpreter before it requests it. With Python's own, 5 ms,
requests would wait so long for the thread that commits."""
TOPIC_SWITCH_S = 0.001
"""The same for a topic, whose reader is interrupted less often: with 0.2 ms it falls behind the log
while all cores are busy, with 5 ms events become visible later."""


@contextmanager
def interpreter_of_a_server(switch_interval_s: float) -> Iterator[None]:
    """Sets the interpreter of this process, within the block.

    Threads switch after ``switch_interval_s``. The objects of all modules are no longer visited by
    the garbage collector, which stops every thread meanwhile.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(switch_interval_s)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval_s)
