"""The tier of a replica: events of a topic, applied in the order of the log.

Everything that requests see is a function of the log: arrivals, duplicates, and the numbers of
events that arrive in one millisecond. So is a place, which is durable in the same write as the
events before it. The topic keeps what the process loses, so nothing here waits for a disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rocksdict import WriteBatch
from thinrow.errors import LaggingError, RequestError, UsageError
from thinrow.online.event_log import WRITE_PAIRS_MAX, unsigned
from thinrow.online.event_tier import EventTier, RequestMoment
from thinrow.online.records import Batch
from thinrow.online.topic.decoding import MessageDecoder
from thinrow.online.topic.places import Place, Places, put_places

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from thinrow.online.records import RecordFormat
    from thinrow.online.topic.decoding import Decoded
    from thinrow.online.topic.settings import TopicSettings
    from thinrow.schema import Schema

__all__ = ["AppliedMessages", "ReadMessage", "TopicTier"]

BEHIND_MESSAGES = 512
"""Messages that are applied together by a replica that is behind the log."""
BEHIND_PAIRS_MAX = 1024
"""Pairs in one of its writes, unless one message has more."""


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A message of the topic."""

    partition: int
    offset: int
    timestamp_ts: int
    """Timestamp, ms; negative without one."""
    value: bytes | None
    """An encoded UserEvents; None for a heartbeat."""


@dataclass(slots=True)
class AppliedMessages:
    """Outcome of applying messages."""

    events: int = 0
    """Events that were new."""
    duplicates: int = 0
    """Events whose user had one of the same id."""
    refused: list[tuple[ReadMessage, str]] = field(default_factory=list)
    """Messages that were refused, and the reason, one sentence."""


