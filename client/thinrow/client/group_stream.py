"""The requests of one stream that go to one group: in flight, repeated and hedged."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import grpc
import numpy as np
from thinrow.client.channel import Channels
from thinrow.client.connections import SentRequest
from thinrow.client.request_size import RequestSize
from thinrow.client.retries import Patience, Retries
from thinrow.core.status import Status
from thinrow.core.wire.response import Response
from thinrow.errors import (
    AnswerTooLargeError,
    DeadlineError,
    TooManyCallsError,
    UnauthenticatedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from thinrow.client.hedging import Hedging
    from thinrow.client.transport import PendingResponse, RequestStream, Transport
    from thinrow.core.lookup.batch_lookup import BatchLookup, RequestSlice
    from thinrow.core.lookup.checked_response import CheckedResponse
    from thinrow.errors import ThinRowError

__all__ = ["GroupStream"]

# Used until the first response shows how large responses are.
UNKNOWN_SIZE_EXAMPLES = 64
UNKNOWN_SIZE_REQUESTS_MAX = 2
RECHECK_S = 0.5
"""Pause before another replica is considered again, while one is silent: it may be well by now."""
LACKED = (Status.NOT_READY, Status.ELSEWHERE)
"""Statuses of examples whose histories another replica of the group may have."""
HEDGES_WON_MAX = 2
"""Hedges in a row that another replica answers, after which a silent one is left."""


class InFlight(NamedTuple):
    """One request without a response so far."""

    piece: RequestSlice
    pending: PendingResponse
    stream: RequestStream
    sent_s: float
    load: float
    """Number of its examples, as a part of the most that a request has."""


class GroupStream:
    """Requests to one group, and the connections that they use; not thread-safe.

    Responses are received in the order of the requests. If a connection fails, its requests are
    sent again, there or to the next replica.
    """

    def __init__(
        self, group: Transport, deadline_s: float, examples: int = UNKNOWN_SIZE_EXAMPLES
    ) -> None:
        """Prepares the stream; the first send connects it.

        Args:
            group: The group.
            deadline_s: Longest wait for each response.
            examples: Examples of a request before the first response.
        """
        self.group = group
        self.planned: deque[RequestSlice] = deque()
        """Examples that were not sent yet, or are to be sent again."""
        self.in_flight: deque[InFlight] = deque()
        self.load = 0.0
        """Sum of the requests in flight, each as a part of the largest one."""
        self._config = group.config
        self._deadline_s = deadline_s
        self._size = RequestSize(self._config, examples)
        self._retries, self._patience = Retries(self._config), Patience(group, deadline_s)
        self._stream: RequestStream | None = None
        self._draining: list[RequestStream] = []  # to a replica that is no longer preferred
        self._ended: RequestStream | None = None  # the last of those, once it has drained
        self._answered = False  # since the last connection was opened for a new token
        self._has_followed = False  # a newer map, since the last response
        self._hedges_won = 0
        self._silent_since_s = 0.0
        self._use = ExitStack()
        self._use.enter_context(group.in_use())

    @property
    def has_room(self) -> bool:
        """True if another request may be sent."""
        most = self._config.requests_in_flight
        if not self._size.is_known:
            most = min(most, UNKNOWN_SIZE_REQUESTS_MAX)
        return len(self.in_flight) < most

    def is_next(self, lookup: BatchLookup) -> bool:
        """Returns True if the oldest request in flight is about a batch."""
        return bool(self.in_flight) and self.in_flight[0].piece.lookup is lookup

    def has_answered(self, lookup: BatchLookup | None, requests: int) -> bool:
        """Returns True if `requests` are in flight, and the oldest, about a batch, has answered."""
        if len(self.in_flight) < requests or self.in_flight[0].piece.lookup is not lookup:
            return False
        return self.in_flight[0].pending.has_answered()

    def send(self) -> float:
        """Sends the examples planned first, as many as one request has; returns their load."""
        stream, hedging = self._stream, self._hedging
        if stream is not None and hedging is not None and stream.replica != self.group.current:
            self._draining.append(stream)
            stream = None
        if stream is None:
            stream = self._stream = self.group.open_stream()
        piece, rest = self.planned.popleft().cut(self._size.examples)
        if rest is not None:
            self.planned.appendleft(rest)
        load = len(piece.examples) / self._size.examples
        pending = stream.send(piece)
        self.in_flight.append(InFlight(piece, pending, stream, time.monotonic(), load))
        self.load += load
        if hedging is not None:
            hedging.sent()
        return load

    def receive(self) -> tuple[RequestSlice, CheckedResponse] | None:
        """Waits for the oldest response.

        Returns:
            The examples and the response; None if they are planned again.

        Raises:
            ThinRowError: No replica answers in time, or the request cannot be answered.
        """
        first = self.in_flight[0]
        waiting_s = time.monotonic()
        try:
            response = self._response(first)
            checked = first.piece.answered(response)
        except (
            AnswerTooLargeError,
            DeadlineError,
            TooManyCallsError,
            UnauthenticatedError,
            UnavailableError,
        ) as error:
            self._recover(error, first, time.monotonic() - waiting_s)
            return None
        self._retries.reset()
        self._patience.reset()
        self._answered, self._has_followed = True, False
        self.in_flight.popleft()
        self.load -= first.load
        self._size.answered(checked)
        if self._hedges_won >= HEDGES_WON_MAX:
            self.group.fail_over(first.stream.replica)
            self._close(first.stream)
        for stream in self._draining:
            if all(each.stream is not stream for each in self.in_flight):
                self._draining.remove(stream)
                self._end(stream)
                break
        return first.piece, checked

    def end(self) -> None:
        """Signals the end of its connections, once every response was received; returns at once."""
        for stream in self._connections:
            stream.end()
        self._use.close()

    def finish(self) -> None:
        """Ends its connections in an orderly way, once every response was received."""
        self.end()
        for stream in self._connections:
            stream.finish()

    def close(self) -> None:
        """Ends its connections; may be called again."""
        for stream in self._connections:
            stream.close()
        self._use.close()

    @property
    def _connections(self) -> list[RequestStream]:
        streams = (*self._draining, self._ended, self._stream)
        return [stream for stream in streams if stream is not None]

    @property
    def _hedging(self) -> Hedging | None:
        return self.group.hedging if isinstance(self.group, Channels) else None

    def _recover(self, error: ThinRowError, first: InFlight, waited_s: float) -> None:
        """Plans the requests of a connection again that failed, after a pause.

        Raises:
            ThinRowError: The error, if a repetition cannot help.
        """
        self._close(first.stream)
        failed = first.stream.replica
        self.group.check_open()
        if isinstance(error, AnswerTooLargeError):
            # Responses come in order, so the first request without one was rejected.
            rejected = len(first.piece.examples)
            if rejected <= 1:
                raise error
            self._size.rejected(rejected)
        elif isinstance(error, UnauthenticatedError):
            # The token may have been replaced since the stream began.
            if not self._answered or not callable(self._config.token):
                raise error
            self._answered = False
        elif isinstance(error, DeadlineError):
            # Also on the last attempt, so that the next stream starts at another replica.
            self.group.fail_over(failed)
            if not self._patience.is_silent(failed, waited_s):
                raise error
        elif not self._has_followed and self.group.is_elsewhere(error):
            # Once between two responses: a server may reject requests by each of its maps.
            self._has_followed = True
        elif self._retries.pause(error):
            self.group.fail_over(failed)
        else:
            raise error

    def _end(self, stream: RequestStream) -> None:
        """Lets the server end a connection that has drained, while the others go on."""
        stream.end()
        if self._ended is not None:
            self._ended.close()
        self._ended = stream

    def _close(self, stream: RequestStream) -> None:
        """Closes a connection, and plans its requests again, before all others."""
        stream.close()
        again = [each for each in self.in_flight if each.stream is stream]
        self.planned.extendleft(each.piece for each in reversed(again))
        self.in_flight = deque(each for each in self.in_flight if each.stream is not stream)
        self.load = sum(each.load for each in self.in_flight)
        self._hedges_won = 0
        if stream is self._stream:
            self._stream = None
        else:
            self._draining.remove(stream)

    def _response(self, first: InFlight) -> Response:
        """Waits for the oldest response, from its replica or from another one that is faster."""
        timeout_s = self._patience.timeout_s(first.stream.replica)
        hedging, pending, group = self._hedging, first.pending, self.group
        if hedging is None or not isinstance(pending, SentRequest):
            return pending.receive(timeout_s, self._deadline_s)
        assert isinstance(group, Channels) and group.health is not None
        until_s = time.monotonic() + timeout_s
        wait_s = first.sent_s + hedging.after_s - time.monotonic()
        while not pending.wait(max(0.0, min(wait_s, until_s - time.monotonic()))):
            if time.monotonic() >= until_s:
                break
            replica, wait_s = first.stream.replica, RECHECK_S
            other = group.next_replica(replica)
            if other == replica or group.health.has_failed(other):
                group.on_failure()
            elif not group.health.is_last_choice(other) and hedging.acquire():
                response = self._hedged(group, first.piece, pending, other, until_s)
                if response is not None:
                    return response
            elif self._patience.has_other(replica):
                silent_since_s = max(first.sent_s, pending.connection.arrived_s)
                until_s = min(until_s, silent_since_s + hedging.silence_s)
        response = pending.receive(max(0.0, until_s - time.monotonic()), self._deadline_s)
        hedging.answered(pending.connection.received_s - first.sent_s)
        group.health.answered(first.stream.replica, response.generation)
        self._hedges_won = 0
        return response

    def _hedged(
        self, group: Channels, piece: RequestSlice, sent: SentRequest, other: int, until_s: float
    ) -> Response | None:
        """Requests the examples from another replica, too.

        Returns:
            Its response; None if the first replica answers before, or no response comes from it,
            or one without histories that the first replica may have.
        """
        assert group.health is not None
        connection = sent.connection
        wake = connection.wake = threading.Event()
        call = group.hedge(piece, other, self._deadline_s)
        call.add_done_callback(lambda _: wake.set())
        try:
            while not sent.has_answered() and not call.done():
                if not wake.wait(max(0.0, until_s - time.monotonic())):
                    return None
                wake.clear()
            if sent.has_answered():
                return None
            response = Response.read(call.result())
        except (grpc.RpcError, grpc.FutureCancelledError):
            group.health.failed(other)
            return None
        finally:
            connection.wake = None
            call.cancel()
        group.health.answered(other, response.generation)
        if np.isin(response.statuses, LACKED).any():
            return None
        if connection.arrived_s != self._silent_since_s:
            self._silent_since_s, self._hedges_won = connection.arrived_s, 0
        self._hedges_won += 1
        sent.abandon()
        return response
