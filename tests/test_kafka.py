"""Thin rows from Kafka: none is lost, and none comes twice but where the documents say so.

The brokers are librdkafka's own mock cluster, which speaks the real protocol in this process.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from test_client_rows import EVENT, table, to_python
from thin_rows import rows_table, shown
from thinrow.client import Projection, ThinRows, read_thin_rows
from thinrow.client.message import (
    MESSAGE_ROWS_MAX,
    decode_thin_rows,
    encode_thin_rows,
    split_thin_rows,
)
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.client.torch.kafka import KafkaConfig, KafkaSource
from thinrow.errors import InputError, UnavailableError, UsageError
from worlds import as_of, built_world, running_server, some_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worlds import Running, World

PARTITIONS = 4
"""What a topic of the mock cluster has."""

NUMBERS = itertools.count()


class Topic:
    """A topic of its own, and what was sent to it."""

    def __init__(self, producer: Producer, servers: str) -> None:
        self.producer = producer
        self.servers = servers
        self.name = f"rows-{next(NUMBERS)}"

    def send(self, message: bytes | None, partition: int = 0) -> None:
        self.producer.produce(self.name, message, partition=partition)
        assert self.producer.flush(10) == 0

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
                "idle_timeout_s": 0.5,
                "linger_ms": 20,
                "commit_interval_s": 0,
                "settings": {"fetch.wait.max.ms": "10"},
                **options,
            }
        )

    def source(self, **options: Any) -> KafkaSource:  # noqa: ANN401
        return KafkaSource(self.config(**options))

    def committed(self, group: str = "trainers") -> dict[int, int]:
        """The group's offsets, of partitions that have one."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": group})
        try:
            asked = [TopicPartition(self.name, number) for number in range(PARTITIONS)]
            found = consumer.committed(asked, timeout=10)
            return {place.partition: place.offset for place in found if place.offset >= 0}
        finally:
            consumer.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Producer, str]]:
    mock = {"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0}
    producer = Producer(mock)
    brokers = producer.list_topics(timeout=10).brokers.values()
    yield producer, ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


@pytest.fixture
def topic(cluster: tuple[Producer, str]) -> Topic:
    return Topic(*cluster)


def users(rows: ThinRows) -> list[int]:
    """Who the rows are about; in table() each has a user of its own."""
    numbers: list[int] = rows.pointers.user_ids.tolist()
    return numbers


def read(source: KafkaSource, *, rows: int | None = None, examples: int = 16) -> list[int]:
    """Takes the rows there are, or so many, one by one; their users."""
    taken: list[int] = []
    for chunk in source.chunks(examples):
        for user in users(chunk.rows):
            if len(taken) == rows:
                return taken
            taken.append(user)
            source.took(1)
    assert rows is None or len(taken) == rows
    return taken


def assert_same(rows: ThinRows, others: pa.Table, want: tuple[ThinRows, pa.Table]) -> None:
    for name in rows.pointers.__slots__:
        assert np.array_equal(getattr(rows.pointers, name), getattr(want[0].pointers, name))
    assert rows.mutable is not None and want[0].mutable is not None
    assert to_python(rows.mutable) == to_python(want[0].mutable)
    assert others.equals(want[1])


@settings(max_examples=25)
@given(st.lists(st.integers(0, 40), max_size=5))
def test_messages_hold_what_a_file_holds(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    source = table(40)
    pq.write_table(source, path)
    (want,) = read_thin_rows(path, examples=40)
    parts = [
        decode_thin_rows("here", encode_thin_rows(source.slice(start, end - start)))
        for start, end in itertools.pairwise([0, *sorted(cuts), 40])
    ]
    assert_same(*split_thin_rows("here", pa.concat_tables(parts)), want)


def test_a_message_altered_in_any_way_is_read_or_refused() -> None:
    rng = random.Random(0)
    message = encode_thin_rows(table(9))
    refused = 0
    for _ in range(3000):
        altered = bytearray(message[: rng.choice((None, rng.randrange(len(message))))])
        for _ in range(rng.randrange(4)):
            altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
        try:
            split_thin_rows("here", decode_thin_rows("here", bytes(altered)))
        except InputError:
            refused += 1
    assert 1000 < refused < 3000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (table(2).drop_columns(["uih"]), "The table has no column uih"),
        (table(MESSAGE_ROWS_MAX + 1), "has 1025 rows, but a message holds at most 1024"),
        (
            table(1).set_column(1, "user_id", pa.array([None], pa.int64())),
            "column user_id must not be null",
        ),
    ],
)
def test_what_could_not_be_read_back_is_not_encoded(source: pa.Table, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_thin_rows(source)


@pytest.mark.parametrize("sizes", [(1,), (7,), (5, 0, 30)])
def test_rows_come_as_they_were_sent(topic: Topic, sizes: tuple[int, ...]) -> None:
    sent = table(100)
    topic.send_table(sent, sizes)
    source = topic.source()
    chunks = [chunk for chunk in source.chunks(16) if len(chunk.rows)]
    source.close()
    assert all(len(chunk.rows) <= 16 for chunk in chunks)
    ids = np.concatenate([chunk.example_ids for chunk in chunks])
    assert len(set(ids.tolist())) == 100 and ids.min() >= 0
    seen = []
    for chunk in chunks:
        numbers = users(chunk.rows)
        seen += numbers
        want = split_thin_rows("here", sent.take(numbers))
        assert_same(chunk.rows, chunk.columns, want)
    assert sorted(seen) == list(range(100))


def test_a_new_trait_ends_a_chunk(topic: Topic) -> None:
    older = pa.list_(pa.struct(list(EVENT)[:4]))
    rows = table(4)
    snapshots = pa.array(rows["mutable"].to_pylist(), older)
    topic.send(encode_thin_rows(rows.set_column(4, "mutable", snapshots)))
    topic.send(encode_thin_rows(rows))
    source = topic.source()
    chunks = [chunk for chunk in source.chunks(16) if len(chunk.rows)]
    source.close()
    assert [len(chunk.rows) for chunk in chunks] == [4, 4]
    assert "liked" in chunks[1].rows.mutable.columns  # type: ignore[union-attr]


def test_only_what_the_trainer_is_done_with_is_committed(topic: Topic) -> None:
    topic.send_table(table(30), (5,), partitions=1)
    source = topic.source()
    chunks = source.chunks(10)
    next(chunks)
    assert topic.committed() == {}
    source.took(10)
    assert topic.committed() == {}
    source.commit()
    next(chunks)
    source.took(7)
    wait_for(lambda: topic.committed() == {0: 2})
    source.close()
    assert topic.committed() == {0: 2}
    assert read_all(topic) == list(range(10, 30))


def test_commits_keep_their_interval_but_for_the_last(topic: Topic) -> None:
    topic.send_table(table(4), (1,), partitions=1)
    source = topic.source(commit_interval_s=60)
    chunks = source.chunks(4)
    next(chunks)
    for taken in (1, 2, 3):
        source.took(1)
        source.commit()
        wait_for(lambda: topic.committed() == {0: 1})
        assert taken
    source.close()
    source.close()
    assert topic.committed() == {0: 3}


def test_a_message_half_taken_goes_on_in_its_middle(topic: Topic) -> None:
    topic.send_table(table(30), (10,), partitions=1)
    source = topic.source()
    taken = read(source, rows=13)
    source.commit()
    source.close()
    assert topic.committed() == {0: 1}
    assert taken + read_all(topic) == list(range(30))


@pytest.mark.parametrize("seed", range(3))
def test_a_resume_from_state_is_exact(topic: Topic, seed: int) -> None:
    rng = random.Random(seed)
    topic.send_table(table(100), (1, 9, 0, 20))
    taken: list[int] = []
    numbers: set[int] = set()
    state: dict[str, Any] | None = None
    while len(taken) < 100:
        source = topic.source()
        if state is not None:
            source.load_state_dict(json.loads(json.dumps(state)))
        rows = min(rng.randrange(50), 100 - len(taken))
        chunks = source.chunks(rng.choice((3, 16, 200)))
        ahead = 0
        while ahead < rows:
            chunk = next(chunks)
            part = users(chunk.rows)[: rows - ahead]
            taken += part
            numbers |= set(chunk.example_ids[: len(part)].tolist())
            ahead += len(part)
        source.took(rows)
        state = source.state_dict()
        assert json.loads(json.dumps(state)) == state
        if rng.random() < 0.5:
            source.commit()
        source.close()
    assert sorted(taken) == list(range(100))
    assert len(numbers) == 100


def test_a_second_iteration_begins_at_what_was_not_taken(topic: Topic) -> None:
    topic.send_table(table(30), (10,), partitions=1)
    source = topic.source()
    assert read(source, rows=13) == list(range(13))
    assert read(source) == list(range(13, 30))
    topic.send_table(table(2))
    assert read(source) == [0, 1]
    source.close()


KILLED = """
import os, signal, sys, time
from thinrow.client.torch.kafka import KafkaConfig, KafkaSource

topic, servers, rows = sys.argv[1:]
source = KafkaSource(
    KafkaConfig(topic=topic, bootstrap_servers=servers, group="trainers", commit_interval_s=0)
)
taken = 0
for chunk in source.chunks(3):
    for user in chunk.rows.pointers.user_ids.tolist():
        print(user, flush=True)
        source.took(1)
        taken += 1
        if taken == int(rows):
            os.kill(os.getpid(), signal.SIGKILL)
        source.commit()
        time.sleep(0.01)
"""


def test_a_trainer_that_is_killed_loses_nothing(topic: Topic) -> None:
    topic.send_table(table(100), (7,))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, topic.name, topic.servers, "40"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    before = [int(line) for line in killed.stdout.split()]
    assert len(before) == 40, killed.stderr
    after = read_all(topic)
    assert sorted({*before, *after}) == list(range(100))
    # What comes again is the last that the trainer took, not yet known to the group.
    again = set(before) & set(after)
    assert len(after) == 60 + len(again)
    assert 1 <= len(again) < 20
    assert again == set(before[-len(again) :])


def test_ranks_share_the_partitions(topic: Topic) -> None:
    topic.send_table(table(100), (7,))
    sources = [topic.source(rank=rank, world_size=3) for rank in range(3)]
    assert sorted(user for source in sources for user in read(source)) == list(range(100))
    for source in sources:
        source.commit()
        source.close()
    # The offsets belong to partitions, so that another number of ranks can go on.
    assert read_all(topic) == []
    with pytest.raises(UsageError, match="has 4 partitions, but rank 4 needs one"):
        topic.source(rank=4, world_size=5)


def test_ranks_are_those_of_torch_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_initialized", True), ("get_rank", 2), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    config = KafkaConfig(topic="t", bootstrap_servers="b:1", group="g")
    assert (config.rank, config.world_size) == (2, 3)


def test_a_bad_message_is_named(topic: Topic) -> None:
    topic.send_table(table(5), (5,))
    source = topic.source()
    assert read(source) == [0, 1, 2, 3, 4]
    topic.send(b"nonsense")
    with pytest.raises(InputError, match=rf"Topic {topic.name}, partition 0, offset 1 cannot"):
        read(source)
    assert source.state_dict()["places"]["0"] == [1, 0]
    source.close()


def test_bad_messages_are_skipped_and_counted(
    topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    rows = table(30)
    null = rows.slice(0, 2).set_column(1, "user_id", pa.array([None, 1], pa.int64()))
    for bad in (b"nonsense", None, encoded(rows.select(["user_id"])), encoded(null)):
        topic.send(encode_thin_rows(rows.slice(0, 3)))
        topic.send(bad)
    topic.send(encoded(table(MESSAGE_ROWS_MAX + 1)))
    source = topic.source(on_bad_message="skip")
    assert read(source) == [0, 1, 2] * 4
    assert source.bad_messages == {0: 5}
    source.commit()
    source.close()
    assert topic.committed() == {0: 9}
    skips = [record for record in caplog.records if "skipped a bad" in record.getMessage()]
    for offset in (1, 3, 5, 7, 8):
        assert any(f"partition 0, offset {offset}" in skip.getMessage() for skip in skips)
    assert all(skip.levelno == logging.WARNING for skip in skips)


def test_an_empty_chunk_says_that_nothing_is_there_for_now(topic: Topic) -> None:
    topic.send(encode_thin_rows(table(1).slice(0, 0)))
    source = topic.source(idle_timeout_s=0)
    chunks = source.chunks(4)
    assert len(next(chunks).rows) == 0
    topic.send_table(table(3))
    assert users(next(chunk.rows for chunk in chunks if len(chunk.rows))) == [0, 1, 2]
    for _ in range(3):
        assert len(next(chunks).rows) == 0
    source.close()
    assert list(chunks) == []


def test_close_ends_a_thread_that_waits(topic: Topic) -> None:
    topic.send(encode_thin_rows(table(1).slice(0, 0)))
    source = topic.source(idle_timeout_s=0)
    reader = threading.Thread(target=lambda: list(source.chunks(4)))
    reader.start()
    time.sleep(0.2)
    start_s = time.monotonic()
    source.close()
    reader.join(5)
    assert not reader.is_alive()
    assert time.monotonic() - start_s < 1


def test_offsets_that_the_topic_no_longer_has_are_an_error(topic: Topic) -> None:
    topic.send_table(table(3))
    source = topic.source(idle_timeout_s=10)
    state = source.state_dict()
    state["places"]["0"] = [99, 0]
    source.load_state_dict(state)
    with pytest.raises(InputError, match="partition 0 has nothing at offset 99"):
        read(source)
    source.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 9"),
        ({"topic": "other"}, "topic 'other'"),
        ({"world_size": 2}, "world_size 2"),
        ({"places": {"7": [0, 0]}}, r"partitions \[7\]"),
    ],
)
def test_a_state_of_something_else_is_refused(
    topic: Topic, change: dict[str, Any], message: str
) -> None:
    topic.send_table(table(1))
    source = topic.source()
    with pytest.raises(UsageError, match=message):
        source.load_state_dict({**source.state_dict(), **change})
    source.close()


