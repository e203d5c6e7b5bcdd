"""Pipelined batches, each delivered exactly once whatever happens to the server.

The consumer's own thread pulls the input and keeps the book of what was asked and delivered. A
connection adds two threads, gRPC's to send and ours to receive; both end with the connection,
and the generator's `finally` ends that.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.client.channel import Channels, Retries, translate
from thinrow.client.lookup import Lookup, Piece, RequestSize
from thinrow.client.widen import require
from thinrow.errors import AnswerTooLargeError, DeadlineError, UnavailableError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from thinrow.client.answer import Answer
    from thinrow.client.pointers import Pointers, Projection, ThinRows

__all__ = ["answers"]

# Until an answer has told how large answers are.
FIRST_REQUEST_EXAMPLES = 64
FIRST_REQUESTS = 2
# How long a stream whose answers have all come may take to end by itself.
FAREWELL_S = 1.0


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
    retries = Retries(config)
    size = RequestSize(config, FIRST_REQUEST_EXAMPLES)
    planned: deque[Piece] = deque()  # of the input pulled last, not yet asked for
    asked: deque[tuple[int, Piece]] = deque()  # by cursor, not yet answered
    draining = False  # an empty batch: whoever gives it has nothing yet, and waits for answers
    connection: Connection | None = None
    try:
        while True:
            most = config.requests_in_flight if size.is_known else FIRST_REQUESTS
            while len(asked) < min(most, config.requests_in_flight) and (planned or not draining):
                if not planned:
                    rows = next(inputs, None)
                    if rows is None:
                        inputs = iter(())
                        break
                    planned.append(Lookup(rows, projection).whole())
                    draining = not len(rows)
                if connection is None:
                    connection = Connection(channels)
                piece, rest = planned.popleft().cut(size.examples)
                if rest is not None:
                    planned.appendleft(rest)
                asked.append((next(cursors), piece))
                connection.send(asked[-1][0], piece.request())
            if not asked:
                if connection is not None:
                    connection.finish()
                return
            assert connection is not None
            try:
                answer = connection.receive(deadline_s)
            except (AnswerTooLargeError, UnavailableError) as error:
                connection.close()
                failed, connection = connection.replica, None
                planned.extendleft(piece for _, piece in reversed(asked))
                asked.clear()
                if isinstance(error, AnswerTooLargeError):
                    # Answers come in order, so the first without one is the one refused.
                    refused = len(planned[0].examples)
                    if refused <= 1:
                        raise
                    size.refused(refused)
                elif retries.pause():
                    channels.fail_over(failed)
                else:
                    raise
                continue
            retries.reset()
            cursor, piece = asked.popleft()
            draining = draining and bool(asked or planned)
            require(answer.cursor == cursor, f"it has cursor {answer.cursor} instead of {cursor}")
            size.answered(piece.answered(answer.response))
            if piece.last:
                yield piece.lookup.answer()
    finally:
        if connection is not None:
            connection.close()


class Connection:
    """One open call of MaterializeStream. Queues stay short: no more answers than requests."""

    def __init__(self, channels: Channels) -> None:
        self.replica = channels.current
        self._targets = channels.targets
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = channels.stub.MaterializeStream(
            iter(self._requests.get, None), metadata=channels.metadata, wait_for_ready=False
        )
        self._reader = threading.Thread(
            target=read, args=(self._call, self._answers), name="thinrow-stream", daemon=True
        )
        self._reader.start()

    def send(self, cursor: int, request: wire.MaterializeRequest) -> None:
        """Sends when there is room on the wire; returns at once."""
        self._requests.put(wire.MaterializeStreamRequest(cursor=cursor, request=request))

    def receive(self, deadline_s: float) -> wire.MaterializeStreamResponse:
        """Waits for the next answer, or raises what ended the stream."""
        try:
            answer = self._answers.get(timeout=deadline_s)
        except queue.Empty:
            raise DeadlineError(
                f"No answer came from {', '.join(self._targets)} in {deadline_s:g} s; allow more "
                f"time, or ask for less."
            ) from None
        if isinstance(answer, grpc.RpcError):
            raise translate(answer, self._targets) from answer
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            raise UnavailableError(
                f"The server at {', '.join(self._targets)} ended the stream before it had "
                f"answered; check its log."
            )
        assert isinstance(answer, wire.MaterializeStreamResponse)
        return answer

    def finish(self) -> None:
        """Lets the server end the call in good order."""
        self._requests.put(None)
        self._reader.join(FAREWELL_S)

    def close(self) -> None:
        """Ends the call and its threads."""
        self._requests.put(None)
        self._call.cancel()
        # The collector of garbage may call from within the reader.
        if self._reader is not threading.current_thread():
            self._reader.join()


def read(call: Iterable[wire.MaterializeStreamResponse], answers: queue.SimpleQueue[Any]) -> None:
    """Queues answers, then what ended them: an error, or None."""
    try:
        for answer in call:
            answers.put(answer)
    except BaseException as error:  # whatever it is, the caller must not wait for more
        answers.put(error)
    else:
        answers.put(None)
