"""The tier of a replica: events of a topic, applied in the order of the log.

Everything that requests see is a function of the log: arrivals, duplicates, and the numbers of
events that arrive in one millisecond. So is a place, which is durable in the same write as the
events before it. The topic keeps what the process loses, so nothing here waits for a disk.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from rocksdict import WriteBatch
from thinrow.errors import LaggingError, RequestError, UsageError
from thinrow.online.event_log import WRITE_PAIRS_MAX, unsigned
from thinrow.online.event_tier import EventTier, RequestMoment, TakeUp
from thinrow.online.handover import HandOver
from thinrow.online.records import Batch
from thinrow.online.topic.decoding import MessageDecoder
from thinrow.online.topic.duplicates import Duplicates, id_value
from thinrow.online.topic.origin import Origin
from thinrow.online.topic.places import Place, Places, PlacesClock, Progress, put_places
from thinrow.store.directory import NEVER_TS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from thinrow.online.records import RecordFormat
    from thinrow.online.topic.decoding import Decoded
    from thinrow.online.topic.settings import TopicSettings
    from thinrow.schema import Schema
    from thinrow.store.generation import Generation
    from thinrow.store.manifest import Manifest

__all__ = ["AppliedMessages", "ReadMessage", "TopicTier"]

log = logging.getLogger("thinrow.online")

BEHIND_MESSAGES = 512
"""Messages that are applied together by a replica that is behind the log."""
BEHIND_PAIRS_MAX = 1024
"""Pairs in one of its writes, unless one message has more."""


class ReadMessage(NamedTuple):
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
            0,
            f"topic {settings.topic} of {count} partitions",
        )
        self.topic = settings.topic
        """Name of the topic."""
        self.partition_count = count
        """Number of its partitions, of which this replica may read some."""
        self._settings = settings
        self._keys_of_ts, self._keys = -1, (b"", b"", b"")
        self._decoding = self.formats.oldest
        self.histories: Callable[[], AbstractContextManager[Generation | None]] = nullcontext
        """Opens the newest generation of the store that this replica follows."""
        self.places = Places(self.database, settings.partitions, count)
        """The places up to which the partitions are applied."""
        self._duplicates = Duplicates(
            self.database,
            self.ids,
            self.state,
            settings.dedup_window_ms,
            lambda: self.histories(),
        )
        self._hand_over = HandOver(
            self.database,
            self.state,
            PlacesClock(self.places),
            self._changed,
            self.events,
            self.ids,
            settings.retention_ms,
            settings.dedup_window_ms,
        )
        self._origin = Origin.stored(self.database)
        self._has_offsets = False
        self._is_reading = False
        self._is_seeding = self._origin is not None and self._origin.built_ts != NEVER_TS

    def close(self) -> None:
        """Closes the files, with the places of all events in them."""
        try:
            if self.database.failure is None:
                with self.database.storing():
                    self.database.flush()
        finally:
            self.database.close()

    @property
    def has_begun(self) -> bool:
        """True once the tier has a place in each of this replica's partitions."""
        origin = self._origin
        return origin is not None and set(self._settings.partitions) <= set(origin.partitions)

    def start_reading(self) -> None:
        """Keeps the places from now on: a reader goes on from them."""
        with self._changed:
            self._is_reading = True

    def begin_with_first_message(self) -> None:
        """Begins with the first message of each partition, without events. Raises StoreError."""
        self._begin(Place(), [0] * self.partition_count, NEVER_TS)

    def begin_behind(self, manifest: Manifest) -> None:
        """Begins behind a generation, without events: what arrived before is the store's.

        Raises:
            StoreError: The disk failed.
        """
        watermark_ts = manifest.watermark_ts
        if manifest.topic is None:
            # No one knows which message was the first to arrive since.
            self._begin(Place(), [0] * self.partition_count, watermark_ts)
        else:
            self._begin(Place(as_of_ts=watermark_ts), manifest.topic.offsets, watermark_ts)
        self._duplicates.learn(manifest.watermarks)

    def _begin(self, place: Place, offsets: Sequence[int], built_ts: int) -> None:
        origin = Origin(partitions=self._settings.partitions, built_ts=built_ts)
        places = {number: place._replace(offset=offsets[number]) for number in origin.partitions}
        log.info("tier begins", extra={"watermark_ts": built_ts, "offsets": offsets})
        with self._changed:
            self._hand_over.restart(built_ts)
            with self.database.storing():
                self._duplicates.forget_seeded()
                pairs = WriteBatch(raw_mode=True)
                put_places(pairs, places)
                self.database.write(pairs)
                # Last: without it the tier begins again.
                origin.write(self.database)
                self.database.sync()
            self.places.reset(places)
            self._origin, self._is_seeding = origin, built_ts != NEVER_TS

    def begin_again(self, manifest: Manifest, partition: int) -> bool:
        """Begins behind a generation if the topic has lost messages that the generation holds.

        Args:
            manifest: The newest generation.
            partition: A partition without a message at this replica's place.

        Returns:
            False if the generation does not help.
        """
        seal = manifest.topic
        if (
            seal is None
            or self.source_refusal(manifest)
            or seal.offsets[partition] <= self.places.now[partition].offset
        ):
            return False
        self.begin_behind(manifest)
        return True

    def take_up(self, generation: Generation) -> TakeUp:
        """Serves requests from a published generation once each partition has come to it."""
        manifest, watermark_ts = generation.manifest, generation.watermark_ts
        with self._changed:
            # A reader goes on from the places that it was given.
            may_begin = not self._is_reading and not self._foreign(manifest)
            if may_begin and (not self.has_begun or self._is_withdrawn(manifest)):
                self.begin_behind(manifest)
        refusal = self.source_refusal(manifest)
        if refusal:
            return TakeUp(False, refusal)
        super().use_schema(generation.schema)
        self._decoding = self.formats.oldest
        watermarks = generation.watermarks.tolist()
        is_accepted = watermark_ts <= self.sealed_ts
        if not is_accepted:
            with self._changed:
                is_covered = manifest.topic is not None or self._hand_over.is_covered(watermark_ts)
            if not is_covered:
                return TakeUp(
                    False,
                    f"It was built without offsets of a topic, and this tier has events that it "
                    f"may lack: its watermark is {watermark_ts}, and the tier's {self.sealed_ts}; "
                    f"compact from topic {self.topic}.",
                )
            is_accepted = watermark_ts <= self.now_ts
        if is_accepted:
            if watermark_ts > self.sealed_ts:
                # What arrived before is applied, also after a crash.
                with self.database.storing():
                    self.database.flush()
            self._hand_over.accept_generation(watermarks, is_whole=True)
            self._has_offsets = manifest.topic is not None
        with self._changed:
            self._duplicates.learn([ts for ts in watermarks if ts <= self.sealed_ts])
        return TakeUp(is_accepted)

    @property
    def needed_from_ts(self) -> int:
        """Arrival of the oldest message that a replica without events needs, ms, or earlier."""
        if self._has_offsets:
            return self.state.now.accepted_ts
        first_ts = None if self._origin is None else self._origin.first_ts
        return self._settings.wall() if first_ts is None else first_ts

    def _is_withdrawn(self, manifest: Manifest) -> bool:
        """Returns whether this tier lacks events that arrived since a generation's watermark.

        It began behind a later one, or forgot what later ones had, which are published no more.
        """
        return manifest.watermark_ts < self.kept_from_ts

    def source_refusal(self, manifest: Manifest) -> str:
        """Returns why a generation does not fit the tier; an empty text if it does."""
        foreign = self._foreign(manifest)
        if foreign:
            return foreign
        if self._is_withdrawn(manifest):
            return (
                f"Its watermark is {manifest.watermark_ts}, and this server has what arrived since "
                f"{self.kept_from_ts} only, as later generations were published and are not any "
                f"more; start this server again, which begins behind this one."
            )
        return ""

    def _foreign(self, manifest: Manifest) -> str:
        """Returns why a generation's events are of another topic; an empty text if they are not."""
        seal = manifest.topic
        if seal is None:
            return ""
        topic, count = self.topic, self.partition_count
        if (seal.name, len(seal.offsets)) == (topic, count):
            return ""
        return (
            f"Its events come from topic {seal.name} of {len(seal.offsets)} partitions, and this "
            f"server reads topic {topic} of {count}; give the store and the topic that belong "
            f"together."
        )

    def forget_ids(self) -> None:
        """Forgets ids that are older than the dedup window, before the first generation."""
        self._hand_over.forget_ids(self.now_ts - self._settings.dedup_window_ms)

    @property
    def format(self) -> RecordFormat | None:
        """The format of new events: that of the schema which the tier began with.

        A function of the log does not change with what is published.
        """
        return self._decoding

    def use_schema(self, schema: Schema) -> RecordFormat:
        """Returns the format of events of this schema.

        Raises:
            UsageError: The tier has events of another schema.
        """
        if self._decoding is not None and self._decoding.schema != schema:
            raise UsageError(
                "The schema is another one than the tier's events have, and replicas of different "
                "schemas would answer differently; give each an empty folder as --data, which is "
                "rebuilt from the topic."
            )
        if self._decoding is None:
            self._decoding = super().use_schema(schema)
        return self._decoding

    @property
    def now_ts(self) -> int:
        """The latest moment at which every user of this replica can be requested, ms."""
        return self.places.as_of(())

    @property
    def latest_ts(self) -> int:
        """The latest moment of a partition, ms."""
        return self.places.latest_ts

    def begin(
        self, request_ts: int, users: Sequence[int] = (), lag_max_ms: int | None = None
    ) -> RequestMoment:
        """Returns the moment of a request; a ``request_ts`` of 0 stands for the newest.

        A request of a moment that this replica has come to is exact, however much it lags.

        Raises:
            RequestError: The moment lies in the future.
            LaggingError: This replica lags more, or has not come to the moment yet.
            PartitionMissingError: This replica does not read the partition of a user.
            StoreError: The disk failed.
        """
        self.database.require_healthy()
        as_of_ts = self.places.as_of(users)
        now_ts = self._settings.wall()
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
        now_ts = self._settings.wall()
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
        decoder = MessageDecoder(self._decoding_format(), self.partition_count)
        # No epoch begins between the look at it and the write.
        with self._changed:
            now = self.places.now
            messages = [each for each in messages if each.offset >= now[each.partition].offset]
            valued = [message for message in messages if message.value is not None]
            decoded = decoder.decode(
                [message.value for message in valued if message.value is not None],
                [message.partition for message in valued],
            )
            applied = self._store(messages, decoded)
            self._note_first()
        if self._is_seeding and self._seeding_ts() == NEVER_TS:
            self._is_seeding = False
            with self.database.storing():
                self.database.flush()  # no crash brings the time back for which marks are needed
                self._duplicates.forget_seeded()
        return applied

    def _note_first(self) -> None:
        """Keeps the arrival of the first message, by which the age of the topic is known."""
        if self._origin is None or self._origin.first_ts is not None or not self.latest_ts:
            return
        began = [place.as_of_ts for place in self.places.now.values() if place.as_of_ts]
        self._origin = replace(self._origin, first_ts=min(began))
        with self.database.storing():
            self._origin.write(self.database)

    def _decoding_format(self) -> RecordFormat:
        assert self._decoding is not None, "a schema comes before the first message"
        return self._decoding

    def _seeding_ts(self) -> int:
        """Returns the watermark before which ids are the store's, while they matter."""
        if self._origin is None or not self._is_seeding:
            return NEVER_TS
        built_ts = self._origin.built_ts
        return built_ts if self.now_ts < built_ts + self._settings.dedup_window_ms else NEVER_TS

    def _store(
        self, messages: Sequence[ReadMessage], decoded: Iterable[Decoded]
    ) -> AppliedMessages:
        applied = AppliedMessages()
        known: dict[bytes, bytes] = {}
        self._keys_of_ts = -1  # an epoch may have begun
        events = self._by_message(decoded, known)
        # While no one waits for the newest events, fewer and larger writes are faster.
        pairs_max = WRITE_PAIRS_MAX if len(messages) < BEHIND_MESSAGES else BEHIND_PAIRS_MAX
        built_ts = NEVER_TS if self._origin is None else self._origin.built_ts
        users: dict[bytes, str] = {}
        moved: dict[int, Progress] = {}
        pairs, count = WriteBatch(raw_mode=True), 0
        for message in messages:
            progress = moved.get(message.partition)
            if progress is None:
                progress = moved[message.partition] = Progress(*self.places.now[message.partition])
            progress.pass_message(message.offset, message.timestamp_ts)
            if message.value is None:
                continue
            batch, rows, refused = next(events)
            if batch.texts and rows:
                refused = self._collision_of(batch, rows, users)
            if refused:
                applied.refused.append((message, refused))
            elif progress.as_of_ts >= built_ts:  # the store has those before
                stored = self._put(pairs, batch, rows, progress, known)
                applied.events += stored
                applied.duplicates += len(rows) - stored
                count += 2 * stored
            if count >= pairs_max:
                self._write(pairs, moved)
                pairs, count, moved = WriteBatch(raw_mode=True), 0, {}
                time.sleep(0)  # other threads get the interpreter
        self._write(pairs, moved)
        return applied

    def _collision_of(self, batch: Batch, rows: range, users: dict[bytes, str]) -> str:
        """Returns why a message is refused whose user has the key of another; else no text."""
        one = slice(rows.start, rows.start + 1)
        collision = self.collision(Batch(batch.users[one], (), (), batch.texts[one]), users)
        return "" if collision is None else str(collision)

    def _by_message(
        self, decoded: Iterable[Decoded], known: dict[bytes, bytes]
    ) -> Iterator[tuple[Batch, range, str]]:
        """Yields the events of each message, and the reason if it was refused.

        Adds the values of their ids that the tier has to ``known``.
        """
        seeding_ts = self._seeding_ts()
        for part in decoded:
            for event_id, value in self._duplicates.values(part.batch.ids, seeding_ts).items():
                known.setdefault(event_id, value)
            first = 0
            for count in part.counts:
                yield part.batch, range(first, first + count), part.refused
                first += count

    def _put(
        self,
        pairs: WriteBatch,
        batch: Batch,
        rows: range,
        progress: Progress,
        known: dict[bytes, bytes],
    ) -> int:
        """Adds the rows of a message that are no duplicates; returns their number."""
        arrival_ts, first = progress.as_of_ts, progress.events
        if arrival_ts != self._keys_of_ts:
            bucket = self.state.now.bucket(arrival_ts)
            self._keys_of_ts = arrival_ts
            self._keys = (
                self.events.prefix(arrival_ts),
                unsigned(arrival_ts),
                self.ids.add_bucket(bucket),
            )
        prefix, arrived, id_prefix = self._keys
        number = first
        for row in rows:
            record, event_id = batch.records[row], batch.ids[row]
            if event_id is not None:
                value = known.get(event_id)
                if value is not None and self._duplicates.is_one(value, arrival_ts):
                    continue
                known[event_id] = value = id_value(arrived, record)
                pairs.put(id_prefix + event_id, value)
            pairs.put(prefix + batch.users[row] + arrived + number.to_bytes(4, "big"), record)
            number += 1
        progress.events = number
        return number - first

    def _write(self, pairs: WriteBatch, moved: Mapping[int, Progress]) -> None:
        places = {number: progress.place() for number, progress in moved.items()}
        put_places(pairs, places)
        with self.database.storing():
            self.database.write_unlogged(pairs)
        self.places.advance(places)
