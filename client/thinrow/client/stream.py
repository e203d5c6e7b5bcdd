"""Pipelined batches, each delivered exactly once whatever happens to the server.

The consumer's own thread pulls the input and keeps the book of what was asked and delivered. A
connection adds two threads, gRPC's to send and ours to receive; both end with the connection,
and the generator's `finally` ends that. A server of several processes is asked over several
connections, and what it answers is taken in the order of asking.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.client.calls import materialize_stream
from thinrow.client.channel import Channels, Patience, Retries, translate
from thinrow.client.request_size import RequestSize
from thinrow.core.tracing import StreamTrace, tracing
from thinrow.core.wire.batch_lookup import BatchLookup, RequestSlice
from thinrow.core.wire.malformed import require
from thinrow.core.wire.request import on_stream
from thinrow.core.wire.response import Response
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from thinrow.client.closable import ClosableChannel
    from thinrow.core.pointers import Pointers, Projection, ThinRows
    from thinrow.core.wire.answer import Answer

__all__ = ["answers"]

# Until an answer has told how large answers are.
FIRST_REQUEST_EXAMPLES = 64
FIRST_REQUESTS = 2
# With fewer under way the server may run out of work; with more, answers that are there come first.
REQUESTS_FIRST = 4
# How long a stream whose answers have all come may take to end by itself.
CLOSE_GRACE_S = 1.0
# Before the next connection is opened, where the last one led to a process that was reached before.
# Grows so slowly that some thirty are tried in as many seconds: which process is a matter of luck.
FURTHER_PAUSE_S_MIN, FURTHER_PAUSE_S_MAX = 0.01, 10.0
FURTHER_PAUSE_GROWTH = 1.25


def answers(
    channels: Channels,
    batches: Iterable[ThinRows | Pointers],
    projection: Projection | str,
    deadline_s: float,
) -> Generator[Answer, None, None]:
    """See Client.answers."""
    config = channels.config
    inputs: Iterator[ThinRows | Pointers] = iter(batches)
    cursors = itertools.count(1)
    retries, patience = Retries(config), Patience(channels, deadline_s)
    size = RequestSize(config, FIRST_REQUEST_EXAMPLES)
    planned: deque[RequestSlice] = deque()  # of the input pulled last, not yet asked for
    asked: deque[tuple[int, RequestSlice, Connection]] = deque()  # by cursor, not yet answered
    draining = False  # an empty batch: whoever gives it has nothing yet, and waits for answers
    answered = False  # since the last connection was opened for a new token
    connections: Connections | None = None
    try:
        while True:
            most = config.requests_in_flight if size.is_known else FIRST_REQUESTS
            while len(asked) < min(most, config.requests_in_flight) and (planned or not draining):
                if len(asked) >= REQUESTS_FIRST and asked[0][2].has_answered():
                    break
                if not planned:
                    rows = next(inputs, None)
                    if rows is None:
                        inputs = iter(())
                        break
                    planned.append(BatchLookup(rows, projection).whole())
                    draining = not len(rows)
                if connections is None:
                    connections = Connections(channels)
                piece, rest = planned.popleft().cut(size.examples)
                if rest is not None:
                    planned.appendleft(rest)
                asked.append((next(cursors), piece, connections.least_busy()))
                asked[-1][2].send(asked[-1][0], piece)
            if not asked:
                if connections is not None:
                    connections.finish()
                return
            assert connections is not None
            waiting_s = time.monotonic()
            try:
                cursor, piece, connection = asked[0]
                timeout_s = patience.timeout_s(connections.replica)
                answer = connection.receive(timeout_s, deadline_s)
                require(
                    answer.cursor == cursor, f"it has cursor {answer.cursor} instead of {cursor}"
                )
                part = piece.answered(answer)
            except (
                AnswerTooLargeError,
                DeadlineError,
                TooManyCallsError,
                UnauthenticatedError,
                UnavailableError,
            ) as error:
                connections.close()
                failed, connections = connections.replica, None
                channels.check_open()
                planned.extendleft(piece for _, piece, _ in reversed(asked))
                asked.clear()
                if isinstance(error, AnswerTooLargeError):
                    # Answers come in order, so the first without one is the one refused.
                    refused = len(planned[0].examples)
                    if refused <= 1:
                        raise
                    size.refused(refused)
                elif isinstance(error, UnauthenticatedError):
                    # The token that it began with may have been replaced meanwhile.
                    if not answered or not callable(config.token):
                        raise
                    answered = False
                elif isinstance(error, DeadlineError):
                    # Also if this is the end: the next stream need not find the same silence.
                    channels.fail_over(failed)
                    if not patience.is_silent(failed, time.monotonic() - waiting_s):
                        raise
                elif retries.pause(error):
                    channels.fail_over(failed)
                else:
                    raise
                continue
            retries.reset()
            patience.reset()
            answered = True
            asked.popleft()
            draining = draining and bool(asked or planned)
            size.answered(part)
            if piece.last:
                yield piece.lookup.answer()
    finally:
        if connections is not None:
            connections.close()


class Connections:
    """The connections of one stream to one replica: where it has several processes, to each.

    Which process a connection leads to is for the kernel to choose, and told with its first answer.
    One that leads where another does is given up, and another one tried, ever more seldom, so
    that a process which was away is found again.
    """

    def __init__(self, channels: Channels) -> None:
        self.replica = channels.current
        self._channels = channels
        self._open = [Connection(channels, channels.channel)]
        self._given_up: list[Connection] = []
        self._reached = 0
        self._pause_s = FURTHER_PAUSE_S_MIN
        self._next_s = 0.0

    def least_busy(self) -> Connection:
        """The one to ask next."""
        processes: set[str] = set()
        for connection in list(self._open):
            if connection.process is None:
                continue
            if connection.process in processes:
                self._open.remove(connection)
                self._given_up.append(connection)
            processes.add(connection.process)
        for connection in list(self._given_up):
            if not connection.awaited:
                self._given_up.remove(connection)
                connection.close()
        wanted = min(self._channels.config.connections, self._open[0].processes)
        if len(processes) > self._reached:
            self._reached, self._pause_s = len(processes), FURTHER_PAUSE_S_MIN
        if len(self._open) < wanted and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + self._pause_s
            self._pause_s = min(FURTHER_PAUSE_GROWTH * self._pause_s, FURTHER_PAUSE_S_MAX)
            channel = self._channels.open_extra(self.replica)
            self._open.append(Connection(self._channels, channel, is_own=True))
        return min(self._open, key=Connection.unanswered)

    def finish(self) -> None:
        """Lets the server end the calls in good order."""
        for connection in (*self._open, *self._given_up):
            connection.end()
        for connection in (*self._open, *self._given_up):
            connection.finish()

    def close(self) -> None:
        """Ends all calls."""
        for connection in (*self._open, *self._given_up):
            connection.close()


class Connection:
    """One open call of MaterializeStream. Queues stay short: no more answers than requests."""

    def __init__(
        self,
        channels: Channels,
        channel: ClosableChannel,
        *,
        is_own: bool = False,
    ) -> None:
        self.process: str | None = None
        """The process that answers, once it has; "" where it has no name."""
        self.processes = 1
        """How many processes share the address, once one has answered."""
        self.awaited = 0
        """Answers not yet received."""
        self._sent = 0
        self._channels = channels
        self._own = channel if is_own else None
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
        """Sends when there is room on the wire; returns at once."""
        self.awaited += 1
        self._sent += 1
        traceparent = ""
        if self._trace is not None:
            traceparent = self._trace.asked(cursor, piece.lookup.tenant, len(piece.examples))
        self._requests.put(on_stream(cursor, piece.request(), traceparent))

    def unanswered(self) -> int:
        """Requests that the server has not answered, as far as is known here."""
        return self.awaited - self._answers.qsize()

    def has_answered(self) -> bool:
        """Tells whether `receive` would return, or raise, at once."""
        return not self._answers.empty()

    def receive(self, timeout_s: float, deadline_s: float) -> Response:
        """Waits for the next answer, or raises what ended the stream.

        deadline_s: of the answer in all, for the error.
        """
        targets = self._channels.targets
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise DeadlineError(
                f"No answer came from {', '.join(targets)} in {deadline_s:g} s; allow more "
                f"time, or ask for less."
            ) from None
        if answer is None or isinstance(answer, grpc.RpcError):
            self._channels.check_open()
        if isinstance(answer, grpc.RpcError):
            raise translate(answer, targets) from answer
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            raise UnavailableError(
                f"The server at {', '.join(targets)} ended the stream before it had "
                f"answered; check its log."
            )
        assert isinstance(answer, Response)
        self.awaited -= 1
        if self._trace is not None:
            self._trace.answered(answer)
        if self.process is None:
            told = dict(self._call.initial_metadata() or ())
            self.process = str(told.get("thinrow-process", ""))
            self.processes = int(told.get("thinrow-processes", 1))
        return answer

    def end(self) -> None:
        """Says that no more requests come; returns at once."""
        self._requests.put(None)

    def finish(self) -> None:
        """Lets the server end the call in good order, and closes what it leaves."""
        self.end()
        self._reader.join(CLOSE_GRACE_S)
        self.close()

    def close(self) -> None:
        """Ends the call and its threads."""
        if self._trace is not None:
            self._trace.end()
        self.end()
        self._call.cancel()
        # The collector of garbage may call from within the reader.
        if self._reader is not threading.current_thread():
            self._reader.join()
        if self._own is not None:
            self._channels.release(self._own)

    def _read(self) -> None:
        """Queues answers, no more than requests, then what ended them: an error, or None."""
        answered = 0
        try:
            for answer in self._call:
                # Otherwise a server could fill the memory with answers that nobody asked for.
                require(answered < self._sent, f"{self._sent} requests have more answers")
                answered += 1
                self._answers.put(Response.read_from_stream(answer))
        except BaseException as error:  # whatever it is, the caller must not wait for more
            self._answers.put(error)
        else:
            self._answers.put(None)
