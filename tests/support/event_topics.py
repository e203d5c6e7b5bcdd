"""Topics of events: a producer and a reader that share no code with the product, as oracles."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import xxhash
from confluent_kafka import Consumer, Producer, TopicPartition
from support.id_kinds import known_id, oracle_id
from support.kafka_topics import TIMEOUT_S
from support.online_worlds import Online
from support.oracle import DAY_MS, Event, Run, Schema
from support.scenarios import STRANGER, USERS, events_table
from thinrow.compaction.compact import compact
from thinrow.errors import RequestError, ThinRowError
from thinrow.jobs.export import export_events
from thinrow.v1 import event_topic_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.kafka_broker import Broker
    from support.oracle import Trait

END_TS = 4_102_444_800_000  # 2100: later timestamps are no times in milliseconds


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
    """Everything that a topic means, by its own rules: arrivals and duplicates in log order."""

    def __init__(self, servers: str, topic: str, count: int, schema: Schema) -> None:
        self.arrived: list[Event] = []
        self.refused: set[tuple[int, bytes]] = set()
        """Partitions and values of messages that count as empty."""
        self.repeated = 0
        """Events that were duplicates."""
        self.ends = dict.fromkeys(range(count), 0)
        self._as_of = dict.fromkeys(range(count), 0)
        self._seen: set[tuple[int, object]] = set()
        self._schema = schema
        self._count = count
        self._consumer = Consumer(
            {"bootstrap.servers": servers, "group.id": "oracle", "fetch.wait.max.ms": 200}
        )
        self._consumer.assign([TopicPartition(topic, number, 0) for number in range(count)])

    def close(self) -> None:
        self._consumer.close()

    def as_of(self, user_id: int) -> int:
        return self._as_of[partition(user_id, self._schema.user_ids, self._count)]

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
        assert message is not None and message.error() is None
        number, timestamp = message.partition(), message.timestamp()[1]
        self.ends[number] = message.offset() + 1
        if timestamp < END_TS:
            self._as_of[number] = max(self._as_of[number], timestamp)
        if message.value() is None or (number, message.value()) in self.refused:
            return
        for event in decoded(message.value(), self._schema):
            name = (event.user_id, event.event_id)
            if event.event_id is None or name not in self._seen:
                self.arrived.append(replace(event, arrival_ts=self._as_of[number]))
            else:
                self.repeated += 1
            self._seen.add(name)


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
        self.log = LogReader(servers, self.topic, self.partitions, self.schema)
        self.arrived = self.log.arrived
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

    def mark(self) -> dict[int, int]:
        """Ends each partition with a message of its own; returns a moment after all before it."""
        delivered: dict[int, int] = {}

        def count(_: object, message: Any) -> None:  # noqa: ANN401
            delivered[message.partition()] = message.offset()

        for number in range(self.partitions):
            self.producer.produce(self.topic, None, partition=number, on_delivery=count)
        assert self.producer.flush(TIMEOUT_S) == 0
        self.log.read_to({number: offset + 1 for number, offset in delivered.items()})
        return {user: self.log.as_of(user) for user in USERS}

    def check_refusal(self, error: ThinRowError, moment_ts: int, before_ts: int) -> None:
        """A moment that is not applied yet is refused."""
        assert "has applied the topic" in str(error) and moment_ts > before_ts, error

    def pointer(self, user_id: int, request_ts: int, lookback_ms: int, max_length: int) -> Any:  # noqa: ANN401
        self.log.read_until(user_id, request_ts)
        return super().pointer(user_id, request_ts, lookback_ms, max_length)

    def hand_over(self, erase: frozenset[int] = frozenset()) -> None:  # noqa: ARG002
        """Refuses an export, and says what to export instead."""
        path = self.world.folder / "export.parquet"
        try:
            export_events(self.client, self.client.describe().now_ts, path)
        except RequestError as error:
            assert "thinrow export --events" in str(error)
        else:
            raise AssertionError("an export from a topic")
        assert not path.exists()

    def finish(self) -> None:
        """Publishes a generation of the events, as another reader of the topic than the server."""
        events = self.arrived
        watermark_ts = max((event.arrival_ts for event in events), default=0) + DAY_MS
        path = self.world.write("topic.parquet", events_table(events, self.schema, plain=False))
        config = self.world.compaction([path], 0)
        result = compact(replace(config, watermark_ts=watermark_ts))
        run = Run(events, watermark_ts)
        assert result.events_added == self.oracle.compact(run).events_added == len(events)
