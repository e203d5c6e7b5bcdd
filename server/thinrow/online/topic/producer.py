"""The producer of a topic: events that callers append, and heartbeats that make them visible.

A request sees what arrived before its partition's latest arrival. So the newest events wait until a
later message comes; a heartbeat is one.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from thinrow.core.kafka import load_kafka
from thinrow.errors import ThinRowError, UnavailableError
from thinrow.online.tier import CommittedBatch
from thinrow.online.topic.messages import MESSAGE_BYTES_MAX, encode_messages, partition_of
from thinrow.online.topic.settings import connect_end_s, make_client, producer_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.online.records import Batch
    from thinrow.online.topic.settings import TopicSettings
    from thinrow.online.topic.tier import TopicTier

    Delivered = Callable[[Any, Any], None]

__all__ = ["IDLE_S", "UNSEEN_S", "TopicProducer"]

log = logging.getLogger("thinrow.online")

TICK_S = 0.02
"""Longest time between two looks at the partitions."""
UNSEEN_S = 0.05
"""Time after which a heartbeat follows events that no later message has."""
IDLE_S = 1.0
"""Time after which a heartbeat follows any other message. Both are up to doubled at random, so that
one of several replicas sends it."""
QUEUE_POLL_S = 0.01
"""Interval at which a batch looks for room among the messages that wait for the brokers."""
FLUSH_S = 5.0
"""Longest wait for the brokers at the end."""
PURGE_S = 1.0
"""Longest wait for the reports of messages that are given up then."""


class TopicProducer:
    """Produces events and heartbeats; a context manager, thread-safe.

    Args:
        settings: The topic and its partitions.
        tier: Its schema encodes events, and its places say where a heartbeat is due.
    """

    def __init__(self, settings: TopicSettings, tier: TopicTier) -> None:
        self._kafka: Any = load_kafka()
        self._settings = settings
        self._tier = tier
        self._stopping = threading.Event()
        self._is_beating = threading.Event()
        self._beats = {number: _Heartbeat() for number in settings.partitions}
        self._thread = threading.Thread(target=self._run, name="thinrow-produce", daemon=True)

    def __enter__(self) -> Self:
        settings = producer_settings(
            self._settings.bootstrap_servers, self._settings.connection, MESSAGE_BYTES_MAX
        )
        self._producer = make_client(self._kafka.Producer, settings, self._on_error)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._producer.flush(FLUSH_S):
            # Their calls wait for them, and the process for its calls.
            self._producer.purge()
            self._producer.flush(PURGE_S)

    def submit(self, batch: Batch) -> Future[CommittedBatch]:
        """Takes a batch, waiting for room.

        Its future ends once the brokers have acknowledged all its messages, or with
        UnavailableError. Duplicates are found by readers of the topic, so none are counted here,
        and the arrival is 0: only the log has it.

        Raises:
            RequestError: An event is larger than a message may be.
            UnavailableError: The server is stopping.
        """
        record_format = self._tier.format
        assert record_format is not None, "batches are decoded by a schema"
        messages = encode_messages(batch, record_format)
        delivery = _Delivery(len(messages), len(batch), self._settings)
        count = self._settings.partition_count
        timestamp_ts = self._settings.wall()
        for message in messages:
            partition = partition_of(message.user_key, count)
            self._produce(partition, message.key, message.value, timestamp_ts, delivery.on_delivery)
        return delivery.future

    def first_heartbeats(self) -> dict[int, int]:
        """Sends a heartbeat to each partition of this replica; returns their offsets.

        Once a replica has applied them it has all that was in the topic before.

        Raises:
            UnavailableError: The brokers do not acknowledge them in time.
        """
        for number in self._beats:
            self._send_heartbeat(number)
        end_s = connect_end_s()
        for beat in self._beats.values():
            if not beat.ended.wait(max(0.0, end_s - time.monotonic())) or beat.offset is None:
                raise self._settings.unavailable(beat.reason or "no answer in time")
        return {number: beat.offset or 0 for number, beat in self._beats.items()}

    def start_heartbeats(self) -> None:
        """Sends heartbeats from now on, where they are due."""
        self._is_beating.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._producer.poll(TICK_S)
            if self._is_beating.is_set():
                for number in self._beats:
                    if self._is_due(number):
                        self._send_heartbeat(number)

    def _is_due(self, number: int) -> bool:
        place, beat = self._tier.places.now[number], self._beats[number]
        # A replica that applies nothing, or whose brokers are away, sends one and no more.
        if not beat.ended.is_set() or (beat.offset is not None and beat.offset >= place.offset):
            return False
        delay_s = UNSEEN_S if place.events else IDLE_S
        since_s = max(self._tier.places.advanced_s(number), beat.sent_s)
        return time.monotonic() - since_s >= delay_s * beat.jitter

    def _send_heartbeat(self, number: int) -> None:
        self._beats[number] = beat = _Heartbeat()
        beat.ended.clear()
        # Later than the partition's messages, also where a producer's clock is fast.
        timestamp_ts = max(self._settings.wall(), self._tier.places.now[number].as_of_ts + 1)
        try:
            self._produce(number, None, None, timestamp_ts, beat.on_delivery)
        except ThinRowError as error:
            beat.end(None, str(error))

    def _produce(
        self,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        timestamp_ts: int,
        on_delivery: Delivered,
    ) -> None:
        """Hands a message to librdkafka, waiting for room. Raises UnavailableError."""
        while True:
            if self._stopping.is_set():
                raise UnavailableError("This server is stopping; send the events again.")
            try:
                self._producer.produce(
                    self._settings.topic,
                    value,
                    key,
                    partition,
                    on_delivery=on_delivery,
                    timestamp=timestamp_ts,
                )
            except BufferError:
                if threading.current_thread() is self._thread:
                    raise self._settings.unavailable("too many messages wait") from None
                time.sleep(QUEUE_POLL_S)
            except self._kafka.KafkaException as error:
                raise self._settings.unavailable(error.args[0].str()) from error
            else:
                return

    def _on_error(self, error: Any) -> None:  # noqa: ANN401 - an error of librdkafka
        """Logs an error; librdkafka retries unless it is fatal."""
        log.warning("Kafka: %s", error.str())


class _Delivery:
    """A batch whose messages wait for the brokers. One thread calls `on_delivery`."""

    def __init__(self, messages: int, events: int, settings: TopicSettings) -> None:
        self.future: Future[CommittedBatch] = Future()
        self._left = messages
        self._committed = CommittedBatch(events, 0, 0)
        self._settings = settings
        self._reason = ""
        if not messages:
            self.future.set_result(self._committed)

    def on_delivery(self, error: Any, message: object) -> None:  # noqa: ANN401, ARG002 - librdkafka's
        """Counts a message that the brokers acknowledged, or refused."""
        self._left -= 1
        if error is not None:
            self._reason = error.str()
        if self._left:
            return
        if self._reason:
            self.future.set_exception(self._settings.unavailable(self._reason))
        else:
            self.future.set_result(self._committed)


class _Heartbeat:
    """The last heartbeat of a partition."""

    def __init__(self) -> None:
        self.sent_s = time.monotonic()
        self.jitter = random.uniform(1, 2)
        self.ended = threading.Event()
        self.ended.set()
        self.offset: int | None = None
        """Offset in the partition, once the brokers acknowledged it."""
        self.reason = ""
        """The error that ended it."""

    def on_delivery(self, error: Any, message: Any) -> None:  # noqa: ANN401 - librdkafka's
        """Records the acknowledgement of the brokers."""
        if error is None:
            self.end(message.offset(), "")
        else:
            self.end(None, error.str())

    def end(self, offset: int | None, reason: str) -> None:
        """Records the end of the heartbeat."""
        self.offset, self.reason = offset, reason
        self.ended.set()
