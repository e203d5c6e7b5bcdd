"""Calls that wait for their peers: for how long, and which of them gives way to others.

A peer may open a call and send nothing, send its request byte by byte, keep a stream idle, or not
read its answer. None of these may keep a place from callers that are served at once.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thinrow.access.concurrency_limit import limit_error, server_limit_error
from thinrow.access.wire_errors import set_error_status
from thinrow.errors import DeadlineError, ThinRowError, TooManyCallsError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc

    Send = Callable[[bytes | None], None]

__all__ = [
    "IDLE_S_MIN",
    "OPENING_S_MIN",
    "SENDING_S_MIN",
    "PeerCall",
    "PeerPlaces",
    "draining",
    "gave_way",
    "overdue",
]

OPENING_S_MIN = 0.05
"""Time that a call has for its first request, however many others open."""
IDLE_S_MIN = 10.0
"""Time that a stream may be idle before it gives its place to a call that has none."""
SENDING_S_MIN = 30.0
"""Time that an answer may be on its way before its call gives its place to one that has none."""


class PeerCall:
    """One call's requests and answers, and how long it has been waiting for its peer.

    Iterating yields the requests. One thread may read while another sends.
    """

    def __init__(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, send: Send
    ) -> None:
        self.peer = context.peer()
        self.is_opening = True
        """True until the first request has arrived."""
        self._requests = requests
        self._first: bytes | None = None
        self._context = context
        self._send = send
        self._reading_since_s: float | None = None
        self._sending_since_s: float | None = None
        self._unanswered = 0
        self._error: ThinRowError | None = None
        self._has_status = False
        self._is_draining = False
        self._lock = threading.Lock()

    def __iter__(self) -> PeerCall:
        return self

    def __next__(self) -> bytes:
        """Waits for the next request.

        Raises:
            UnavailableError: The server drains.
            ThinRowError: Another thread ended the call with it.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        with self._lock:
            self._check()
            self.check_serving()
            self._reading_since_s = time.monotonic()
        request = next(self._requests, None)
        with self._lock:
            self._reading_since_s = None
            self._check()
            self.is_opening = False
            if request is None:
                raise StopIteration
            self.check_serving()
            self._unanswered += 1
        return request

    def receive_first(self) -> None:
        """Waits for the first request, which iterating then yields; or for the end of requests."""
        self._first = next(self, None)

    def send(self, answer: bytes | None) -> None:
        """Sends an answer, or the status for None; does nothing once the call has its status."""
        if answer is None:
            if self.claim_status():
                self._send(None)
            return
        with self._lock:
            self._check()
            self._sending_since_s = time.monotonic()
        self._send(answer)
        with self._lock:
            self._sending_since_s = None
            self._unanswered -= 1
        if self._is_draining:
            self.drain()

    def check_serving(self) -> None:
        """Raises UnavailableError while the server drains."""
        if self._is_draining:
            raise draining()

    def drain(self) -> None:
        """Accepts no more requests, and ends the call once it owes no answer."""
        with self._lock:
            self._is_draining = True
        if self.claim_end(draining(), unread=False):
            self.end()

    def claim_status(self) -> bool:
        """Claims the right to send the status; False if another thread has it."""
        with self._lock:
            had, self._has_status = self._has_status, True
            return not had

    @property
    def is_sending(self) -> bool:
        """True while an answer is on its way."""
        return self._sending_since_s is not None

    def waited_s(self) -> float | None:
        """Seconds for which nothing but the peer has held up the call; None if that is not so."""
        with self._lock:
            since_s = self._sending_since_s
            if since_s is None and self._unanswered <= 0:
                since_s = self._reading_since_s
            return None if since_s is None else time.monotonic() - since_s

    def claim_end(self, error: ThinRowError, *, unread: bool = True, at_work: bool = False) -> bool:
        """Decides that the call ends with `error`; `end` must follow.

        Args:
            error: The error that the caller gets.
            unread: End the call if its peer does not read an answer.
            at_work: End the call even if it does not wait for its peer.

        Returns:
            False if the call went on, or ended, in the meantime.
        """
        with self._lock:
            # A call that opens may not read yet.
            is_waiting = self.is_opening or self._reading_since_s is not None
            is_idle = is_waiting and self._unanswered <= 0
            is_unread = unread and self._sending_since_s is not None
            if self._has_status or not (at_work or is_idle or is_unread):
                return False
            self._has_status = True
            self._error = error
            return True

    def end(self) -> None:
        """Ends the call after `claim_end`, from any thread."""
        if self._sending_since_s is not None:
            # Its status would wait behind the answer.
            self._context.cancel()
            return
        assert self._error is not None
        set_error_status(self._context, self._error)
        self._send(None)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class PeerPlaces:
    """Places of calls. A call that waits for its peer gives way once all places are taken."""

    def __init__(
        self,
        limit: int,
        name: str,
        *,
        idle_s_min: float = IDLE_S_MIN,
        sending_s_min: float = SENDING_S_MIN,
        at_work: bool = False,
    ) -> None:
        """
        Args:
            limit: Number of places.
            name: The setting that bounds them, for messages.
            idle_s_min: Time for which a call may wait for a request before it gives way.
            sending_s_min: Time for which it may wait until its answer is taken.
            at_work: If no call waits for its peer, the oldest call gives way instead.
        """
        self._limit = limit
        self._name = name
        self._idle_s_min = idle_s_min
        self._sending_s_min = sending_s_min
        self._at_work = at_work
        self._holders: dict[PeerCall, None] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._holders)

    @contextmanager
    def held_by(self, call: PeerCall) -> Iterator[None]:
        """A place until the block ends.

        Raises:
            TooManyCallsError: No call gives way.
            UnavailableError: The places are closed.
        """
        with self._lock:
            if self._is_closed:
                raise draining()
            evicted = None
            if len(self._holders) >= self._limit:
                evicted = self._evicted()
                if evicted is None:
                    raise server_limit_error(self._name)
                del self._holders[evicted]
            self._holders[call] = None
        if evicted is not None:
            evicted.end()
        try:
            yield
        finally:
            with self._lock:
                self._holders.pop(call, None)

    def drain(self) -> None:
        """Ends each call that holds a place now, once it owes no answer."""
        with self._lock:
            calls = list(self._holders)
        for call in calls:
            call.drain()

    def close(self) -> None:
        """Refuses calls from now on, and drains."""
        with self._lock:
            self._is_closed = True
        self.drain()

    def end_overdue(self, limit_s: float, unread_s: float) -> None:
        """Ends the calls that have waited for their peers too long.

        Args:
            limit_s: Limit on a wait for a request.
            unread_s: Limit on a wait until an answer is taken.
        """
        with self._lock:
            ended = [
                call
                for call in self._holders
                if (call.waited_s() or -1.0) >= (unread_s if call.is_sending else limit_s)
                and call.claim_end(overdue(call))
            ]
        for call in ended:
            call.end()

    def _evicted(self) -> PeerCall | None:
        """The call that gives way: of the peer with most of them, the one that waited longest."""
        by_peer: dict[str, int] = {}
        for call in self._holders:
            by_peer[call.peer] = by_peer.get(call.peer, 0) + 1
        waiting = []
        for call in self._holders:
            least_s = self._sending_s_min if call.is_sending else self._idle_s_min
            waited_s = call.waited_s()
            if waited_s is not None and waited_s >= least_s:
                waiting.append((by_peer[call.peer], waited_s, call))
        for *_, call in sorted(waiting, key=lambda each: each[:2], reverse=True):
            if call.claim_end(gave_way(call)):
                return call
        if self._at_work:
            for call in self._holders:
                if call.claim_end(gave_way(call), at_work=True):
                    return call
        return None


def draining() -> UnavailableError:
    """The error of every call that reaches a draining server."""
    return UnavailableError(
        "This server is stopping; call another replica, or this one once it is back."
    )


def gave_way(call: PeerCall) -> ThinRowError:
    """The error of a call that gives its place to another."""
    if call.is_opening:
        return limit_error(
            TooManyCallsError,
            "Too many calls opened and this one's request had not arrived; send it again later.",
        )
    return UnavailableError(
        "The stream waited for its client while others needed its place; open it again."
    )


def overdue(call: PeerCall) -> ThinRowError:
    """The error of a call whose peer took too long."""
    if call.is_opening:
        return DeadlineError("The call's request did not arrive in time (first_request_s).")
    return UnavailableError("The stream was idle for too long (idle_s); open it again.")
