"""Thin rows from a Kafka topic, for a trainer that follows the log.

Each rank reads fixed partitions, by number, and joins no group: no rebalancing takes a partition
from a trainer that is busy with a long step, so no row is trained on twice because of it. The group
only names the committed offsets.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.client.torch.kafka_config import KafkaConfig, librdkafka_settings
from thinrow.client.torch.kafka_messages import (
    OFFSET_BITS,
    PARTITION_BITS,
    InFlightMessage,
    MessageRows,
    empty_chunk,
)
from thinrow.client.torch.kafka_offsets import (
    STATE_VERSION,
    OffsetCommitter,
    Place,
    joint_places,
    rows_taken,
    to_offset,
)
from thinrow.client.torch.source import RowChunk
from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.arrow_sizes import table_bytes
from thinrow.core.files.message import decode_thin_rows, split_thin_rows
from thinrow.core.kafka import load_kafka
from thinrow.errors import InputError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

__all__ = ["KafkaConfig", "KafkaSource"]

log = logging.getLogger("thinrow.kafka")

POLL_S = 0.1
"""Longest time that chunks() waits for one message."""


class KafkaSource:
    """Reads a topic of thin rows: a RowSource without an end.

    Starts at the place of `load_state_dict`, or at the group's committed offsets, or at the
    beginning.

    Raises:
        UsageError: The topic does not exist or has too few partitions.
        UnavailableError: No broker answers.
    """

    def __init__(self, config: KafkaConfig) -> None:
        kafka = load_kafka()
        self._kafka = kafka
        self._config = config
        self.bad_messages: Counter[int] = Counter()
        """Messages skipped, by partition."""
        self._trouble: KafkaError | None = None
        self._closing = threading.Event()
        # librdkafka crashes if a consumer is used while it is being closed.
        self._using = threading.Lock()
        # chunks() runs in another thread than the methods that count its rows.
        self._lock = threading.Lock()
        self._in_flight: deque[InFlightMessage] = deque()
        try:
            self._consumer: Consumer = kafka.Consumer(
                librdkafka_settings(config) | {**config.settings, "error_cb": self._on_error},
                logger=log,
            )
        except kafka.KafkaException as error:
            raise UsageError(
                f"Kafka refuses the settings: {error.args[0].str()}; correct them."
            ) from error
        try:
            self._taken = self._first_places()
            self._offsets = OffsetCommitter(
                kafka,
                {**config.settings, "bootstrap.servers": config.bootstrap_servers},
                config.group,
                config.topic,
                committed=self._taken,
                timeout_s=config.connect_timeout_s,
            )
        except BaseException:
            self._consumer.close()
            raise
        self._confirmed = self._taken.copy()
        self._next_commit_s = 0.0

    def chunks(self, examples: int) -> Iterator[RowChunk]:
        """Yields the rows that no `took` has counted yet, at most `examples` at a time.

        Without messages, an empty chunk every POLL_S lets the loader deliver, or leave. One
        iteration at a time.

        Raises:
            InputError: A message is bad, or the topic has lost one.
            UnavailableError: Kafka reports a fatal error.
            UsageError: The source is closed.
        """
        with self._lock:
            self._in_flight.clear()
            start = [self._at(partition, place) for partition, place in self._taken.items()]
        with self._using:
            if self._closing.is_set():
                raise UsageError("This source was closed; make a new one.")
            self._consumer.assign(start)
        idle_s = self._config.idle_timeout_s or math.inf
        heard_s = time.monotonic()
        left: MessageRows | None = None
        while not self._closing.is_set():
            parts, left = self._gather(examples, left)
            if parts:
                yield from self._to_chunks(parts, examples)
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s >= idle_s:
                return
            else:
                yield empty_chunk()

    def took(self, rows: int) -> None:
        """Counts the next `rows` rows, in order: they are in the next batch, or skipped."""
        with self._lock:
            while self._in_flight:
                message = self._in_flight[0]
                place = self._taken[message.partition]
                row = place.row if place.offset == message.offset else 0
                if row + rows < message.rows:
                    self._taken[message.partition] = Place(message.offset, row + rows)
                    return
                rows -= message.rows - row
                self._taken[message.partition] = Place(message.offset + 1, 0)
                self._in_flight.popleft()
        assert rows == 0, "more rows are counted than were delivered"

    def commit(self) -> None:
        """Commits the trainer's progress for the group, every `commit_interval_s`."""
        # Bad and empty messages count at once.
        self.took(0)
        with self._lock:
            self._confirmed = self._taken.copy()
        if time.monotonic() >= self._next_commit_s:
            self._next_commit_s = time.monotonic() + self._config.commit_interval_s
            self._offsets.commit(self._confirmed)

    def state_dict(self) -> dict[str, Any]:
        """Returns the place after the counted rows: [offset, row in the message] by partition."""
        with self._lock:
            places = {str(partition): list(place) for partition, place in self._taken.items()}
        return {
            "version": STATE_VERSION,
            "topic": self._config.topic,
            "rank": self._config.rank,
            "world_size": self._config.world_size,
            "places": places,
        }

    def load_state_dict(self, state: Any) -> None:  # noqa: ANN401
        """Moves to a place, before `chunks`.

        Args:
            state: This rank's state, or a list of the states of all ranks, whose number may have
                been another one.

        Raises:
            UsageError: A state belongs to another topic, or some are missing.
        """
        states = state if isinstance(state, list | tuple) else [state]
        places = joint_places(states, self._config, self._taken.keys())
        with self._lock:
            self._taken.update(places)

    def close(self) -> None:
        """Ends `chunks`, commits the remaining offsets, and closes the consumer.

        The calling thread waits until librdkafka has ended its threads, because one that outlives
        the interpreter can crash the process. An offset that the brokers do not acknowledge in time
        is logged, and its rows are read again.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._offsets.commit(self._confirmed)
        self._offsets.close()
        with self._using:
            try:
                self._consumer.close()
            except self._kafka.KafkaException as error:
                log.warning(
                    "could not close the consumer of topic %s: %s",
                    *(self._config.topic, error.args[0].str()),
                )

    def _first_places(self) -> dict[int, Place]:
        """Returns the group's places in this rank's partitions."""
        config = self._config
        topic = self._request("list_topics", config.topic).topics[config.topic]
        if topic.error is not None:
            raise UsageError(
                f"Topic {config.topic} cannot be read: {topic.error.str()}; check its name and who "
                f"may read it."
            )
        count = len(topic.partitions)
        if not config.rank < count <= 1 << PARTITION_BITS:
            raise UsageError(
                f"Topic {config.topic} has {count} partitions, but rank {config.rank} needs one of "
                f"its own, and {1 << PARTITION_BITS} is the most; change the one or the other."
            )
        mine = range(config.rank, count, config.world_size)
        places = {}
        for found in self._request(
            "committed", [self._at(partition, Place(0, 0)) for partition in mine]
        ):
            if found.error is not None:
                raise self._unavailable(found.error)
            row = rows_taken(found)
            if found.offset < 0:
                found.offset, _ = self._request("get_watermark_offsets", found)
            places[found.partition] = Place(found.offset, row)
        return places

    def _request(self, method: str, about: object) -> Any:  # noqa: ANN401
        """Calls a method of the consumer that waits for a response."""
        try:
            return getattr(self._consumer, method)(about, timeout=self._config.connect_timeout_s)
        except self._kafka.KafkaException as error:
            # Only a poll reports the cause of the timeout.
            self._consumer.poll(0)
            raise self._unavailable(self._trouble or error.args[0]) from error

    def _gather(
        self, examples: int, part: MessageRows | None
    ) -> tuple[list[MessageRows], MessageRows | None]:
        """Waits for whole messages of up to `examples` rows, or for one with more.

        Decoded together they have at most `queued_bytes_max`, unless a single one has more.

        Args:
            examples: Most rows.
            part: A message received before; None if there is none.

        Returns:
            The messages, and one that did not fit.
        """
        parts: list[MessageRows] = []
        rows = size = 0
        part = part or self._receive(POLL_S)
        end_s = time.monotonic() + self._config.linger_ms / 1000
        while part is not None:
            rows, size = rows + len(part.table), size + table_bytes(part.table)
            if parts and (
                rows > examples
                or size > self._config.queued_bytes_max
                or part.table.schema != parts[0].table.schema
            ):
                break
            parts.append(part)
            part = self._receive(end_s - time.monotonic()) if rows < examples else None
        return parts, part

    def _receive(self, wait_s: float) -> MessageRows | None:
        """Waits for the next message with rows."""
        end_s = time.monotonic() + wait_s
        while not self._closing.is_set():
            message = self._poll(min(max(end_s - time.monotonic(), 0), POLL_S))
            if message is None:
                if time.monotonic() >= end_s:
                    break
                continue
            part = self._read(message)
            if part is not None and len(part.table):
                return part
        return None

    def _poll(self, wait_s: float) -> Message | None:
        """Waits for the next message, and runs librdkafka's callbacks."""
        with self._using:
            if self._closing.is_set():
                return None
            message = self._consumer.poll(wait_s)
        if self._trouble is not None and self._trouble.fatal():
            raise self._unavailable(self._trouble)
        error = None if message is None else message.error()
        if message is None or error is None:
            return message
        if error.code() == self._kafka.KafkaError._AUTO_OFFSET_RESET:
            raise InputError(
                f"Topic {message.topic()}, partition {message.partition()} has nothing at offset "
                f"{message.offset()}, where reading goes on; choose another group to begin with "
                f"the oldest it has, and let the topic keep its messages for longer."
            )
        raise self._unavailable(error)

    def _read(self, message: Message) -> MessageRows | None:
        """Decodes a message and records it as in flight; returns None for a bad one, if skipped."""
        partition, offset = message.partition(), message.offset()
        assert partition is not None and offset is not None
        if offset >> OFFSET_BITS:
            raise UsageError(
                f"Topic {self._config.topic} has come to offset {offset}, past what example ids "
                f"can number; go on with a new topic."
            )
        in_flight = InFlightMessage(partition, offset, 0)
        place = self._taken[partition]
        row = place.row if place.offset == offset else 0
        try:
            table = decode_thin_rows(self._where(in_flight), message.value())
            if row > len(table):
                raise InputError(
                    f"{self._where(in_flight)} has {len(table)} rows, but {row} of them are "
                    f"taken in the state; resume with the topic that the state was saved from."
                )
        except InputError as error:
            table = None
            self._skip(in_flight, row, error)
        else:
            in_flight.rows = len(table)
        with self._lock:
            self._in_flight.append(in_flight)
        return None if table is None else MessageRows(in_flight, row, table.slice(row))

    def _to_chunks(self, parts: list[MessageRows], examples: int) -> Iterator[RowChunk]:
        """Converts messages together, which is several times faster than one by one."""
        pa = load_pyarrow()
        table = pa.concat_tables([part.table for part in parts])
        try:
            rows, columns = split_thin_rows(self._where(parts[0].in_flight), table)
        except InputError as error:
            if len(parts) == 1:
                self._skip(parts[0].in_flight, parts[0].row, error)
            else:
                for part in parts:
                    yield from self._to_chunks([part], examples)
            return
        example_ids = np.concatenate([part.example_ids() for part in parts])
        for start in range(0, len(rows), examples):
            chunk = slice(start, start + examples)
            yield RowChunk(rows[chunk], columns.slice(start, examples), example_ids[chunk])

    def _skip(self, in_flight: InFlightMessage, row: int, error: InputError) -> None:
        """Skips the rows of a bad message, or raises the error."""
        if self._config.on_bad_message == "fail":
            raise error
        with self._lock:
            in_flight.rows = row
        self.bad_messages[in_flight.partition] += 1
        log.warning("skipped a bad message: %s", error)

    def _on_error(self, error: KafkaError) -> None:
        """Records an error; librdkafka retries unless it is fatal."""
        self._trouble = error
        log.warning("Kafka: %s", error.str())

    def _at(self, partition: int, place: Place) -> TopicPartition:
        return to_offset(self._kafka, self._config.topic, partition, place)

    def _where(self, in_flight: InFlightMessage) -> str:
        topic, partition = self._config.topic, in_flight.partition
        return f"Topic {topic}, partition {partition}, offset {in_flight.offset}"

    def _unavailable(self, error: KafkaError) -> UnavailableError:
        return UnavailableError(
            f"Kafka at {self._config.bootstrap_servers} cannot serve topic {self._config.topic}: "
            f"{error.str()}; check the brokers and the settings."
        )
