"""Messages of a stream of the online service, received with a limit on the server's silence."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from thinrow.errors import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


__all__ = ["received"]

T = TypeVar("T")

AHEAD_MESSAGES_MAX = 2
"""Messages received before the caller takes them: a slow caller slows the server down."""


def received(
    call: Iterator[T], silence_s: float, since_s: Callable[[], float | None]
) -> Generator[T, None, None]:
    """Yields the messages of a call, which the caller cancels afterwards.

    Args:
        call: The messages.
        silence_s: Longest silence while a request has no response.
        since_s: Returns the time (by `time.monotonic`) at which the oldest request without a
            response was sent, or None if there is none.

    Raises:
        DeadlineError: The server was silent for `silence_s` while a request had no answer.
        grpc.RpcError: The call ended with an error.
    """
    messages: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    places, is_over = threading.Semaphore(AHEAD_MESSAGES_MAX), threading.Event()

    def read() -> None:
        try:
            places.acquire()
            for message in call:
                messages.put((message, None))
                places.acquire()
                if is_over.is_set():
                    return
        except BaseException as error:
            messages.put((None, error))
        else:
            messages.put((None, None))

    threading.Thread(target=read, name="thinrow-received", daemon=True).start()
    heard_s = time.monotonic()
    try:
        while True:
            waiting_s = since_s()
            now_s = time.monotonic()
            left_s = silence_s
            if waiting_s is not None:
                left_s -= now_s - max(waiting_s, heard_s)
            try:
                message, error = messages.get(timeout=max(left_s, 0.0))
            except queue.Empty:
                if waiting_s is None or since_s() != waiting_s:
                    continue
                raise DeadlineError(
                    f"The server was silent for {silence_s:g} s; check that it runs, or raise "
                    f"request_deadline_s."
                ) from None
            heard_s = time.monotonic()
            places.release()
            if error is not None:
                raise error
            if message is None:
                return
            yield message
    finally:
        is_over.set()
        places.release()
