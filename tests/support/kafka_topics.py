"""Topics of thin rows, for tests of what reads and writes them."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, Producer, TopicPartition
from thinrow.client.torch.kafka import KafkaConfig, KafkaSource
from thinrow.core.files.message import decode_thin_rows, encode_thin_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from thinrow.client import ThinRows
    from thinrow.client.torch.source import RowChunk

PARTITIONS = 4
"""Number of partitions of a topic of the mock cluster."""

TIMEOUT_S = 60
"""Ends a test whose brokers never answer."""

NUMBERS = itertools.count()


class Topic:
    """A topic of its own, and what was sent to it."""

    def __init__(self, producer: Producer, servers: str) -> None:
        self.producer = producer
        self.servers = servers
        self.name = f"rows-{next(NUMBERS)}"
        self.ends: Counter[int] = Counter()
        """The offset after the last message, by partition."""

    def send(self, message: bytes | None, partition: int = 0) -> None:
        self.producer.produce(self.name, message, partition=partition)
        self.ends[partition] += 1
        assert self.producer.flush(TIMEOUT_S) == 0

    def send_table(
        self, rows: pa.Table, sizes: tuple[int, ...] = (7,), partitions: int = PARTITIONS
    ) -> int:
        """Cuts a table into messages of these sizes, dealt out to partitions in turn; counts."""
        start = messages = 0
        while start < len(rows):
            size = sizes[messages % len(sizes)]
            self.send(encode_thin_rows(rows.slice(start, size)), messages % partitions)
            start += size
            messages += 1
        return messages

    def config(self, **options: Any) -> KafkaConfig:  # noqa: ANN401
        return KafkaConfig(
            **{
                "topic": self.name,
                "bootstrap_servers": self.servers,
                "group": "trainers",
                "linger_ms": 20,
                "commit_interval_s": 0,
                "settings": {"fetch.wait.max.ms": "10"},
                **options,
            }
        )

    def source(self, **options: Any) -> KafkaSource:  # noqa: ANN401
        return KafkaSource(self.config(**options))

    def chunks(self, source: KafkaSource, examples: int = 16) -> Iterator[RowChunk]:
        """Yields chunks with rows, until all messages that were sent are taken."""
        for chunk in source.chunks(examples):
            if len(chunk.rows):
                yield chunk
                continue
            source.took(0)
            places = source.state_dict()["places"]
            if all(offset == self.ends[int(name)] for name, (offset, _) in places.items()):
                return

    def read(
        self, source: KafkaSource, *, rows: int | None = None, examples: int = 16
    ) -> list[int]:
        """Takes the given number of rows, or all there are, one by one; returns their users."""
        taken: list[int] = []
        for chunk in self.chunks(source, examples):
            for user in users(chunk.rows):
                if len(taken) == rows:
                    return taken
                taken.append(user)
                source.took(1)
        assert rows is None or len(taken) == rows
        return taken

    def read_all(self) -> list[int]:
        """Takes the rows that are left for the group; returns their users."""
        source = self.source()
        try:
            return self.read(source)
        finally:
            source.close()

    def request_ids(self, rows: int) -> list[str]:
        """Reads from the start until the topic has that many different rows; returns their ids."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "readers"})
        found: list[str] = []
        try:
            consumer.assign([TopicPartition(self.name, number, 0) for number in range(PARTITIONS)])
            while len(set(found)) < rows:
                message = consumer.poll(TIMEOUT_S)
                assert message is not None
                if message.error() is None:
                    found += decode_thin_rows("here", message.value())["request_id"].to_pylist()
        finally:
            consumer.close()
        return found

    def committed(self, group: str = "trainers") -> dict[int, int]:
        """The group's offsets, of partitions that have one."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": group})
        try:
            requested = [TopicPartition(self.name, number) for number in range(PARTITIONS)]
            found = consumer.committed(requested, timeout=TIMEOUT_S)
            return {place.partition: place.offset for place in found if place.offset >= 0}
        finally:
            consumer.close()


class CountedSource(KafkaSource):
    """Ends after a number of rows, however long they take to come."""

    def __init__(self, config: KafkaConfig, rows: int) -> None:
        super().__init__(config)
        self._rows_left = rows

    def chunks(self, examples: int) -> Iterator[RowChunk]:
        for chunk in super().chunks(examples):
            self._rows_left -= len(chunk.rows)
            yield chunk
            if self._rows_left <= 0:
                return


@contextmanager
def mock_cluster() -> Iterator[tuple[Producer, str]]:
    """Brokers of librdkafka's own in this process; a producer of theirs, and their addresses."""
    producer = Producer({"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0})
    brokers = producer.list_topics(timeout=TIMEOUT_S).brokers.values()
    yield producer, ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


def users(rows: ThinRows) -> list[int]:
    """Users of the rows; in table() each row has its own."""
    numbers: list[int] = rows.pointers.user_ids.tolist()
    return numbers


def wait_for(holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.01)
