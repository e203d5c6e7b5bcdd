"""Topics of events: a producer and a reader that share no code with the product, as oracles."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pyarrow as pa
import xxhash
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from support.id_kinds import id_array, known_id, oracle_id
from support.kafka_topics import TIMEOUT_S, wait_for
from support.online_worlds import Online
from support.oracle import Event, Run, Schema
from support.scenarios import STRANGER, USERS, events_table
from support.topic_meaning import TopicMeaning
from thinrow.compaction import compact as compaction
from thinrow.compaction.compact import compact
from thinrow.store.manifest import TopicSeal
from thinrow.v1 import event_topic_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.kafka_broker import Broker
    from support.oracle import Trait
    from thinrow.compaction.report import CompactionReport
    from thinrow.errors import ThinRowError

BROKERS_AWAY = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT)
"""Errors in place of a message after which the reader goes on where it was."""


def user_key(user_id: int, kind: str) -> int:
    """The key of an oracle's user, as an unsigned number."""
    known = known_id(user_id, kind)
    return xxhash.xxh3_64_intdigest(known.encode()) if isinstance(known, str) else known % (1 << 64)


def partition(user_id: int, kind: str, count: int) -> int:
    """The partition of a user, by the documented function."""
    return xxhash.xxh3_64_intdigest(struct.pack("<Q", user_key(user_id, kind))) % count


def encoded(user_id: int, events: Sequence[Event], schema: Schema) -> bytes:
    """A message as any producer may write it."""
    message = wire.UserEvents()
    known = known_id(user_id, schema.user_ids)
    if isinstance(known, str):
        message.user_text = known
    else:
        message.user_id = signed(known)
    for event in events:
        one = message.events.add(event_ts=event.event_ts)
        if isinstance(event.event_id, str):
            one.event_id_text = event.event_id
        elif event.event_id is not None:
            one.event_id = signed(event.event_id)
        for trait in schema.traits:
            value: Any = event.traits.get(trait.name)
            name = field_of(trait)
            if value is None:
                continue
            if trait.size or trait.length_max:
                elements = one.traits[trait.name].elements
                elements.SetInParent()
                getattr(elements, f"{name}s").extend(
                    [signed(each) if name == "integer" else each for each in value]
                )
            else:
                given = signed(int(value)) if name == "integer" else value
                setattr(one.traits[trait.name], name, given)
    return message.SerializeToString()


def decoded(data: bytes, schema: Schema) -> list[Event]:
    """The events of a message, without arrivals."""
    message = wire.UserEvents.FromString(data)
    known: int | str = message.user_text
    if message.WhichOneof("user") == "user_id":
        known = message.user_id % (1 << 64) if schema.user_ids == "uint64" else message.user_id
    user_id = oracle_id(known, schema.user_ids, (*USERS, STRANGER))
    events = []
    for each in message.events:
        which = each.WhichOneof("id")
        event_id = getattr(each, which) if which else None
        if schema.event_ids == "uint64" and event_id is not None:
            event_id %= 1 << 64
        traits = {
            trait.name: value_of(each.traits[trait.name], trait)
            for trait in schema.traits
            if trait.name in each.traits
        }
        events.append(Event(user_id, each.event_ts, 0, event_id, traits))
    return events


def value_of(value: wire.TraitValue, trait: Trait) -> Any:  # noqa: ANN401
    name = field_of(trait)

    def one(word: Any) -> Any:  # noqa: ANN401
        if trait.type == "bool":
            return bool(word)
        return word % (1 << 64) if trait.type == "uint64" else word

    if trait.size or trait.length_max:
        return tuple(one(each) for each in getattr(value.elements, f"{name}s"))
    return one(getattr(value, name))


def field_of(trait: Trait) -> str:
    if trait.type == "string":
        return "text"
    return "number" if trait.type.startswith("float") else "integer"


def signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


class LogReader:
    """Reads a topic, and knows what it means."""

    def __init__(
        self,
        servers: str,
        topic: str,
        count: int,
        schema: Schema,
        window_ms: int,
        *,
        in_memory: bool,
    ) -> None:
        self.meaning = TopicMeaning(window_ms)
        self.refused: set[tuple[int, bytes]] = set()
        """Partitions and values of messages that count as empty."""
        self.ends = dict.fromkeys(range(count), 0)
        self._schema = schema
        self._count = count
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": "oracle",
                # A broker that reads an object store answers with nothing after a shorter wait.
                "fetch.wait.max.ms": 200 if in_memory else 1000,
                "auto.offset.reset": "error",
                "reconnect.backoff.max.ms": 500,
            }
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(count)])

    def close(self) -> None:
        self._consumer.close()

    def as_of(self, user_id: int) -> int:
        return self.meaning.as_of[partition(user_id, self._schema.user_ids, self._count)]

    def read_until(self, user_id: int, moment_ts: int) -> None:
        """Reads until a user's partition has come to a moment."""
        while self.as_of(user_id) < moment_ts:
            self._read()

    def read_to(self, ends: dict[int, int]) -> None:
        """Reads until these offsets, exclusive."""
        while any(self.ends[number] < end for number, end in ends.items()):
            self._read()

    def _read(self) -> None:
        message: Any = self._consumer.poll(TIMEOUT_S)
        assert message is not None
        if message.error() is not None:
            assert message.error().code() in BROKERS_AWAY, message.error()
            return
        number, timestamp = message.partition(), message.timestamp()[1]
        self.ends[number] = message.offset() + 1
        is_empty = message.value() is None or (number, message.value()) in self.refused
        events = [] if is_empty else decoded(message.value(), self._schema)
        self.meaning.read(number, message.offset(), timestamp, events)


