"""The messages of a topic that arrived before a watermark: each partition up to its seal.

A partition is sealed at a watermark once it has a message that arrived at the watermark or later:
no later one arrives before. Both are functions of the log alone, so every reader finds the same.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinrow.core.kafka import load_kafka
from thinrow.errors import InputError, UsageError
from thinrow.online.topic.places import Place, arrival_of
from thinrow.online.topic.settings import consumer_settings, make_client, was_passed_over
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from thinrow.events.split import Progress
    from thinrow.online.topic.settings import TopicAddress

__all__ = ["ArrivedMessage", "SealedMessages", "estimated_messages"]

log = logging.getLogger("thinrow.topic")

SEAL_WAIT_S = 60.0
"""Longest wait without a message for those that seal partitions: servers send some each second."""
ESTIMATE_WAIT_S = 10.0
"""Longest wait for the end of a partition."""
POLL_S = 0.1
"""Longest wait for a message, after which the reader looks at the clock."""
GROUP_MESSAGES_MAX = 2048
"""Most messages of a group."""
GROUP_BYTES_MAX = 4 << 20
"""Limit on the bytes of a group, unless one message has more."""


@dataclass(frozen=True, slots=True)
class ArrivedMessage:
    """A message that arrived before the watermark, and has events."""

    partition: int
    offset: int
    arrival_ts: int
    """Arrival, ms: the largest timestamp of the partition up to and including this message."""
    value: bytes
    """An encoded UserEvents."""


class SealedMessages:
    """Reads partitions from their first offsets up to their seals, and produces nothing.

    Args:
        address: The topic.
        first: Offset of the first message to read, by partition.
        since_ts: Watermark that those messages sealed, ms; None if they begin the topic.
        watermark_ts: Watermark of the seals, ms.
        progress: Receives the work done.
    """

    def __init__(
        self,
        address: TopicAddress,
        first: Mapping[int, int],
        since_ts: int | None,
        watermark_ts: int,
        progress: Progress,
    ) -> None:
        self._kafka: Any = load_kafka()
        self._address, self._first, self._since_ts = address, dict(first), since_ts
        self._watermark_ts, self._progress = watermark_ts, progress
        self._places = {number: Place(offset) for number, offset in first.items()}
        self._messages = 0
        self._trouble = ""
        self.sealed: dict[int, int] = {}
        """Offset of the first message that arrived at the watermark or later, by partition."""

    def groups(self) -> Generator[list[ArrivedMessage], None, None]:
        """Yields the messages that arrived before, each partition's in order, until all are sealed.

        Raises:
            InputError: The topic has lost messages, or is another one than before.
            UsageError: A partition is not sealed in time.
            UnavailableError: The brokers do not answer.
        """
        address = self._address
        consumer = make_client(
            self._kafka.Consumer,
            consumer_settings(address.bootstrap_servers, address.connection),
            self._on_error,
            log,
        )
        try:
            consumer.assign([self._at(number, offset) for number, offset in self._first.items()])
            heard_s = time.monotonic()
            while len(self.sealed) < len(self._first):
                found = self._poll(consumer)
                if found:
                    heard_s = time.monotonic()
                    self._trouble = ""
                elif time.monotonic() - heard_s > SEAL_WAIT_S:
                    raise self._not_sealed()
                yield from self._groups(consumer, found)
                self._progress("Reading messages", self._messages, self._messages)
                self._progress("Sealed partitions", len(self.sealed), len(self._first))
        finally:
            consumer.close()

    def _at(self, number: int, offset: int) -> Any:  # noqa: ANN401 - a class of librdkafka
        return self._kafka.TopicPartition(self._address.topic, number, offset)

    def _poll(self, consumer: Any) -> list[Any]:  # noqa: ANN401
        """Returns the messages of unsealed partitions that are here, after a wait for one."""
        first = consumer.poll(POLL_S)
        if first is None:
            return []
        found = [first, *consumer.consume(GROUP_MESSAGES_MAX - 1, 0)]
        for message in found:
            if message.error() is not None:
                self._check(message)
        return [
            message
            for message in found
            if message.error() is None and message.partition() not in self.sealed
        ]

    def _groups(self, consumer: Any, found: list[Any]) -> Iterator[list[ArrivedMessage]]:  # noqa: ANN401
        group: list[ArrivedMessage] = []
        size = 0
        for message in found:
            number, offset, value = message.partition(), message.offset(), message.value()
            if number in self.sealed:
                continue
            _, timestamp_ts = message.timestamp()
            place = self._places[number]
            arrival_ts = arrival_of(timestamp_ts, place.as_of_ts)
            if place.offset == self._first[number]:
                self._check_first(number, offset, arrival_ts)
            if arrival_ts >= self._watermark_ts:
                self.sealed[number] = offset
                consumer.pause([self._at(number, offset)])
                continue
            self._places[number] = Place(offset + 1, arrival_ts)
            self._messages += 1
            if value is None:
                continue
            if group and size + len(value) > GROUP_BYTES_MAX:
                yield group
                group, size = [], 0
            group.append(ArrivedMessage(number, offset, arrival_ts, value))
            size += len(value)
        if group:
            yield group

    def _check_first(self, number: int, offset: int, arrival_ts: int) -> None:
        """Checks that a partition goes on with the very message that sealed it before.

        Raises:
            InputError: It does not.
        """
        if self._since_ts is None:
            return
        if offset != self._first[number] or arrival_ts < self._since_ts:
            raise InputError(
                f"Topic {self._address.topic}, partition {number} has at offset "
                f"{self._first[number]} another message than the one at which the last generation "
                f"ends, so the topic was made again under its name; build a new store from it."
            )

    def _check(self, message: Any) -> None:  # noqa: ANN401 - a message of librdkafka
        """Raises the error in place of a message, unless librdkafka tries again."""
        error, topic, number = message.error(), self._address.topic, message.partition()
        if error.code() == self._kafka.KafkaError._AUTO_OFFSET_RESET:
            offset = self._places[number].offset
            begins = "where the topic begins"
            if self._since_ts is not None:
                begins = "where the last generation ends"
            reached = begins if offset == self._first[number] else "up to which it was read"
            raise InputError(
                f"Topic {topic}, partition {number} has no message at offset {offset}, {reached}: "
                f"it has lost messages, without which histories would be short. Restore the "
                f"brokers' files that have them, and keep messages until they are compacted "
                f"(retention.ms); if they are lost forever, build a new store."
            )
        if was_passed_over(error):
            raise InputError(
                f"Topic {topic}, partition {number} has messages that cannot be read: "
                f"{error.str()}. Without them histories would be short: run this again, and if "
                f"that does not help, restore the brokers' files."
            )
        if error.fatal():
            raise self._address.unavailable(error.str())
        self._on_error(error)

    def _on_error(self, error: Any) -> None:  # noqa: ANN401 - an error of librdkafka
        """Keeps an error that librdkafka retries, for the case that nothing comes any more."""
        self._trouble = error.str()
        log.info("Kafka: %s", error.str())

    def _not_sealed(self) -> Exception:
        if self._trouble:
            return self._address.unavailable(self._trouble)
        waiting = sorted(self._first.keys() - self.sealed.keys())
        number, others = waiting[0], len(waiting) - 1
        earliest_ts = min(self._places[each].as_of_ts for each in waiting)
        earlier = f" of at most {earliest_ts}" if earliest_ts else ""
        return UsageError(
            f"Partition {number} of topic {self._address.topic}"
            f"{f', and {others} others,' if others else ''} got no message of "
            f"{readable_time(self._watermark_ts)} or later in {SEAL_WAIT_S:g} s, so events from "
            f"before may still come: start a server with thinrow online --events "
            f"kafka:{self._address.topic}, which sends such messages, or give an earlier "
            f"--watermark{earlier}."
        )


def estimated_messages(address: TopicAddress, first: Mapping[int, int]) -> int:
    """Returns how many messages the brokers say to have from some offsets on, which may be wrong.

    Args:
        address: The topic.
        first: Offset of the first message to count, by partition.
    """
    kafka: Any = load_kafka()
    consumer = make_client(
        kafka.Consumer,
        consumer_settings(address.bootstrap_servers, address.connection),
        lambda error: log.info("Kafka: %s", error.str()),
        log,
    )
    count = 0
    try:
        for number, offset in first.items():
            place = kafka.TopicPartition(address.topic, number)
            _, end = consumer.get_watermark_offsets(place, timeout=ESTIMATE_WAIT_S)
            count += max(0, end - offset)
    except kafka.KafkaException as error:
        raise address.unavailable(error.args[0].str()) from error
    finally:
        consumer.close()
    return count
