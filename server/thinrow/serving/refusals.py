"""Refusals that are told late, so that who asks again at once costs little.

A call that is held has no thread. All together are told at a bounded pace, however many callers
there are; beyond HELD_MAX they are told at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    PermissionDeniedError,
    RequestError,
    StoreCorruptError,
    StoreError,
    ThinRowError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
    UnknownTenantError,
)
from thinrow.serving.limits import RETRY_AFTER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    Answers = Callable[[Iterator[bytes], grpc.ServicerContext], Generator[bytes, None, None]]

# The one table of errors; docs/operations.md tells what to do about each.
CODES: dict[type[ThinRowError], grpc.StatusCode] = {
    AnswerTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyCallsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnknownTenantError: grpc.StatusCode.NOT_FOUND,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    StoreCorruptError: grpc.StatusCode.DATA_LOSS,
    StoreError: grpc.StatusCode.INTERNAL,
    DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    ThinRowError: grpc.StatusCode.INTERNAL,
}
ERROR_METADATA = "thinrow-error"
RETRY_METADATA = "retry-after-ms"
MESSAGE_LETTERS_MAX = 1000
HELD_MAX = 512
"""Refusals held at once."""
PACE_MS = 10
"""Between two that are told: their work takes less than a tenth of a core."""


def tell(context: grpc.ServicerContext, error: ThinRowError) -> tuple[grpc.StatusCode, str]:
    """Sets what the call will end with: code and message, and the error's name beside them."""
    metadata = [(ERROR_METADATA, error.name)]
    if isinstance(error, TooManyCallsError) and error.retry_after_ms is not None:
        metadata.append((RETRY_METADATA, str(error.retry_after_ms)))
    # gRPC carries it in a header: one that is too long would take the error's place.
    message = str(error)
    if len(message) > MESSAGE_LETTERS_MAX:
        message = message[:MESSAGE_LETTERS_MAX] + "…"
    context.set_trailing_metadata(tuple(metadata))
    code = next(code for kind, code in CODES.items() if isinstance(error, kind))
    context.set_code(code)
    context.set_details(message)
    return code, message


class Refusals:
    """Holds refusals until they are due; ended by `close`."""

    def __init__(self) -> None:
        self._held: deque[tuple[float, Callable[[], None]]] = deque()
        self._due_s = 0.0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="thinrow-refusals", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._held)

    def answering(self, answers: Answers) -> Callable[..., None]:
        """What gRPC calls for a method; `answers` yields its answers, one for a single call.

        A TooManyCallsError that `answers` raises ends the call late.
        """

        def behave(
            requests: Iterator[bytes],
            context: grpc.ServicerContext,
            send: Callable[[bytes | None], None],
        ) -> None:
            try:
                with closing(answers(requests, context)) as each:
                    for answer in each:
                        send(answer)
                        if not context.is_active():
                            return
                send(None)
            except TooManyCallsError as error:
                tell(context, error)
                self.hold(lambda: send(None))

        # Lets the thread go while the call is held.
        behave.experimental_non_blocking = True  # type: ignore[attr-defined]
        return behave

    def handler(self, answers: Answers) -> grpc.RpcMethodHandler[Any, Any]:
        """As `answering`, for requests and answers in bytes.

        On the wire a single call is a stream of one message.
        """
        return grpc.stream_stream_rpc_method_handler(self.answering(answers))

    def hold(self, end: Callable[[], None]) -> None:
        """Ends a call once it is due."""
        with self._changed:
            if not self._closed and len(self._held) < HELD_MAX:
                due_s = time.monotonic() + RETRY_AFTER_MS / 1000
                self._due_s = max(due_s, self._due_s + PACE_MS / 1000)
                self._held.append((self._due_s, end))
                self._changed.notify()
                return
        end()

    def close(self) -> None:
        """Ends all that are held, and from now on at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._closed)
                if not self._held:
                    return
                due_s, end = self._held[0]
                if self._changed.wait_for(lambda: self._closed, due_s - time.monotonic()):
                    due_s = 0.0
                self._held.popleft()
            end()
