"""The life of a command that serves."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["serve_until_stopped"]

SIGNAL_CHECK_S = 1.0
"""Upper bound on the delay of a signal that arrives just before its wait blocks.

Python runs the signal's handler only once the wait returns.
"""


def serve_until_stopped(
    server: AbstractContextManager[object],
    once_serving: Callable[[], None] = lambda: None,
    may_leave: Callable[[], bool] = lambda: False,
) -> None:
    """Serves until SIGTERM or Ctrl-C, and logs to standard error.

    Args:
        server: Serves between enter and exit.
        once_serving: Called after `server` was entered.
        may_leave: Returns True while entering takes long and may be interrupted.
    """
    from thinrow.access.logs import log_to_stderr

    stop = threading.Event()

    def leave(*_: object) -> None:
        stop.set()
        if may_leave():
            sys.exit()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    log_to_stderr()
    with server:
        once_serving()
        while not stop.wait(SIGNAL_CHECK_S):
            pass