class TopicTier(EventTier):
    """Applies messages. One thread calls `apply`; any thread reads.

    Args:
        settings: The folder, the topic and its partitions.

    Raises:
        StoreLockedError: Another process has the tier open.
        UsageError: The folder's events come from another log.
    """

    def __init__(self, settings: TopicSettings) -> None:
        count = settings.partition_count
        super().__init__(
            settings.folder,
            settings.dedup_window_ms,
            settings.wall,
            f"topic {settings.topic} of {count} partitions",
        )
        self.topic = settings.topic
        """Name of the topic."""
        self.partition_count = count
        """Number of its partitions, of which this replica may read some."""
        self._wall = settings.wall
        self._bucket, self._id_prefix = -1, b""
        self.places = Places(self.database, settings.partitions, count)
        """The places up to which the partitions are applied."""

    def close(self) -> None:
        """Closes the files, with the places of all events in them."""
        try:
            if self.database.failure is None:
                with self.database.storing():
                    self.database.flush()
        finally:
            self.database.close()

    def use_schema(self, schema: Schema) -> RecordFormat:
        """Returns the format of events of this schema.

        Raises:
            UsageError: The tier has events of another schema.
        """
        known = self.formats.newest
        if known is not None and known.schema != schema:
            raise UsageError(
                "The schema is another one than the tier's events have, and replicas of different "
                "schemas would answer differently; give each an empty folder as --data, which is "
                "rebuilt from the topic."
            )
        return super().use_schema(schema)

    @property
    def now_ts(self) -> int:
        """The latest moment at which every user of this replica can be requested, ms."""
        return self.places.as_of(())

    @property
    def latest_ts(self) -> int:
        """The latest moment of a partition, ms."""
        return max(place.as_of_ts for place in list(self.places.now.values()))

    def begin(self, request_ts: int, users: Sequence[int] = ()) -> int:
        """Returns the moment of a request, ms; a ``request_ts`` of 0 stands for the newest.

        Raises:
            RequestError: The moment lies in the future.
            LaggingError: The moment lies after what this replica has applied.
            PartitionMissingError: This replica does not read the partition of a user.
            StoreError: The disk failed.
        """
        return self.begin_within(request_ts, users, None).request_ts

    def begin_within(
        self, request_ts: int, users: Sequence[int], lag_max_ms: int | None
    ) -> RequestMoment:
        """Does as `begin`, for a request that allows so much lag; None for any.

        A request of a moment that this replica has come to is exact, however much it lags.

        Raises:
            LaggingError: This replica lags more, or has not come to the moment yet.
        """
        self.database.require_healthy()
        as_of_ts = self.places.as_of(users)
        now_ts = self._wall()
        lag_ms = max(0, now_ts - as_of_ts)
        if request_ts > as_of_ts:
            # What lies in the future for this server is requested too early at every replica.
            error = LaggingError if request_ts <= now_ts else RequestError
            raise error(
                f"The request lies {request_ts - as_of_ts} ms after {as_of_ts}, up to which this "
                f"server has applied the topic; leave request_ts out for the newest moment, or "
                f"send the request later."
            )
        if not request_ts and lag_max_ms is not None and lag_ms > lag_max_ms:
            raise LaggingError(
                f"This server has applied the topic up to {as_of_ts}, {lag_ms} ms ago, and the "
                f"request allows a lag of {lag_max_ms} ms (lag_max); request another replica, or "
                f"give a request_ts up to that moment."
            )
        return RequestMoment(request_ts or as_of_ts, as_of_ts, lag_ms)

    def partitions(self) -> list[tuple[int, RequestMoment]]:
        """Returns each partition that this replica reads, ascending, and its latest moment."""
        now_ts = self._wall()
        moments = [(number, place.as_of_ts) for number, place in sorted(self.places.now.items())]
        return [
            (number, RequestMoment(as_of_ts, as_of_ts, max(0, now_ts - as_of_ts)))
            for number, as_of_ts in moments
        ]

    def apply(self, messages: Sequence[ReadMessage]) -> AppliedMessages:
        """Applies the next messages of partitions, in the order of each log.

        Raises:
            StoreError: The disk failed.
        """
        self.database.require_healthy()
        messages = [
            message
            for message in messages
            if message.offset >= self.places.now[message.partition].offset
        ]
        assert self.format is not None, "a schema comes before the first message"
        decoder = MessageDecoder(self.format, self.partition_count)
        valued = [message for message in messages if message.value is not None]
        decoded = decoder.decode(
            [message.value for message in valued if message.value is not None],
            [message.partition for message in valued],
        )
        return self._store(messages, decoded)

    def _store(
        self, messages: Sequence[ReadMessage], decoded: Iterable[Decoded]
    ) -> AppliedMessages:
        applied = AppliedMessages()
        known: set[bytes] = set()
        events = self._by_message(decoded, known)
        # While no one waits for the newest events, fewer and larger writes are faster.
        pairs_max = WRITE_PAIRS_MAX if len(messages) < BEHIND_MESSAGES else BEHIND_PAIRS_MAX
        users: dict[bytes, str] = {}
        places: dict[int, Place] = {}
        pairs = WriteBatch(raw_mode=True)
        for message in messages:
            place = places.get(message.partition) or self.places.now[message.partition]
            place = place.after(message.offset, message.timestamp_ts)
            if message.value is not None:
                batch, rows, refused = next(events)
                if batch.texts and rows:
                    one = slice(rows.start, rows.start + 1)
                    named = Batch(batch.users[one], (), (), batch.texts[one])
                    collision = self.collision(named, users)
                    if collision is not None:
                        refused, rows = str(collision), range(0)
                if refused:
                    applied.refused.append((message, refused))
                stored = self._put(pairs, batch, rows, place, known)
                applied.events += stored
                applied.duplicates += len(rows) - stored
                place = Place(place.offset, place.as_of_ts, place.events + stored)
            places[message.partition] = place
            if pairs.len() >= pairs_max:
                self._write(pairs, places)
                pairs, places = WriteBatch(raw_mode=True), {}
                time.sleep(0)  # other threads get the interpreter
        self._write(pairs, places)
        return applied

    def _by_message(
        self, decoded: Iterable[Decoded], known: set[bytes]
    ) -> Iterator[tuple[Batch, range, str]]:
        """Yields the events of each message, and the reason if it was refused.

        Adds those of their ids that the tier has to ``known``.
        """
        for part in decoded:
            ids = (key for key in part.batch.ids if key is not None)
            with self.database.reading():
                known |= self.ids.known(list(dict.fromkeys(ids)))
            first = 0
            for count in part.counts:
                yield part.batch, range(first, first + count), part.refused
                first += count

    def _put(
        self, pairs: WriteBatch, batch: Batch, rows: range, place: Place, known: set[bytes]
    ) -> int:
        """Adds the rows of a message that are no duplicates; returns their number."""
        arrival_ts, number = place.as_of_ts, place.events
        prefix, arrived = self.events.prefix(arrival_ts), unsigned(arrival_ts)
        bucket = self.state.now.bucket(arrival_ts)
        if bucket != self._bucket:
            self._bucket, self._id_prefix = bucket, self.ids.add_bucket(bucket)
        id_prefix = self._id_prefix
        for row in rows:
            event_id = batch.ids[row]
            if event_id is not None:
                if event_id in known:
                    continue
                known.add(event_id)
                pairs.put(id_prefix + event_id, b"")
            key = prefix + batch.users[row] + arrived + number.to_bytes(4, "big")
            pairs.put(key, batch.records[row])
            number += 1
        return number - place.events

    def _write(self, pairs: WriteBatch, places: dict[int, Place]) -> None:
        put_places(pairs, places)
        with self.database.storing():
            self.database.write_unlogged(pairs)
        self.places.advance(places)
