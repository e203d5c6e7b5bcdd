"""The connections of one stream to the processes of one replica.

A connection has two threads, gRPC's to send and ours to receive; both end with it.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from thinrow.client.calls import materialize_stream
from thinrow.client.grpc_errors import translate
from thinrow.core.tracing import StreamTrace, tracing
from thinrow.core.wire.malformed import require
from thinrow.core.wire.request import on_stream
from thinrow.core.wire.response import Response
from thinrow.errors import DeadlineError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from thinrow.client.channel import Channels
    from thinrow.client.closable import ClosableChannel
    from thinrow.core.lookup.batch_lookup import RequestSlice

__all__ = ["Connections"]

# Grace period for a stream to end by itself once all responses have come.
CLOSE_GRACE_S = 1.0
# Pause before the next connection, after one that led to a process that already had one. It grows
# slowly, so that some thirty are tried in as many seconds: the kernel chooses processes at random.
EXTRA_PAUSE_S_MIN, EXTRA_PAUSE_S_MAX = 0.01, 10.0
EXTRA_PAUSE_GROWTH = 1.25
EXTRA_TRIES_MAX = 64
"""Connections in a row that find no further process, after which a server is taken to have fewer
processes than it says."""
PROCESSES_MAX = 4096
PROCESS_NAME_LENGTH_MAX = 256


class Connections:
    """The connections of one stream to one replica, one to each of its processes.

    The kernel chooses the process of a connection, and its first response names it. A connection to
    a process that already has one is abandoned, and another one is tried after a growing pause, so
    that a process that was away is found again.
    """

    def __init__(self, channels: Channels) -> None:
        self.replica = channels.current
        self._channels = channels
        self._open = [Connection(channels, channels.channel, self.replica)]
        self._abandoned: list[Connection] = []
        self._reached = self._tries = 0
        self._pause_s = EXTRA_PAUSE_S_MIN
        self._next_s = 0.0
        self._cursors = itertools.count(1)

    def send(self, piece: RequestSlice) -> SentRequest:
        """Sends a request over the connection with the fewest in flight; returns at once."""
        sent = SentRequest(next(self._cursors), self.least_busy())
        sent.connection.send(sent.cursor, piece)
        return sent

    def least_busy(self) -> Connection:
        """Returns the connection for the next request."""
        processes: set[str] = set()
        for connection in list(self._open):
            if connection.process is None:
                continue
            if connection.process in processes:
                self._open.remove(connection)
                self._abandoned.append(connection)
            processes.add(connection.process)
        for connection in list(self._abandoned):
            if not connection.awaited:
                self._abandoned.remove(connection)
                connection.close()
        wanted = min(self._channels.config.connections, self._open[0].processes)
        if len(processes) > self._reached:
            self._reached, self._pause_s, self._tries = len(processes), EXTRA_PAUSE_S_MIN, 0
        if (
            len(self._open) < wanted
            and self._tries < EXTRA_TRIES_MAX
            and time.monotonic() >= self._next_s
        ):
            self._tries += 1
            self._next_s = time.monotonic() + self._pause_s
            self._pause_s = min(EXTRA_PAUSE_GROWTH * self._pause_s, EXTRA_PAUSE_S_MAX)
            channel = self._channels.open_extra(self.replica)
            self._open.append(Connection(self._channels, channel, self.replica, is_own=True))
        return min(self._open, key=Connection.unanswered)

    def end(self) -> None:
        """Signals that no more requests come; returns at once."""
        for connection in (*self._open, *self._abandoned):
            connection.end()

    def finish(self) -> None:
        """Lets the server end the calls in an orderly way."""
        self.end()
        for connection in (*self._open, *self._abandoned):
            connection.finish()

    def close(self) -> None:
        """Ends all calls."""
        for connection in (*self._open, *self._abandoned):
            connection.close()


class SentRequest(NamedTuple):
    """One request in flight."""

    cursor: int
    connection: Connection

    def has_answered(self) -> bool:
        """Returns True if `receive` would return, or raise, at once."""
        return self.connection.has_answered()

    def wait(self, timeout_s: float) -> bool:
        """Waits until `receive` would return, or raise, at once; returns False after the time."""
        return self.connection.wait(timeout_s)

    def silence_s(self) -> float:
        """Returns the time since its connection last received something."""
        return time.monotonic() - self.connection.arrived_s

    def abandon(self) -> None:
        """Drops the response, which another replica has given."""
        self.connection.abandon(self.cursor)

    def receive(self, timeout_s: float, deadline_s: float) -> Response:
        """Waits for the response, or raises the error that ended its connection."""
        response = self.connection.receive(timeout_s, deadline_s)
        require(
            response.cursor == self.cursor,
            f"it has cursor {response.cursor} instead of {self.cursor}",
        )
        return response


class Connection:
    """One open call of MaterializeStream. Queues stay short: no more responses than requests."""

    def __init__(
        self,
        channels: Channels,
        channel: ClosableChannel,
        replica: int,
        *,
        is_own: bool = False,
    ) -> None:
        self.process: str | None = None
        """The process that answers, once it has; "" if it has no name."""
        self.processes = 1
        """Processes that share the address, once one has answered."""
        self.awaited = 0
        """Responses not yet received."""
        self.arrived_s = time.monotonic()
        """Arrival of the last response, by `time.monotonic`; at first the time of opening."""
        self.received_s = 0.0
        """Arrival of the response that was received last."""
        self.wake: threading.Event | None = None
        """Set when something arrives."""
        self._sent = 0
        self._first: tuple[Any, float] | None = None
        """The next response to receive, or the error in its place, once taken from the queue."""
        self._abandoned: set[int] = set()
        self._channels = channels
        self._own = channel if is_own else None
        self._target = channels.targets[replica]
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        spans = tracing("thinrow-client")
        self._trace = None if spans is None else StreamTrace(spans)
        metadata = channels.metadata
        if self._trace is not None:
            metadata += self._trace.metadata
        self._call = materialize_stream(channel)(
            iter(self._requests.get, None), metadata=metadata, wait_for_ready=False
        )
        self._reader = threading.Thread(target=self._read, name="thinrow-stream", daemon=True)
        self._reader.start()

    def send(self, cursor: int, piece: RequestSlice) -> None:
        """Queues a request for sending; returns at once."""
        self.awaited += 1
        self._sent += 1
        traceparent = ""
        if self._trace is not None:
            traceparent = self._trace.sent(cursor, piece.lookup.tenant, len(piece.examples))
        self._requests.put(on_stream(cursor, piece.request(), traceparent))

    def unanswered(self) -> int:
        """Returns the number of requests without a response so far."""
        return self.awaited - self._answers.qsize() - (self._first is not None)

    def has_answered(self) -> bool:
        """Returns True if `receive` would return, or raise, at once."""
        if self._first is not None:
            return True
        return not self._answers.empty() and (not self._abandoned or self.wait(0.0))

    def wait(self, timeout_s: float) -> bool:
        """Waits until `receive` would return, or raise, at once; returns False after the time."""
        until_s = time.monotonic() + timeout_s
        while self._first is None:
            try:
                arrived = self._answers.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                return False
            answer = arrived[0]
            if isinstance(answer, Response) and answer.cursor in self._abandoned:
                self._abandoned.remove(answer.cursor)
                self._finished(answer)
            else:
                self._first = arrived
        return True

    def abandon(self, cursor: int) -> None:
        """Drops the response to a request when it comes, or if it has just come."""
        self._abandoned.add(cursor)
        if self._first is not None and isinstance(self._first[0], Response):
            (answer, _), self._first = self._first, None
            assert answer.cursor == cursor, "only the oldest request is abandoned"
            self._abandoned.remove(cursor)
            self._finished(answer)

    def receive(self, timeout_s: float, deadline_s: float) -> Response:
        """Waits for the next response, or raises the error that ended the stream.

        Args:
            timeout_s: Time to wait.
            deadline_s: Time for the response over all replicas, for the error's text.
        """
        if not self.wait(timeout_s):
            raise DeadlineError(
                f"No answer came from {', '.join(self._channels.targets)} in {deadline_s:g} s; "
                f"allow more time, or request less."
            )
        assert self._first is not None
        answer, self.received_s = self._first
        if isinstance(answer, Response):  # an error stays
            self._first = None
        if answer is None or isinstance(answer, grpc.RpcError):
            self._channels.check_open()
        if isinstance(answer, grpc.RpcError):
            raise translate(answer, self._target) from answer
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            raise UnavailableError(
                f"The server at {self._target} ended the stream before it had answered; check its "
                f"log."
            )
        assert isinstance(answer, Response)
        self._finished(answer)
        return answer

    def _finished(self, answer: Response) -> None:
        """Records that a response is no longer awaited."""
        self.awaited -= 1
        if self._trace is not None:
            self._trace.answered(answer)
        if self.process is None:
            self.process, self.processes = _process(self._call.initial_metadata() or ())

    def end(self) -> None:
        """Signals that no more requests come; returns at once."""
        self._requests.put(None)

    def finish(self) -> None:
        """Lets the server end the call in an orderly way, then closes it."""
        self.end()
        self._reader.join(CLOSE_GRACE_S)
        self.close()

    def close(self) -> None:
        """Ends the call and its threads."""
        if self._trace is not None:
            self._trace.end()
        self.end()
        self._call.cancel()
        # The garbage collector may call this within the reader.
        if self._reader is not threading.current_thread():
            self._reader.join()
        if self._own is not None:
            self._channels.release(self._own)

    def _read(self) -> None:
        """Queues responses, no more than requests, then the error that ended them, or None."""
        answered = 0
        try:
            for answer in self._call:
                # Otherwise a server could fill the memory with responses to no request.
                require(answered < self._sent, f"{self._sent} requests have more answers")
                answered += 1
                self._put(Response.read_from_stream(answer))
        except BaseException as error:  # the caller must not wait for more, whatever the error
            self._put(error)
        else:
            self._put(None)

    def _put(self, answer: Response | BaseException | None) -> None:
        self.arrived_s = time.monotonic()
        self._answers.put((answer, self.arrived_s))
        wake = self.wake  # which the receiver may drop meanwhile
        if wake is not None:
            wake.set()


def _process(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[str, int]:
    """Returns the name of the process that answers, and how many share its address.

    Raises:
        MalformedError: They are no such things.
    """
    named = dict(metadata)
    name, number = str(named.get("thinrow-process", "")), str(named.get("thinrow-processes", 1))
    require(
        len(name) <= PROCESS_NAME_LENGTH_MAX and number.isascii() and number.isdecimal(),
        f"it is of process {name[:40]!r} of {number[:40]!r}",
    )
    processes = int(number[: len(str(PROCESSES_MAX)) + 1])
    require(0 < processes <= PROCESSES_MAX, f"its server has {number[:40]} processes")
    return name, processes
