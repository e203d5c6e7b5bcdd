"""One stream of snapshot requests that all threads of a client share.

A request is then a part of a message, and not a call. Few messages are in flight, and requests that
arrive meanwhile share the next message: the busier the server, the larger its messages.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.client.closable import CLOSED
from thinrow.core.wire.malformed import require
from thinrow.errors import DeadlineError, ThinRowError, UnauthenticatedError, UnavailableError
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Metadata = tuple[tuple[str, str], ...]
    Answer = online_pb2.StreamedAnswer | ThinRowError
    Deliver = Callable[[Answer], None]

__all__ = ["SnapshotStream", "no_answer"]

MESSAGES_MAX = 2
"""Messages in flight: one that the server works on, and one that it finds afterwards."""
REQUESTS_MAX = 64
"""Requests in one message, the server's limit."""
IDLE_S = 30.0
"""An idle stream ends after this time, because it counts against the server's limit of calls."""
DEADLINE_MS_MAX = (1 << 32) - 1
CODES = {code.value[0]: code for code in grpc.StatusCode}


class SnapshotStream:
    """Sends requests on a stream that it opens on demand, and again after a failure. Thread-safe.

    Args:
        call: The method SnapshotStream.
        metadata: Returns the metadata of a call.
        failure: Converts a gRPC error to one of `thinrow.errors`.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        metadata: Callable[[], Metadata],
        failure: Callable[[grpc.RpcError], ThinRowError],
    ) -> None:
        self._open = call
        self._metadata = metadata
        self._failure = failure
        self._connection: _Connection | None = None
        self._closed = False
        self._lock = threading.Lock()

    def request(
        self, request: online_pb2.SnapshotRequest, deadline_s: float
    ) -> online_pb2.SnapshotResponse:
        """Returns the response; raises as a call of its own would."""
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.send(request, deadline_s, answers.put)
        try:
            answer = answers.get(timeout=deadline_s)
        except queue.Empty:
            raise no_answer(deadline_s) from None
        return self.response(answer)

    def send(
        self,
        request: online_pb2.SnapshotRequest,
        deadline_s: float,
        deliver: Deliver,
        *,
        is_repeated: bool = False,
    ) -> None:
        """Sends with the next message.

        Args:
            request: The request.
            deadline_s: Time that it may wait at the server.
            deliver: Called with the answer, or the error that ended the stream, in any thread.
            is_repeated: True if the stream has refused the request's token before.
        """

        def outcome(answer: Answer) -> None:
            if isinstance(answer, UnauthenticatedError) and connection.answered and not is_repeated:
                # The token of this stream has expired since it was opened.
                try:
                    self.send(request, deadline_s, deliver, is_repeated=True)
                except ThinRowError as error:
                    deliver(error)
            else:
                deliver(answer)

        while True:
            with self._lock:
                if self._closed:
                    raise UnavailableError(CLOSED)
                if self._connection is None or self._connection.ended:
                    self._connection = _Connection(self._open, self._metadata(), self._failure)
                connection = self._connection
            if connection.send(request, deadline_s, outcome):
                return

    def response(self, answer: Answer) -> online_pb2.SnapshotResponse:
        """Returns the response in an answer, or raises the error in its place."""
        if isinstance(answer, ThinRowError):
            raise answer
        if answer.HasField("error"):
            raise self._failure(_Refused(answer.error))
        return answer.response

    @property
    def arrived_s(self) -> float:
        """Time of the last message received, `time.monotonic`; 0 if the stream has ended."""
        connection = self._connection
        return 0.0 if connection is None else connection.arrived_s

    def abandon(self, failure: ThinRowError) -> None:
        """Fails the requests in flight at once; the next one opens the stream again."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon(failure)

    def close(self) -> None:
        """Ends the stream; requests in flight fail."""
        with self._lock:
            self._closed = True
            connection = self._connection
        if connection is not None:
            connection.close()