def test_closing_without_brokers_comes_to_an_end(caplog: pytest.LogCaptureFixture) -> None:
    producer = Producer({"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = producer.list_topics(timeout=10).brokers.values()
    topic = Topic(producer, f"{broker.host}:{broker.port}")
    topic.send_table(table(3))
    source = topic.source(connect_timeout_s=1)
    assert read(source) == [0, 1, 2]
    del topic, producer
    source.commit()
    start_s = time.monotonic()
    source.close()
    assert time.monotonic() - start_s < 5
    assert "could not commit offset 1" in caplog.text


def test_closing_does_not_wait_for_a_library_that_never_returns(
    topic: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    # librdkafka's close was seen to hang when the brokers went away at the wrong moment.
    topic.send_table(table(1))
    source = topic.source(connect_timeout_s=0.2)
    consumer, release = source._consumer, threading.Event()

    class Hanging:
        def close(self) -> None:
            release.wait()
            consumer.close()

    source._consumer = Hanging()
    start_s = time.monotonic()
    source.close()
    assert 0.2 < time.monotonic() - start_s < 3
    assert f"did not let topic {topic.name} go" in caplog.text
    release.set()
    for thread in threading.enumerate():
        if thread.name == "thinrow-kafka-leave":
            thread.join()


def test_brokers_that_do_not_answer_are_named() -> None:
    config = KafkaConfig(
        topic="t", bootstrap_servers="127.0.0.1:1", group="g", connect_timeout_s=0.5
    )
    with pytest.raises(UnavailableError, match=r"Kafka at 127\.0\.0\.1:1 cannot serve topic t"):
        KafkaSource(config)


def test_a_topic_that_is_not_there_is_named(topic: Topic) -> None:
    with pytest.raises(UsageError, match=f"Topic {topic.name} cannot be read"):
        topic.source()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 1}, "rank is 1, but must be from 0 to 0"),
        ({"linger_ms": -1}, "linger_ms is -1"),
        ({"on_bad_message": "drop"}, "'fail' or 'skip'"),
        ({"settings": {"group.id": "x"}}, "leave out group.id"),
        ({"settings": {"nonsense": "x"}}, "Kafka refuses the settings"),
    ],
)
def test_settings_are_checked(topic: Topic, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        topic.source(**options)


def test_without_the_kafka_client_the_error_says_what_to_install(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(UsageError, match=r"pip install 'thinrow\[kafka\]'"):
        topic.source()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Running]]:
    world = built_world(tmp_path_factory.mktemp("kafka"))
    with running_server(world.store) as server:
        yield world, server


