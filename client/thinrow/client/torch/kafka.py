"""Thin rows from a Kafka topic, for a trainer that follows the log.

Each rank reads partitions of its own, by number, and joins no group: nobody takes a partition away
from a trainer that is busy with a long step, so nothing is trained on twice because of it. The
group only names the committed offsets.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from thinrow.client.torch.files import ranks
from thinrow.client.torch.kafka_offsets import OffsetCommitter, Place, rows_taken, to_offset
from thinrow.client.torch.source import RowChunk
from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.arrow_sizes import table_bytes
from thinrow.core.files.message import MESSAGE_ROWS_MAX, decode_thin_rows, split_thin_rows
from thinrow.core.pointers import Pointers, ThinRows
from thinrow.errors import InputError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    import pyarrow as pa
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
    from numpy.typing import NDArray

__all__ = ["KafkaConfig", "KafkaSource"]

log = logging.getLogger("thinrow.kafka")

STATE_VERSION = 1

# An example id is partition, offset and row in the message, from the highest bits to the lowest.
ROW_BITS = (MESSAGE_ROWS_MAX - 1).bit_length()
OFFSET_BITS = 41
PARTITION_BITS = 63 - OFFSET_BITS - ROW_BITS

POLL_S = 0.1
"""How long chunks() waits for a message before it looks up."""

FETCH_BYTES_MAX = 16 << 20
"""By how much the last fetch may exceed `queued_bytes_max`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """Where thin rows come from, and how. Raises UsageError for a value out of its range."""

    topic: str
    """Its messages are what thinrow.core.files.message.encode_thin_rows returns."""

    bootstrap_servers: str
    """HOST:PORT of some brokers, with commas between."""

    group: str
    """Names the committed offsets. For one training run; no other consumer may use it."""

    rank: int = field(default_factory=lambda: ranks()[0])
    """This trainer's number. Default: torch.distributed's where it is initialised, otherwise 0."""

    world_size: int = field(default_factory=lambda: ranks()[1])
    """Trainers that share the topic: partition p belongs to rank p % world_size. Default: as for
    `rank`, otherwise 1."""

    linger_ms: int = 100
    """How long rows may wait for more to come before they are handed on."""

    idle_timeout_s: float = 0.0
    """Ends the iteration when no rows came for so long. 0: waits for ever."""

    on_bad_message: Literal["fail", "skip"] = "fail"
    """What becomes of a message that holds no thin rows: "fail" raises InputError, "skip" logs it,
    counts it in KafkaSource.bad_messages and goes on."""

    commit_interval_s: float = 1.0
    """Least seconds between two commits of offsets. 0: one after each batch."""

    connect_timeout_s: float = 10.0
    """Seconds to wait for the brokers when connecting, before UnavailableError, and for the answer
    to a commit. close() waits twice as long at most."""

    queued_bytes_max: int = 64 << 20
    """Bytes of messages to fetch ahead, exceeded by one fetch of 16 MiB at most."""

    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """More settings of librdkafka, such as security.protocol and sasl.password."""

    def __post_init__(self) -> None:
        for name, least in (
            ("world_size", 1),
            ("linger_ms", 0),
            ("idle_timeout_s", 0),
            ("commit_interval_s", 0),
            ("connect_timeout_s", 0.001),
            ("queued_bytes_max", 1 << 20),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be {least} or more.")
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank is {self.rank}, but must be from 0 to {self.world_size - 1}.")
        if self.on_bad_message not in ("fail", "skip"):
            raise UsageError(
                f"on_bad_message is {self.on_bad_message!r}, but must be 'fail' or 'skip'."
            )
        if taken := self.settings.keys() & librdkafka_settings(self).keys():
            raise UsageError(
                f"settings must leave out {', '.join(sorted(taken))}, which KafkaSource sets."
            )


@dataclass(slots=True, eq=False)
class InFlightMessage:
    """A message that is being handed out and not wholly taken."""

    partition: int
    offset: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class MessageRows:
    """The rows of a message that are to be handed out, from `row` on."""

    in_flight: InFlightMessage
    row: int
    table: pa.Table

    def example_ids(self) -> NDArray[np.int64]:
        """Numbers the rows, shape (rows,), as no other of the topic."""
        message = self.in_flight.partition << OFFSET_BITS | self.in_flight.offset
        return (message << ROW_BITS) + self.row + np.arange(len(self.table))


class KafkaSource:
    """Reads a topic of thin rows: a RowSource that never comes to an end by itself.

    Starts where `load_state_dict` or else the group's committed offsets say, or else at the
    beginning. Raises UsageError for a topic that does not fit, UnavailableError where no broker
    answers.
    """

    def __init__(self, config: KafkaConfig) -> None:
        kafka = load_kafka()
        self._kafka = kafka
        self._config = config
        self.bad_messages: Counter[int] = Counter()
        """Messages skipped, by partition."""
        self._trouble: KafkaError | None = None
        self._closing = threading.Event()
        # librdkafka crashes where a consumer is used while it is being closed.
        self._using = threading.Lock()
        # chunks() runs in another thread than what counts its rows.
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

        While nothing comes, an empty chunk every POLL_S lets the loader deliver, or leave. One
        iteration at a time. Raises InputError for a bad message, or for one that the topic no
        longer has, UnavailableError where Kafka gives up, UsageError after close().
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
                yield nothing()

    def took(self, rows: int) -> None:
        """Counts the next `rows` rows, in order: they are in a batch now handed out, or skipped."""
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
        assert rows == 0, "more rows are taken than were handed out"

    def commit(self) -> None:
        """Lets the group know, every `commit_interval_s`, how far the trainer has come."""
        # Bad and empty messages need nobody to take them.
        self.took(0)
        with self._lock:
            self._confirmed = self._taken.copy()
        if time.monotonic() >= self._next_commit_s:
            self._next_commit_s = time.monotonic() + self._config.commit_interval_s
            self._offsets.commit(self._confirmed)

    def state_dict(self) -> dict[str, Any]:
        """Tells the place after what was taken: [offset, row in the message] by partition."""
        with self._lock:
            places = {str(partition): list(place) for partition, place in self._taken.items()}
        return {
            "version": STATE_VERSION,
            "topic": self._config.topic,
            "rank": self._config.rank,
            "world_size": self._config.world_size,
            "places": places,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a place, before `chunks`. Raises UsageError for another topic's or rank's."""
        mine = self.state_dict()
        for name in ("version", "topic", "rank", "world_size"):
            if state.get(name) != mine[name]:
                raise UsageError(
                    f"The state has {name} {state.get(name)!r}, but this source {mine[name]!r}; "
                    f"load it there, or go on from the group's committed offsets without it."
                )
        places = {int(name): Place(*place) for name, place in state["places"].items()}
        if gone := places.keys() - self._taken.keys():
            raise UsageError(
                f"The state has partitions {sorted(gone)}, which topic {self._config.topic} lacks; "
                f"load it where the topic is the one it was taken from."
            )
        with self._lock:
            self._taken.update(places)

    def close(self) -> None:
        """Ends `chunks`, commits the remaining offsets, and closes the consumer.

        The calling thread waits until librdkafka has ended its threads, because one that is still
        there when the interpreter ends can crash the process. An offset that the brokers do not
        acknowledge in time is logged, and its rows are read again.
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
        """Finds this rank's partitions, and where the group is in each."""
        config = self._config
        topic = self._ask("list_topics", config.topic).topics[config.topic]
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
        for found in self._ask(
            "committed", [self._at(partition, Place(0, 0)) for partition in mine]
        ):
            if found.error is not None:
                raise self._unavailable(found.error)
            row = rows_taken(found)
            if found.offset < 0:
                found.offset, _ = self._ask("get_watermark_offsets", found)
            places[found.partition] = Place(found.offset, row)
        return places

    def _ask(self, method: str, about: object) -> Any:  # noqa: ANN401
        """Calls a method of the consumer that waits for an answer."""
        try:
            return getattr(self._consumer, method)(about, timeout=self._config.connect_timeout_s)
        except self._kafka.KafkaException as error:
            # What the timeout was due to is known only after a poll.
            self._consumer.poll(0)
            raise self._unavailable(self._trouble or error.args[0]) from error

    def _gather(
        self, examples: int, part: MessageRows | None
    ) -> tuple[list[MessageRows], MessageRows | None]:
        """Waits for whole messages of up to `examples` rows, or for one with more.

        Decoded together they have at most `queued_bytes_max`, unless a single one has more.

        `part` is one already there; what does not fit any more is returned.
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
        """Waits for the next message; also runs the callbacks."""
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
        """Decodes a message and notes it as handed out; None for a bad one that is skipped."""
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
        """Leaves out the rows of a bad message, or raises."""
        if self._config.on_bad_message == "fail":
            raise error
        with self._lock:
            in_flight.rows = row
        self.bad_messages[in_flight.partition] += 1
        log.warning("skipped a bad message: %s", error)

    def _on_error(self, error: KafkaError) -> None:
        """Takes note; librdkafka goes on trying unless the error is fatal."""
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


def librdkafka_settings(config: KafkaConfig) -> dict[str, Any]:
    """Settings that the source relies on, whatever librdkafka's defaults are."""
    return {
        "bootstrap.servers": config.bootstrap_servers,
        "group.id": config.group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": False,
        "allow.auto.create.topics": False,
        # To begin elsewhere by itself would be to leave rows out without a word.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "check.crcs": True,
        "queued.max.messages.kbytes": config.queued_bytes_max >> 10,
        "fetch.max.bytes": min(config.queued_bytes_max, FETCH_BYTES_MAX),
    }


def nothing() -> RowChunk:
    """Makes the empty chunk, which says that nothing is there for now."""
    rows = ThinRows(Pointers(user_ids=[], end_ts=[]))
    return RowChunk(rows, load_pyarrow().table({}), np.zeros(0, np.int64))


def load_kafka() -> ModuleType:
    """Imports the Kafka client, which files do without."""
    try:
        import confluent_kafka
    except ImportError as error:
        raise UsageError(
            "Reading from Kafka needs confluent-kafka: pip install 'thinrow[kafka]'."
        ) from error
    module: ModuleType = confluent_kafka
    return module