@dataclass
class TopicOnline(Online):
    """A server whose log is a topic, held to the oracle over that log."""

    broker: Broker = field(kw_only=True)
    partitions: int = field(default=3, kw_only=True)
    topic: str = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.topic = self.broker.topic(self.partitions).name
        servers = self.broker.address
        self.log = LogReader(
            servers,
            self.topic,
            self.partitions,
            self.schema,
            self.config.dedup_window_ms,
            in_memory=self.broker.storage is None,
        )
        self.arrived = self.log.meaning.arrived
        self.config = replace(self.config, events=f"kafka:{self.topic}", bootstrap_servers=servers)
        self.producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})

    def close(self) -> None:
        self.log.close()

    def append(self, events: Sequence[Event]) -> None:
        """Appends; the answer says that the brokers have the events, and no more."""
        answer = self._append(events)
        assert (answer.appended, answer.duplicates, answer.arrival_ts) == (len(events), 0, 0)

    def produce(self, events: Sequence[Event], timestamp_ts: int) -> None:
        """Writes a message of each user's events, as another producer than the server."""
        for user_id in dict.fromkeys(event.user_id for event in events):
            mine = [event for event in events if event.user_id == user_id]
            self.produce_raw(
                partition(user_id, self.schema.user_ids, self.partitions),
                encoded(user_id, mine, self.schema),
                timestamp_ts,
            )
        assert self.producer.flush(TIMEOUT_S) == 0

    def produce_raw(self, number: int, value: bytes | None, timestamp_ts: int) -> None:
        self.producer.produce(self.topic, value, partition=number, timestamp=timestamp_ts)

    def mark(self, timestamp_ts: int = 0) -> dict[int, int]:
        """Ends each partition with a message of its own, of now if no timestamp is given.

        Returns a moment after all before it.
        """
        delivered: dict[int, int] = {}

        def count(_: object, message: Any) -> None:  # noqa: ANN401
            delivered[message.partition()] = message.offset()

        for number in range(self.partitions):
            self.producer.produce(
                self.topic, None, partition=number, on_delivery=count, timestamp=timestamp_ts
            )
        assert self.producer.flush(TIMEOUT_S) == 0
        self.log.read_to({number: offset + 1 for number, offset in delivered.items()})
        return {user: self.log.as_of(user) for user in USERS}

    def check_refusal(self, error: ThinRowError, moment_ts: int, before_ts: int) -> None:
        """A moment that is not applied yet is refused, and one that is not kept."""
        if moment_ts > before_ts:
            assert "has applied the topic" in str(error), error
        else:
            super().check_refusal(error, moment_ts, before_ts)

    def pointer(self, user_id: int, request_ts: int, lookback_ms: int, max_length: int) -> Any:  # noqa: ANN401
        self.log.read_until(user_id, request_ts)
        return super().pointer(user_id, request_ts, lookback_ms, max_length)

    def hand_over(self, erase: frozenset[int] = frozenset()) -> None:
        """Compacts what arrived before a new watermark; the server takes it up."""
        log, watermarks = self.log.meaning, self.oracle.watermarks
        watermark_ts = max(self.client.describe().now_ts, *log.as_of.values(), 1) + 1
        self.mark(watermark_ts)
        last_ts = watermarks[-1] if watermarks else 0
        due = [event for event in self.arrived if last_ts <= event.arrival_ts < watermark_ts]
        result = self.compact(due, watermark_ts, erase)
        self.wait_for(result.generation)
        log.know(self.oracle)

    def compact(
        self,
        due: Sequence[Event],
        watermark_ts: int,
        erase: frozenset[int] = frozenset(),
        *,
        has_offsets: bool = True,
    ) -> CompactionReport:
        """Publishes a generation, with the topic's offsets or as one of files."""
        path = self.world.write("topic.parquet", events_table(due, self.schema, plain=False))
        ids = id_array(sorted(erase), self.schema.user_ids)
        users = self.world.write("erase.parquet", pa.table({"user_id": ids}))
        window_ms = self.config.dedup_window_ms
        config = self.world.compaction(
            [path], 0, erase_users=users if erase else None, dedup_window_ms=window_ms
        )
        seal = None
        if has_offsets:
            offset_of = self.log.meaning.sealing_offset
            offsets = [offset_of(number, watermark_ts) for number in range(self.partitions)]
            seal = TopicSeal(name=self.topic, offsets=offsets)
        with mock.patch.object(compaction, "files_seal", lambda *_: seal):
            result = compact(replace(config, watermark_ts=watermark_ts))
        run = Run(list(due), watermark_ts, erase=erase, dedup_window_ms=window_ms)
        assert result.events_added == self.oracle.compact(run).events_added
        return result

    def wait_for(self, generation: int) -> None:
        """Waits until the server has taken a generation up."""
        super().wait_for(generation)
        wait_for(self.has_taken_up)

    def has_taken_up(self) -> bool:
        self.server.published.refresh()
        return self.client.describe().sealed_ts >= self.server.published.watermark_ts

    def finish(self) -> None:
        """Publishes what is not handed over yet: nothing, after a last hand-over."""
