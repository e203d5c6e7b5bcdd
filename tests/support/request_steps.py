"""Runs a command that kills itself before its N-th request to an object store.

python request_steps.py N COMMAND...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from thinrow.cli.entry import main
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REQUESTS = ("read", "create", "replace", "write", "upload", "download", "listed")


@contextmanager
def before_request(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Calls a function before the request of that number, whatever it is; 1 is the first."""
    count = 0
    lock, inside = threading.Lock(), threading.local()

    def wrapped(name: str) -> Callable[..., Any]:
        real = getattr(ObjectStore, name)

        def call(store: ObjectStore, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            nonlocal count
            if getattr(inside, "is_request", False):
                return real(store, *arguments, **options)  # a part of another one
            with lock:
                count += 1
                is_due = count == number
            if is_due:
                act()
            inside.is_request = True
            try:
                return real(store, *arguments, **options)
            finally:
                inside.is_request = False

        return call

    with ExitStack() as patches:
        for name in REQUESTS:
            patches.enter_context(mock.patch.object(ObjectStore, name, wrapped(name)))
        yield


if __name__ == "__main__":
    last = int(sys.argv[1])
    sys.argv = ["thinrow", *sys.argv[2:]]
    with before_request(last, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        main()
