"""Time that a thread of an online server waits for the interpreter."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OWN_LOG_SWITCH_S", "TOPIC_SWITCH_S", "thread_switches"]

OWN_LOG_SWITCH_S = 0.0002
"""Time that a thread waits for the interpreter before it requests it. With Python's own, 5 ms,
requests would wait so long for the thread that commits."""
TOPIC_SWITCH_S = 0.001
"""The same for a topic, whose reader is interrupted less often: with 0.2 ms it falls behind the log
while all cores are busy, with 5 ms events become visible later."""


@contextmanager
def thread_switches(interval_s: float) -> Iterator[None]:
    """Lets threads of this process switch after an interval, within the block."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)
