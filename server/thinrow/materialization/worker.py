"""One of several processes on a port; FD leads to its parent.

    python -m thinrow.materialization.worker FD

It receives its number and configuration, reports when it is ready or why it cannot be, and sends
its metrics on request. It drains on request, or when its parent is gone.
"""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from thinrow.access.logs import log_to_stderr
from thinrow.access.memory import loading, set_up_memory
from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    from thinrow.materialization.config import ServerConfig

__all__ = ["leave", "main", "serve"]


def main() -> None:
    """Runs the process."""
    set_up_memory()
    parent: Connection[Any, Any] = Connection(int(sys.argv[1]))
    number, config = parent.recv()
    signal.signal(signal.SIGTERM, leave)
    log_to_stderr()

    def name(record: logging.LogRecord) -> bool:
        record.worker = number
        return True

    for handler in logging.getLogger("thinrow").handlers:
        handler.addFilter(name)
    # Without a parent there is no one to report to.
    with suppress(OSError):
        serve(config, parent)


def serve(config: ServerConfig, parent: Connection[Any, Any]) -> None:
    """Serves until it is stopped, one way or another."""
    with loading():
        from thinrow.materialization.server import Server

    server = Server(config)
    try:
        with suppress(SystemExit, EOFError, ConnectionResetError), server:
            parent.send(None)
            try:
                while parent.recv():
                    parent.send(list(server.metrics.registry.collect()))
            except SystemExit:
                parent.send(False)
    except ThinRowError as error:
        parent.send(error)
    else:
        parent.send(list(server.metrics.registry.collect()))


def leave(*_: object) -> None:
    """Ends the waiting; a second signal does not disturb the drain."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()


if __name__ == "__main__":
    main()