def test_the_loader_gives_what_it_gives_for_a_file(
    served: tuple[World, Running], topic: Topic
) -> None:
    world, server = served
    rows = rows_table(300)
    path = world.write("rows.parquet", rows)
    messages = topic.send_table(rows, (1, 40, 16), partitions=1)
    projection, config = Projection(sequence_length=20), LoaderConfig(batch_examples=37)
    given: list[RowFiles | KafkaSource] = [RowFiles(str(path), order="files"), topic.source()]
    seen: list[list[Any]] = []
    for source in given:
        with ThinRowLoader(source, server.address, projection, config) as loader:
            batches = list(loader)
        assert [len(batch) for batch in batches] == [37] * 8 + [4]
        seen.append([example[1:] for batch in batches for example in shown(batch)])
    assert len(seen[0]) == 300
    assert seen[0] == seen[1]
    assert topic.committed() == {0: messages}


def test_the_loader_waits_for_rows_and_can_be_left_meanwhile(
    served: tuple[World, Running], topic: Topic
) -> None:
    topic.send(encode_thin_rows(rows_table(1).slice(0, 0)))
    config = LoaderConfig(batch_examples=10, columns=("row",))
    source = topic.source(idle_timeout_s=0)
    later = threading.Timer(0.5, topic.send_table, [rows_table(25), (5,)])
    later.start()
    with ThinRowLoader(source, served[1].address, Projection(), config) as loader:
        batches = list(itertools.islice(loader, 2))
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 5
    assert [len(batch) for batch in batches] == [10, 10]
    assert list(batches[0].columns) == ["row"]
    later.join()


