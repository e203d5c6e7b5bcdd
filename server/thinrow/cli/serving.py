"""The life of a command that serves."""

from __future__ import annotations

import signal
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
    server: AbstractContextManager[object], once_serving: Callable[[], None] = lambda: None
) -> None:
    """Serves until SIGTERM or Ctrl-C, and logs to standard error.

    Args:
        server: Serves between enter and exit.
        once_serving: Called after `server` was entered.
    """
    from thinrow.access.logs import log_to_stderr

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log_to_stderr()
    with server:
        once_serving()
        while not stop.wait(SIGNAL_CHECK_S):
            pass
