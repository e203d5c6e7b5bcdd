"""Threads that do requests, and for which no process has to wait when it ends."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["map_in_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")

STOP_CHECK_S = 0.2
"""Interval at which a wait looks whether it is to be stopped."""


def map_in_threads(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads_max: int,
    stopping: threading.Event | None = None,
) -> Iterator[Result]:
    """Applies a function to items in several threads; yields the results in the items' order.

    A request to an object store that does not answer takes a minute to fail. Unlike the threads of
    a ThreadPoolExecutor, these do not keep the interpreter from ending.

    Args:
        function: Called in the threads. After an error it is called no more.
        items: The items.
        threads_max: Number of threads.
        stopping: Once it is set, no call in flight is waited for.

    Raises:
        BaseException: The first error of the function, once no call is in flight any more.
    """
    everything = list(items)
    places = iter(range(len(everything)))
    taking, ended = threading.Lock(), threading.Event()
    done: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        while not ended.is_set():
            with taking:
                place = next(places, None)
            if place is None:
                return
            try:
                done.put((place, function(everything[place]), None))
            except BaseException as error:
                done.put((place, None, error))
                return

    threads = [
        threading.Thread(target=work, name="thinrow-objects", daemon=True)
        for _ in range(min(threads_max, len(everything)))
    ]
    for thread in threads:
        thread.start()
    try:
        yield from _in_order(done, len(everything))
    except Exception:
        ended.set()
        for thread in threads:
            while thread.is_alive() and not (stopping is not None and stopping.is_set()):
                thread.join(STOP_CHECK_S)
        raise
    finally:
        ended.set()


def _in_order(
    done: SimpleQueue[tuple[int, Result | None, BaseException | None]], count: int
) -> Iterator[Result]:
    """Yields results by their places; raises the first error as soon as there is one."""
    early: dict[int, Result] = {}
    for wanted in range(count):
        while wanted not in early:
            place, result, error = done.get()
            if error is not None:
                raise error
            early[place] = result  # type: ignore[assignment]
        yield early.pop(wanted)
