"""Appends of batches on a stream: to one server, or to another one if it fails."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import grpc
from thinrow.client.grpc_errors import was_not_sent
from thinrow.client.received import received
from thinrow.client.retries import Retries
from thinrow.core.wire.columns import from_wire
from thinrow.core.wire.malformed import require
from thinrow.errors import DeadlineError, RequestError, TooManyCallsError, UnavailableError
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator

    from thinrow.client.config import ClientConfig
    from thinrow.client.online_replica import OnlineReplica

__all__ = ["Appended", "append_all"]


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of appending a batch of events; all of them are durable."""

    appended: int
    """Events that were new; where the server's log is a Kafka topic, all of them."""
    duplicates: int
    """Events dropped because their user had one of the same id; 0 with a topic, whose readers find
    them."""
    arrival_ts: int
    """Arrival of the appended events, ms: requests at any later moment see them. 0 with a topic."""


class Servers(Protocol):
    """One server, or those of a topic."""

    @property
    def config(self) -> ClientConfig:
        """Limits on retries."""

    def for_appends(self, tried: Collection[OnlineReplica]) -> OnlineReplica | None:
        """Returns the server to append to, one that was not tried; None if there is no other."""


class _Feed:
    """The batches of a stream, each kept until it is answered. Thread-safe.

    A thread of a stream that failed may still pull a batch, which the next stream then finds here.
    """

    def __init__(self, batches: Iterable[online_pb2.EventBatch]) -> None:
        self._batches = iter(batches)
        self._kept: deque[tuple[online_pb2.EventBatch, float]] = deque()
        self._pulling, self._lock = threading.Lock(), threading.Lock()
        self.answered = 0
        """Number of batches that were answered."""
        self.sent = 0
        """Number of batches that were pulled."""
        self.is_complete = False
        """True once there are no more."""

    def get(self, number: int) -> online_pb2.EventBatch | None:
        """Returns a batch by its number; None after the last one."""
        with self._pulling:  # which may take as long as the caller needs
            with self._lock:
                if number < self.sent:
                    return self._kept[number - self.answered][0]
            for batch in self._batches:
                with self._lock:
                    self._kept.append((batch, time.monotonic()))
                    self.sent += 1
                return batch
            self.is_complete = True
            return None

    def answer(self) -> None:
        """Drops the oldest batch."""
        with self._lock:
            self._kept.popleft()
            self.answered += 1

    def oldest_s(self) -> float | None:
        """Returns when the oldest batch without an answer was sent, or None."""
        with self._lock:
            return self._kept[0][1] if self._kept else None

    def restart(self) -> bool:
        """Prepares the batches without an answer to be sent again.

        Returns:
            False if an event has no id, so that it would count twice.
        """
        now_s = time.monotonic()
        with self._lock:
            self._kept = deque((batch, now_s) for batch, _ in self._kept)
            return all(_has_ids(batch) for batch, _ in self._kept)


def append_all(
    servers: Servers, batches: Iterable[online_pb2.EventBatch], deadline_s: float | None
) -> Generator[Appended, None, None]:
    """Appends as `OnlineClient.append_all`.

    If a server fails, the batches without an answer go to another one, unless an event without an
    id may be there already.
    """
    config = servers.config
    feed, retries = _Feed(batches), Retries(config)
    tried: set[OnlineReplica] = set()
    end_s = None if deadline_s is None else time.monotonic() + deadline_s
    server = servers.for_appends(())
    while True:
        left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
        answered = feed.answered
        assert server is not None, "there is a server to begin with"
        is_last = servers.for_appends({*tried, server}) in (None, server)
        silence_s = config.request_deadline_s if is_last else config.silence_timeout_s
        try:
            yield from _appended(server, feed, silence_s, left_s)
        except (DeadlineError, TooManyCallsError, UnavailableError) as failure:
            is_late = end_s is not None and time.monotonic() >= end_s
            if isinstance(failure, DeadlineError) and (is_last or is_late):
                raise
            server.check_open()
            if feed.answered > answered:
                retries.reset()
                tried.clear()
            # A thread of the failed stream may send no more: its call has ended.
            is_safe = feed.restart() or was_not_sent(failure)
            tried.add(server)
            if not isinstance(failure, TooManyCallsError):
                server.health.failed()
            server = servers.for_appends(tried)
            if server is None and is_safe and retries.pause(failure):
                tried.clear()
                server = servers.for_appends(())
            if server is None or server in tried or not is_safe:
                raise
        else:
            return


def _appended(
    server: OnlineReplica, feed: _Feed, silence_s: float, deadline_s: float | None
) -> Generator[Appended, None, None]:
    """Appends the batches without an answer on one stream."""
    first = feed.answered

    def requests() -> Iterator[online_pb2.AppendEventsRequest]:
        number = first
        while (batch := feed.get(number)) is not None:
            yield online_pb2.AppendEventsRequest(cursor=number, events=batch)
            number += 1

    call = server.stub.AppendEvents(requests(), timeout=deadline_s, metadata=server.metadata)
    answers = received(call, silence_s, feed.oldest_s)
    try:
        with contextlib.closing(answers):
            for answer in answers:
                require(
                    answer.cursor == feed.answered < feed.sent,
                    f"it has cursor {answer.cursor} after {feed.answered} answers to {feed.sent} "
                    f"batches",
                )
                feed.answer()
                if answer.refused:
                    raise RequestError(answer.refused)
                yield Appended(answer.appended, answer.duplicates, answer.arrival_ts)
    except grpc.RpcError as error:
        raise server.failure(error) from error
    finally:
        call.cancel()
        answers.close()
    if feed.answered != feed.sent or not feed.is_complete:
        raise UnavailableError(
            f"The online server at {server.target} ended the stream after {feed.answered} answers "
            f"to {feed.sent} batches; append the others again."
        )


def _has_ids(batch: online_pb2.EventBatch) -> bool:
    """Returns True if each event of a batch has an id."""
    events = len(batch.user_ids) or len(batch.user_texts)
    ids = [column for column in batch.columns if column.trait == "event_id"]
    if not ids:
        return not events
    present = from_wire(ids, events)["event_id"].present
    return present is None or bool(present.all())
