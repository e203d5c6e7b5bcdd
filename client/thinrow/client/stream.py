"""Pipelined batches, each delivered exactly once, also when servers fail.

The consumer's own thread pulls the input and tracks which requests are in flight. Responses are
consumed in the order of the requests, from servers or from a store in this process.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from thinrow.client.request_size import RequestSize
from thinrow.client.retries import Patience, Retries
from thinrow.core.lookup.batch_lookup import BatchLookup, RequestSlice
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from thinrow.client.transport import PendingResponse, RequestStream, Transport
    from thinrow.core.lookup.answer import Answer
    from thinrow.core.lookup.coding import Coder
    from thinrow.core.pointers import Pointers, Projection, ThinRows

__all__ = ["answers"]

# Used until the first response shows how large responses are.
UNKNOWN_SIZE_EXAMPLES = 64
UNKNOWN_SIZE_REQUESTS_MAX = 2
# With fewer in flight the server may run out of work; with more, responses are consumed first.
REQUESTS_BEFORE_RESPONSES = 4


def answers(
    transport: Transport,
    batches: Iterable[ThinRows | Pointers],
    projection: Projection | str,
    deadline_s: float,
    coder: Coder,
) -> Generator[Answer, None, None]:
    """Yields the answers to `batches`; see `Client.answers`."""
    config = transport.config
    inputs: Iterator[ThinRows | Pointers] = iter(batches)
    retries, patience = Retries(config), Patience(transport, deadline_s)
    size = RequestSize(config, UNKNOWN_SIZE_EXAMPLES)
    planned: deque[RequestSlice] = deque()  # of the input pulled last, not yet sent
    in_flight: deque[tuple[RequestSlice, PendingResponse]] = deque()
    draining = False  # after an empty batch, until all before it is delivered
    answered = False  # since the last connection was opened for a new token
    stream: RequestStream | None = None
    try:
        while True:
            most = config.requests_in_flight if size.is_known else UNKNOWN_SIZE_REQUESTS_MAX
            while len(in_flight) < min(most, config.requests_in_flight) and (
                planned or not draining
            ):
                if len(in_flight) >= REQUESTS_BEFORE_RESPONSES and in_flight[0][1].has_answered():
                    break
                if not planned:
                    rows = next(inputs, None)
                    if rows is None:
                        inputs = iter(())
                        break
                    planned.append(BatchLookup(rows, projection, coder).whole())
                    draining = not len(rows)
                if stream is None:
                    stream = transport.open_stream()
                piece, rest = planned.popleft().cut(size.examples)
                if rest is not None:
                    planned.appendleft(rest)
                in_flight.append((piece, stream.send(piece)))
            if not in_flight:
                if stream is not None:
                    stream.finish()
                return
            assert stream is not None
            waiting_s = time.monotonic()
            try:
                piece, pending = in_flight[0]
                answer = pending.receive(patience.timeout_s(stream.replica), deadline_s)
                response = piece.answered(answer)
            except (
                AnswerTooLargeError,
                DeadlineError,
                TooManyCallsError,
                UnauthenticatedError,
                UnavailableError,
            ) as error:
                stream.close()
                failed, stream = stream.replica, None
                transport.check_open()
                planned.extendleft(piece for piece, _ in reversed(in_flight))
                in_flight.clear()
                if isinstance(error, AnswerTooLargeError):
                    # Responses come in order, so the first request without one was rejected.
                    rejected = len(planned[0].examples)
                    if rejected <= 1:
                        raise
                    size.rejected(rejected)
                elif isinstance(error, UnauthenticatedError):
                    # The token may have been replaced since the stream began.
                    if not answered or not callable(config.token):
                        raise
                    answered = False
                elif isinstance(error, DeadlineError):
                    # Also on the last attempt, so that the next stream starts at another replica.
                    transport.fail_over(failed)
                    if not patience.is_silent(failed, time.monotonic() - waiting_s):
                        raise
                elif retries.pause(error):
                    transport.fail_over(failed)
                else:
                    raise
                continue
            retries.reset()
            patience.reset()
            answered = True
            in_flight.popleft()
            draining = draining and bool(in_flight or planned)
            size.answered(response)
            if piece.last:
                yield piece.lookup.answer()
    finally:
        if stream is not None:
            stream.close()
