"""Daemon of pyspark, whose workers apply the hooks of a test in each task.

Spark starts it, where `spark.python.daemon.module` names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyspark import daemon

if TYPE_CHECKING:
    import socket

real = daemon.worker


def worker(sock: socket.socket, authenticated: bool) -> int:
    """Runs a task as pyspark does, with hooks; a process of its own, by fork."""
    # pyspark imports it after the fork, too, because of threads.
    import pyspark.worker
    from support.task_hooks import hooks_of_task

    main = pyspark.worker.main

    def with_hooks(infile: Any, outfile: Any) -> None:  # noqa: ANN401
        # A worker that is used again waits for its task here, whose hooks may not be there yet.
        infile.peek(1)
        with hooks_of_task():
            main(infile, outfile)

    pyspark.worker.main = with_hooks
    try:
        code: int = real(sock, authenticated)
    finally:
        pyspark.worker.main = main
    return code


if __name__ == "__main__":
    daemon.worker = worker
    daemon.manager()