class _Connection:
    """One open stream, with the thread that reads its responses."""

    def __init__(
        self,
        call: Callable[..., Any],
        metadata: Metadata,
        failure: Callable[[grpc.RpcError], ThinRowError],
    ) -> None:
        self._failure = failure
        self._cursors = itertools.count(1)
        self._waiting: deque[online_pb2.StreamedRequest] = deque()
        self._unanswered: dict[int, Deliver] = {}
        self._messages: deque[list[int]] = deque()
        """The cursors of each message in flight, oldest first."""
        self._changed = threading.Condition(threading.Lock())
        self.ended = False
        """True once it accepts no more requests."""
        self.answered = False
        """True once a response has come."""
        self.arrived_s = time.monotonic()
        """Time of the last message received, `time.monotonic`; at first that of opening."""
        self._call = call(self._outgoing(), metadata=metadata)
        self._reader = threading.Thread(target=self._read, name="thinrow-snapshots", daemon=True)
        self._reader.start()

    def send(
        self, request: online_pb2.SnapshotRequest, deadline_s: float, deliver: Deliver
    ) -> bool:
        """Sends with the next message; returns False if the stream has ended."""
        deadline_ms = min(max(int(deadline_s * 1000), 1), DEADLINE_MS_MAX)
        with self._changed:
            if self.ended:
                return False
            cursor = next(self._cursors)
            self._unanswered[cursor] = deliver
            self._waiting.append(
                online_pb2.StreamedRequest(cursor=cursor, request=request, deadline_ms=deadline_ms)
            )
            if len(self._messages) < MESSAGES_MAX:
                self._changed.notify()
        return True

    def abandon(self, failure: ThinRowError) -> None:
        """Ends the call, and fails its requests; does not wait for its thread."""
        self._call.cancel()
        self._end(failure)

    def close(self) -> None:
        """Ends the call and its thread."""
        self.abandon(UnavailableError(CLOSED))
        if self._reader is not threading.current_thread():
            self._reader.join()

    def _outgoing(self) -> Iterator[online_pb2.SnapshotStreamRequest]:
        """Yields messages of waiting requests, one as soon as it may be sent; for gRPC's thread."""
        while True:
            with self._changed:
                while not (self._waiting and len(self._messages) < MESSAGES_MAX) and not self.ended:
                    if not self._changed.wait(IDLE_S) and not self._unanswered:
                        self.ended = True
                if self.ended:
                    return
                count = min(len(self._waiting), REQUESTS_MAX)
                requests = [self._waiting.popleft() for _ in range(count)]
                self._messages.append([request.cursor for request in requests])
            yield online_pb2.SnapshotStreamRequest(requests=requests)

    def _read(self) -> None:
        failure: ThinRowError = UnavailableError(
            "The online server ended the stream before it had answered; check its log."
        )
        try:
            for message in self._call:
                self._deliver(message)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:  # else the server is stopping
                failure = self._failure(error)
        except ThinRowError as error:
            failure = error
            self._call.cancel()
        finally:
            self._end(failure)

    def _deliver(self, message: online_pb2.SnapshotStreamResponse) -> None:
        cursors = sorted(answer.cursor for answer in message.answers)
        with self._changed:
            expected = sorted(self._messages.popleft()) if self._messages else []
            require(
                cursors == expected,
                f"it answers {len(cursors)} of {len(expected)} requests, or others than those sent",
            )
            self._changed.notify()
            answered = [(self._unanswered.pop(each.cursor, None), each) for each in message.answers]
        self.answered, self.arrived_s = True, time.monotonic()
        for deliver, answer in answered:
            if deliver is not None:
                deliver(answer)

    def _end(self, failure: ThinRowError) -> None:
        with self._changed:
            self.ended = True
            unanswered = list(self._unanswered.values())
            self._unanswered.clear()
            self._waiting.clear()
            self._changed.notify()
        for deliver in unanswered:
            deliver(failure)


def no_answer(deadline_s: float) -> DeadlineError:
    """Returns the error of a request that had no answer in time."""
    return DeadlineError(f"No snapshot came in {deadline_s:g} s; allow more time, or request less.")


class _Refused(grpc.RpcError):
    """The error of one request, in the form of a call's error."""

    def __init__(self, error: online_pb2.CallError) -> None:
        super().__init__(error.message)
        self._error = error

    def code(self) -> grpc.StatusCode:
        return CODES.get(self._error.code, grpc.StatusCode.UNKNOWN)

    def details(self) -> str:
        return self._error.message

    def trailing_metadata(self) -> Any:  # noqa: ANN401 - of a private type of the library
        return (("thinrow-error", self._error.name),)
