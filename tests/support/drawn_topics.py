"""Drawn topics of events, and what they mean by the documented rules: an oracle over the log."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from support.event_topics import encoded, partition
from support.kafka_topics import TIMEOUT_S
from support.online_worlds import some_events
from support.topic_meaning import END_TS
from support.worlds import START_TS
from thinrow.v1 import event_topic_pb2 as wire

if TYPE_CHECKING:
    import random

    from support.kafka_broker import Broker
    from support.oracle import Event, Schema

FAR_TS = END_TS + 5
"""A timestamp that is no time in milliseconds."""


@dataclass(frozen=True)
class Message:
    timestamp_ts: int
    events: list[Event]
    """Events that count: none of a heartbeat, or of a message that is to be refused."""
    is_refused: bool = False


class DrawnTopic:
    """A topic that tests write, and every message of it."""

    def __init__(self, broker: Broker, schema: Schema, rng: random.Random, partitions: int) -> None:
        self.schema, self.rng, self.count = schema, rng, partitions
        self._topic = broker.topic(partitions)
        self.name = self._topic.name
        self.log: list[list[Message]] = [[] for _ in range(partitions)]
        self.now_ts = START_TS

    def act(self, messages: int) -> None:
        """Writes messages: of skewed clocks, repeated, late, without events, and bad ones."""
        rng = self.rng
        for _ in range(messages):
            self.now_ts += rng.choice((0, 1, 1, 20))
            timestamp_ts = self.now_ts + rng.choice((0, 0, 0, -5000, 300, -1, 1))
            if rng.random() < 0.03:
                timestamp_ts = FAR_TS
            kind = rng.random()
            if kind < 0.75:
                events = some_events(rng, self.schema, self.now_ts)
                for user_id in dict.fromkeys(event.user_id for event in events):
                    mine = [event for event in events if event.user_id == user_id]
                    for _ in range(rng.choice((1, 1, 1, 2))):  # a producer that retried
                        self._send_events(user_id, mine, timestamp_ts)
                        if rng.random() < 0.1:  # the same ids, and earlier in a history
                            mine = [replace(one, event_ts=one.event_ts - 1) for one in mine]
            elif kind < 0.9:
                self._send(rng.randrange(self.count), None, Message(timestamp_ts, []))
            else:
                self._send_bad(timestamp_ts)
        self.flush()

    def seal(self, watermark_ts: int) -> None:
        """Sends a heartbeat to each partition that is not sealed."""
        for number in range(self.count):
            if self.seal_of(number, watermark_ts) is None:
                self._send(number, None, Message(watermark_ts + self.rng.choice((0, 1, 90)), []))
        self.flush()

    def flush(self) -> None:
        assert self._topic.producer.flush(TIMEOUT_S) == 0

    def arrived(self, from_ts: int, until_ts: int) -> list[Event]:
        """Events that arrived in a window: of those repeated in one millisecond, the first."""
        return self._sorted_out(from_ts, until_ts)[0]

    def repeated(self, from_ts: int, until_ts: int) -> int:
        """Number of the others."""
        return self._sorted_out(from_ts, until_ts)[1]

    def _sorted_out(self, from_ts: int, until_ts: int) -> tuple[list[Event], int]:
        found, seen, repeated = [], set(), 0
        for number in range(self.count):
            for message, arrival_ts in self._arrivals(number):
                if not from_ts <= arrival_ts < until_ts:
                    continue
                for event in message.events:
                    name = (event.user_id, event.event_id, arrival_ts)
                    if event.event_id is not None and name in seen:
                        repeated += 1
                        continue
                    seen.add(name)
                    found.append(replace(event, arrival_ts=arrival_ts))
        return found, repeated

    def refused(self, from_ts: int, until_ts: int) -> int:
        """Number of messages that arrived in a window and are refused."""
        return sum(
            message.is_refused and from_ts <= arrival_ts < until_ts
            for number in range(self.count)
            for message, arrival_ts in self._arrivals(number)
        )

    def seals(self, watermark_ts: int) -> list[int]:
        found = [self.seal_of(number, watermark_ts) for number in range(self.count)]
        assert None not in found
        return [offset for offset in found if offset is not None]

    def seal_of(self, number: int, watermark_ts: int) -> int | None:
        """Offset of the first message that arrived at the watermark or later."""
        arrivals = [arrival_ts for _, arrival_ts in self._arrivals(number)]
        return next((n for n, ts in enumerate(arrivals) if ts >= watermark_ts), None)

    def _arrivals(self, number: int) -> list[tuple[Message, int]]:
        latest_ts, found = 0, []
        for message in self.log[number]:
            if message.timestamp_ts < END_TS:
                latest_ts = max(latest_ts, message.timestamp_ts)
            found.append((message, latest_ts))
        return found

    def _send_events(self, user_id: int, events: list[Event], timestamp_ts: int) -> None:
        number = partition(user_id, self.schema.user_ids, self.count)
        value = encoded(user_id, events, self.schema)
        self._send(number, value, Message(timestamp_ts, list(events)))

    def _send_bad(self, timestamp_ts: int) -> None:
        events = some_events(self.rng, self.schema, self.now_ts)[:1]
        user_id = events[0].user_id
        right = place = partition(user_id, self.schema.user_ids, self.count)
        message = wire.UserEvents.FromString(encoded(user_id, events, self.schema))
        kind = self.rng.randrange(4)
        if kind == 0 and self.count > 1:
            place = (right + 1) % self.count
        elif kind == 1:
            message.ClearField("user")
        elif kind == 2:
            message.events[0].ClearField("event_ts")
        else:
            message.events[0].traits["no such trait"].integer = 1
        self._send(place, message.SerializeToString(), Message(timestamp_ts, [], True))

    def _send(self, number: int, value: bytes | None, message: Message) -> None:
        self.log[number].append(message)
        self._topic.producer.produce(
            self.name, value, partition=number, timestamp=message.timestamp_ts
        )
