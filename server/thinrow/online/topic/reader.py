"""The reader of a topic: applies messages to a replica's tier as they come."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Self

from thinrow.core.kafka import load_kafka
from thinrow.errors import StoreError, ThinRowError
from thinrow.online.topic.settings import consumer_settings, make_client, was_passed_over
from thinrow.online.topic.tier import ReadMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from thinrow.online.topic.metrics import TopicMetrics
    from thinrow.online.topic.settings import TopicSettings
    from thinrow.online.topic.tier import AppliedMessages, TopicTier

__all__ = ["TopicReader"]

log = logging.getLogger("thinrow.online")

POLL_S = 0.1
"""Longest wait for a message, after which the reader looks if it is to stop."""
WAIT_S = 1.0
"""Longest step of a wait until messages are applied."""
GROUP_MESSAGES_MAX = 2048
"""Most messages that are applied together."""
GROUP_BYTES_MAX = 4 << 20
"""Limit on the bytes of messages that are applied together, unless one has more."""
REFUSALS_LOGGED_MAX = 10
"""Refused messages of one group that the log names."""


class TopicReader:
    """Reads a replica's partitions from its places on, in a thread; a context manager.

    After a failure the places stay, and requests at them are still answered exactly, unless the
    disk failed.

    Args:
        settings: The topic and its partitions.
        tier: Gets the messages.
        metrics: Counts events.
        begin_again: Moves the tier behind the newest generation if a partition has no message at
            its place; returns False if that does not help.
    """

    def __init__(
        self,
        settings: TopicSettings,
        tier: TopicTier,
        metrics: TopicMetrics,
        begin_again: Callable[[int], bool],
    ) -> None:
        self._kafka: Any = load_kafka()
        self._settings = settings
        self._tier = tier
        self._metrics = metrics
        self._begin_again = begin_again
        self._failure: ThinRowError | None = None
        self._applied = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thinrow-topic", daemon=True)

    def __enter__(self) -> Self:
        settings = self._settings
        self._consumer = make_client(
            self._kafka.Consumer,
            consumer_settings(settings.bootstrap_servers, settings.connection),
            self._on_error,
        )
        self._tier.start_reading()
        self._assign()
        self._thread.start()
        return self

    def _assign(self) -> None:
        self._consumer.assign(
            [
                self._kafka.TopicPartition(self._settings.topic, number, place.offset)
                for number, place in self._tier.places.now.items()
            ]
        )

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    def wait_applied(self, offsets: Mapping[int, int]) -> None:
        """Waits until the messages at these offsets, by partition, are applied.

        Raises:
            UsageError: The topic has lost messages that this replica needs.
            UnavailableError: Kafka reports a fatal error.
            StoreError: The disk failed.
        """

        def is_applied() -> bool:
            places = self._tier.places.now
            return all(places[number].offset > offset for number, offset in offsets.items())

        with self._applied:
            # In steps: Python runs a signal's handler only once a wait returns.
            while not self._applied.wait_for(
                lambda: self._failure is not None or is_applied(), WAIT_S
            ):
                pass
            if self._failure is not None:
                raise self._failure

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                for group in self._groups():
                    self._count(self._tier.apply(group))
                    with self._applied:
                        self._applied.notify_all()
        except Exception as error:
            if isinstance(error, ThinRowError):
                failure = error
                log.error("reading the topic failed", extra={"reason": str(error)})
            else:
                failure = StoreError(f"The topic's reader failed ({type(error).__name__}).")
                log.exception("reading the topic failed")
            self._metrics.reader_failures.inc()
            with self._applied:
                self._failure = failure
                self._applied.notify_all()

    def _groups(self) -> Iterator[list[ReadMessage]]:
        """Yields the messages that are here, after a wait for the first one."""
        first = self._consumer.poll(POLL_S)
        if first is None:
            return
        group: list[ReadMessage] = []
        size = 0
        for message in (first, *self._consumer.consume(GROUP_MESSAGES_MAX - 1, 0)):
            if message.error() is not None:
                if self._check(message):
                    return
                continue
            value = message.value()
            if group and size + len(value or b"") > GROUP_BYTES_MAX:
                yield group
                group, size = [], 0
            _, timestamp_ts = message.timestamp()
            group.append(ReadMessage(message.partition(), message.offset(), timestamp_ts, value))
            size += len(value or b"")
        if group:
            yield group

    def _check(self, message: Any) -> bool:  # noqa: ANN401 - a message of librdkafka
        """Raises the error in place of a message, unless librdkafka tries again.

        Returns:
            True if the tier has begun again, and other messages come next.
        """
        error = message.error()
        if error.code() == self._kafka.KafkaError._AUTO_OFFSET_RESET:
            number = message.partition()
            place = self._tier.places.now[number]
            if self._begin_again(number):
                log.warning(
                    "messages are gone that the newest generation has; the tier begins behind it",
                    extra={"partition": number, "offset": place.offset},
                )
                self._assign()
                return True
            raise StoreError(
                f"Topic {self._settings.topic}, partition {number} has no message at offset "
                f"{place.offset}, where this server's events end, and the store has no generation "
                f"up to a later one: the topic has lost messages, without which histories would be "
                f"short. Publish a generation that has them, from the folder of a replica or from "
                f"the producers, and let the topic keep messages for longer (retention.ms)."
            )
        if was_passed_over(error):
            raise StoreError(
                f"Topic {self._settings.topic}, partition {message.partition()} has messages that "
                f"cannot be read: {error.str()}. Without them histories would be short: start this "
                f"server again, which fetches them again, and if that does not help, restore the "
                f"brokers' files."
            )
        if error.fatal():
            raise self._settings.unavailable(error.str())
        log.warning("Kafka: %s", error.str())
        return False

    def _on_error(self, error: Any) -> None:  # noqa: ANN401 - an error of librdkafka
        """Logs an error; librdkafka retries unless it is fatal."""
        log.warning("Kafka: %s", error.str())

    def _count(self, applied: AppliedMessages) -> None:
        self._metrics.applied.inc(applied.events)
        self._metrics.duplicates.inc(applied.duplicates)
        self._metrics.messages_refused.inc(len(applied.refused))
        for message, reason in applied.refused[:REFUSALS_LOGGED_MAX]:
            log.warning(
                "refused a message of the topic",
                extra={
                    "partition": message.partition,
                    "offset": message.offset,
                    "reason": reason,
                },
            )