def test_the_loader_goes_on_where_its_state_says(
    served: tuple[World, Running], topic: Topic
) -> None:
    topic.send_table(rows_table(200), (9,))
    state: dict[str, Any] = {}
    seen: list[int] = []
    for batches in (3, 5, 100):
        config = LoaderConfig(batch_examples=16)
        # The state alone decides, whatever the group has committed.
        source = topic.source(group=f"group-{batches}")
        with ThinRowLoader(source, served[1].address, Projection(), config) as loader:
            if state:
                loader.load_state_dict(json.loads(json.dumps(state)))
            for batch in itertools.islice(loader, batches):
                seen += batch.columns["row"].tolist()  # type: ignore[union-attr]
            state = loader.state_dict()
    assert sorted(seen) == list(range(200))


def test_rows_of_a_generation_to_come_are_waited_for(
    served: tuple[World, Running], topic: Topic
) -> None:
    world, server = served
    rows = rows_table(20, end_ts=as_of(4))
    topic.send_table(rows, (5,), partitions=1)
    config = LoaderConfig(batch_examples=5, not_ready_wait_s=30)
    compacting = threading.Thread(target=world.compact, args=(some_events(first_day=3, days=1), 4))
    with ThinRowLoader(topic.source(), server.address, Projection(), config) as loader:
        batches = iter(loader)
        waiting = threading.Thread(target=lambda: seen.append(next(batches)))
        seen: list[Any] = []
        waiting.start()
        time.sleep(1)
        assert not seen
        compacting.start()
        waiting.join()
        compacting.join()
        got = [example for batch in [*seen, *batches] for example in shown(batch)]
    path = world.write("later.parquet", rows)
    with ThinRowLoader(
        RowFiles(str(path), order="files"), server.address, Projection(), config
    ) as loader:
        want = [example for batch in loader for example in shown(batch)]
    assert [example[1:] for example in got] == [example[1:] for example in want]
    assert all(example[1] == 1 for example in got)


def read_all(topic: Topic) -> list[int]:
    """What is left for the group."""
    source = topic.source()
    try:
        return read(source)
    finally:
        source.close()


def encoded(rows: pa.Table) -> bytes:
    """A message without any check."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    message: bytes = sink.getvalue().to_pybytes()
    return message


def wait_for(holds: Any, timeout_s: float = 5) -> None:  # noqa: ANN401
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.01)
