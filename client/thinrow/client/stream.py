"""Pipelined batches, each delivered exactly once, also when servers fail.

The consumer's own thread pulls the input and tracks which requests are in flight. Each batch is cut
into requests to the groups that have its users; the batches are delivered in order.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from thinrow.client.group_stream import UNKNOWN_SIZE_EXAMPLES, GroupStream
from thinrow.core.lookup.batch_lookup import BatchLookup

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from thinrow.client.router import Router
    from thinrow.client.transport import Transport
    from thinrow.core.lookup.answer import Answer
    from thinrow.core.lookup.batch_lookup import RequestSlice
    from thinrow.core.lookup.coding import Coder
    from thinrow.core.pointers import Pointers, Projection, ThinRows

__all__ = ["answers"]

# With fewer in flight the server may run out of work; with more, responses are consumed first.
REQUESTS_BEFORE_RESPONSES = 4


def answers(
    router: Router,
    batches: Iterable[ThinRows | Pointers],
    projection: Projection | str,
    deadline_s: float,
    coder: Coder,
    examples: int = UNKNOWN_SIZE_EXAMPLES,
) -> Generator[Answer, None, None]:
    """Yields the answers to `batches`; see `Client.answers`.

    examples: Examples of each group's requests before its first response.
    """
    router.discover(deadline_s)
    inputs: Iterator[ThinRows | Pointers] = iter(batches)
    streams = GroupStreams(router, deadline_s, examples)
    lookups: deque[BatchLookup] = deque()  # pulled, and not yet delivered
    draining = False  # after an empty batch, until all before it is delivered
    try:
        while True:
            while streams.send_planned(lookups[0] if lookups else None) and not draining:
                rows = next(inputs, None)
                if rows is None:
                    inputs = iter(())
                    break
                lookups.append(BatchLookup(rows, projection, coder))
                streams.plan(lookups[-1].whole())
                draining = not len(rows)
            if not lookups:
                streams.finish()
                return
            streams.receive(lookups[0])
            while lookups and lookups[0].is_complete:
                draining = draining and len(lookups) > 1
                yield lookups.popleft().answer()
    finally:
        streams.close()


class GroupStreams:
    """The streams to all groups that the batches of one stream need."""

    def __init__(self, router: Router, deadline_s: float, examples: int) -> None:
        self._router = router
        self._deadline_s = deadline_s
        self._examples = examples
        self._map_version = router.map_version
        self._streams: dict[Transport, GroupStream] = {}
        self._left: list[GroupStream] = []
        """Streams to groups that the map has dropped, which their servers end."""

    def plan(self, piece: RequestSlice) -> None:
        """Plans the examples of a batch, after all others."""
        for group, part in self._router.route(piece):
            if group not in self._streams:
                self._streams[group] = GroupStream(group, self._deadline_s, self._examples)
            self._streams[group].planned.append(part)

    def send_planned(self, first: BatchLookup | None) -> bool:
        """Sends what is planned, within the limits on what is in flight.

        Args:
            first: The next batch to deliver. If a response about it is there, it comes first.

        Returns:
            True if everything is sent, and there is room for another batch.
        """
        has_room, streams = True, self._streams.values()
        load = sum(stream.load for stream in streams)
        for stream in streams:
            if not has_room and not stream.planned:
                continue
            while may_send := (
                load < self._router.config.requests_in_flight
                and stream.has_room
                and not stream.has_answered(first, REQUESTS_BEFORE_RESPONSES)
            ):
                if not stream.planned:
                    break
                load += stream.send()
            has_room = has_room and may_send
        return has_room

    def receive(self, first: BatchLookup) -> None:
        """Waits for a response about a batch, and plans what has to be requested again.

        Raises:
            ThinRowError: A group does not answer, or no group has a user's shard.
        """
        stream = self._next(first)
        received = stream.receive()
        if received is not None:
            piece, response = received
            self._router.heard(response.response.map_version)
            away = piece.elsewhere(response)
            if away is not None:
                self._router.find_elsewhere(away, self._deadline_s)
        if received is None or self._router.map_version != self._map_version:
            self._follow_map()
        elif not stream.in_flight:
            self._leave_unused(stream)

    def finish(self) -> None:
        """Ends all connections in an orderly way."""
        for stream in self._streams.values():
            stream.end()
        for stream in (*self._left, *self._streams.values()):
            stream.finish()

    def close(self) -> None:
        """Ends all connections."""
        for stream in (*self._left, *self._streams.values()):
            stream.close()

    def _next(self, first: BatchLookup) -> GroupStream:
        """Returns the stream to receive from: one with a response, else the oldest request."""
        streams = [stream for stream in self._streams.values() if stream.is_next(first)]
        if len(streams) == 1:  # as always without a cluster
            return streams[0]
        for stream in streams:
            if stream.has_answered(first, 1):
                return stream
        if streams:
            return min(streams, key=lambda stream: stream.in_flight[0].sent_s)
        # Requests that are sent again wait behind those of later batches.
        for stream in self._streams.values():
            if any(each.piece.lookup is first for each in stream.in_flight):
                return stream
        for stream in self._streams.values():
            if any(piece.lookup is first for piece in stream.planned):
                if not stream.in_flight:
                    stream.send()
                return stream
        raise AssertionError("a batch is neither answered nor planned")

    def _follow_map(self) -> None:
        """Plans again what is not sent, and ends the streams to groups that have no more use."""
        self._map_version = self._router.map_version
        for stream in self._left:
            stream.close()
        self._left.clear()
        planned = [piece for stream in self._streams.values() for piece in stream.planned]
        for stream in self._streams.values():
            stream.planned.clear()
        for piece in planned:
            self.plan(piece)
        for stream in list(self._streams.values()):
            self._leave_unused(stream)

    def _leave_unused(self, stream: GroupStream) -> None:
        """Ends the stream to a group that the map has dropped, once nothing is left of it."""
        if not stream.in_flight and not stream.planned and not self._router.has(stream.group):
            stream.end()
            self._left.append(self._streams.pop(stream.group))
