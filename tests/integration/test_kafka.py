"""Thin rows from Kafka: none is lost, and none comes twice but where the documents say so.

The brokers are librdkafka's own mock cluster, which speaks the real protocol in this process.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch.distributed
from confluent_kafka import KafkaError, KafkaException
from support.row_tables import EVENT, assert_same, table
from thinrow.client.torch.kafka import KafkaConfig, KafkaSource
from thinrow.core.files.message import (
    MESSAGE_ROWS_MAX,
    encode_thin_rows,
    split_thin_rows,
)
from thinrow.errors import InputError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confluent_kafka import Producer

from support.kafka_topics import TIMEOUT_S, Topic, mock_cluster, users, wait_for


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Producer, str]]:
    with mock_cluster() as cluster:
        yield cluster


@pytest.fixture
def topic(cluster: tuple[Producer, str]) -> Topic:
    return Topic(*cluster)


@pytest.mark.parametrize("sizes", [(1,), (7,), (5, 0, 30)])
def test_rows_come_as_they_were_sent(topic: Topic, sizes: tuple[int, ...]) -> None:
    sent = table(100)
    topic.send_table(sent, sizes)
    source = topic.source()
    chunks = []
    for chunk in topic.chunks(source):
        source.took(len(chunk.rows))
        chunks.append(chunk)
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
    chunks = []
    for chunk in topic.chunks(source):
        source.took(len(chunk.rows))
        chunks.append(chunk)
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
    assert topic.read_all() == list(range(10, 30))


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
    taken = topic.read(source, rows=13)
    source.commit()
    source.close()
    assert topic.committed() == {0: 1}
    assert taken + topic.read_all() == list(range(30))


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
    assert topic.read(source, rows=13) == list(range(13))
    assert topic.read(source) == list(range(13, 30))
    topic.send_table(table(2))
    assert topic.read(source) == [0, 1]
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
        timeout=TIMEOUT_S,
    )
    before = [int(line) for line in killed.stdout.split()]
    assert len(before) == 40, killed.stderr
    after = topic.read_all()
    assert sorted({*before, *after}) == list(range(100))
    # What comes again is the last that the trainer took, not yet known to the group.
    again = set(before) & set(after)
    assert len(after) == 60 + len(again)
    assert 1 <= len(again) < 20
    assert again == set(before[-len(again) :])


def test_ranks_share_the_partitions(topic: Topic) -> None:
    topic.send_table(table(100), (7,))
    sources = [topic.source(rank=rank, world_size=3) for rank in range(3)]
    assert sorted(user for source in sources for user in topic.read(source)) == list(range(100))
    for source in sources:
        source.commit()
        source.close()
    # The offsets belong to partitions, so that another number of ranks can go on.
    assert topic.read_all() == []
    with pytest.raises(UsageError, match="has 4 partitions, but rank 4 needs one"):
        topic.source(rank=4, world_size=5)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 4), (4, 1), (3, 3)])
def test_any_ranks_resume_the_places_of_any_others(topic: Topic, before: int, after: int) -> None:
    topic.send_table(table(100), (7,))
    seen: list[int] = []
    states = []
    for rank in range(before):
        source = topic.source(rank=rank, world_size=before, group=f"before-{before}")
        seen += topic.read(source, rows=6 + rank)
        states.append(json.loads(json.dumps(source.state_dict())))
        source.close()
    assert len(seen) == len(set(seen)) > 0
    for rank in range(after):
        # The states alone decide, whatever the group has committed.
        source = topic.source(rank=rank, world_size=after, group=f"after-{before}-{after}")
        if before != after:
            with pytest.raises(UsageError, match="give load_state_dict the states of all ranks"):
                source.load_state_dict(states[1:])
        source.load_state_dict(states[::-1])
        seen += topic.read(source)
        source.close()
    assert sorted(seen) == list(range(100))


def test_ranks_are_those_of_torch_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_initialized", True), ("get_rank", 2), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    config = KafkaConfig(topic="t", bootstrap_servers="b:1", group="g")
    assert (config.rank, config.world_size) == (2, 3)


def test_a_bad_message_is_named(topic: Topic) -> None:
    topic.send_table(table(5), (5,))
    source = topic.source()
    assert topic.read(source) == [0, 1, 2, 3, 4]
    topic.send(b"nonsense")
    with pytest.raises(InputError, match=rf"Topic {topic.name}, partition 0, offset 1 cannot"):
        topic.read(source)
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
    assert topic.read(source) == [0, 1, 2] * 4
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
    source = topic.source()
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
    source = topic.source()
    waits = threading.Event()

    def read() -> None:
        for _ in source.chunks(4):
            waits.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert waits.wait(TIMEOUT_S)
    source.close()
    reader.join(TIMEOUT_S)
    assert not reader.is_alive()


def test_an_iteration_ends_when_no_rows_come(topic: Topic) -> None:
    topic.send_table(table(3))
    source = topic.source(idle_timeout_s=0.3)
    assert all(len(chunk.rows) in (0, 3) for chunk in source.chunks(4))
    source.close()


def test_offsets_that_the_topic_no_longer_has_are_an_error(topic: Topic) -> None:
    topic.send_table(table(3))
    source = topic.source()
    state = source.state_dict()
    state["places"]["0"] = [99, 0]
    source.load_state_dict(state)
    with pytest.raises(InputError, match="partition 0 has nothing at offset 99"):
        topic.read(source)
    source.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 9"),
        ({"topic": "other"}, "topic 'other'"),
        ({"world_size": 2}, r"states of ranks \[0\] of 2, and this is rank 0 of 1"),
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


CLOSED_WITHOUT_BROKERS = """
import logging
from pathlib import Path
from support.kafka_topics import Topic, mock_cluster
from support.row_tables import table

def librdkafka_threads():
    tasks = Path("/proc/self/task").iterdir()
    return [task.name for task in tasks if (task / "comm").read_text().startswith("rdk:")]

logging.basicConfig()
for _ in range(4):
    with mock_cluster() as cluster:
        topic = Topic(*cluster)
        topic.send_table(table(3))
        source = topic.source()
        assert topic.read(source) == [0, 1, 2]
    del topic, cluster
    source._offsets._timeout_s = 0.2
    source.commit()
    source.close()
    assert not librdkafka_threads(), librdkafka_threads()
"""


def test_closing_without_brokers_comes_to_an_end() -> None:
    """Runs in a process of its own, whose threads of librdkafka are those of the closed source."""
    # When the brokers had just gone away, librdkafka retried its consumer's commit for ever, and
    # so close() never returned: about one time in eight.
    closed = subprocess.run(
        [sys.executable, "-c", CLOSED_WITHOUT_BROKERS],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert closed.returncode == 0, closed.stderr
    for number in range(4):
        assert f"could not commit offset 1 of topic rows-{number}" in closed.stderr


def test_an_older_commit_never_follows_a_newer_one(topic: Topic) -> None:
    topic.send_table(table(40), (1,), partitions=1)
    source = topic.source()
    for chunk in itertools.islice(topic.chunks(source, 1), 40):
        source.took(len(chunk.rows))
        source.commit()
    wait_for(lambda: topic.committed() == {0: 40})
    source.close()
    assert topic.committed() == {0: 40}


def test_an_error_of_closing_is_logged(topic: Topic, caplog: pytest.LogCaptureFixture) -> None:
    topic.send_table(table(1))
    source = topic.source()
    consumer = source._consumer

    class Failing:
        def close(self) -> None:
            consumer.close()
            raise KafkaException(KafkaError(KafkaError._FAIL))

    source._consumer = Failing()  # type: ignore[assignment]
    source.close()
    assert f"could not close the consumer of topic {topic.name}" in caplog.text


def test_a_closed_source_does_nothing_more(topic: Topic) -> None:
    topic.send_table(table(2), (1,), partitions=1)
    source = topic.source()
    chunks = source.chunks(1)
    next(chunks)
    source.took(1)
    source.close()
    source.close()
    assert list(chunks) == []
    with pytest.raises(UsageError, match="was closed"):
        next(source.chunks(1))
    source.commit()
    assert topic.committed() == {}


LEFT_OPEN = """
import sys
from thinrow.client.torch.kafka import KafkaConfig, KafkaSource

topic, servers = sys.argv[1:]
source = KafkaSource(
    KafkaConfig(topic=topic, bootstrap_servers=servers, group="trainers", commit_interval_s=0)
)
for chunk in source.chunks(3):
    source.took(len(chunk.rows))
    if len(chunk.rows):
        break
print("read", flush=True)
sys.stdin.readline()
source._offsets._timeout_s = 0.2
source.commit()
"""


@pytest.mark.parametrize("brokers_stay", [True, False])
def test_a_process_that_ends_without_closing_ends_well(brokers_stay: bool) -> None:
    with mock_cluster() as cluster:
        topic = Topic(*cluster)
        topic.send_table(table(3))
        process = subprocess.Popen(
            [sys.executable, "-c", LEFT_OPEN, topic.name, topic.servers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "read\n"
        kept = cluster if brokers_stay else None
    del topic, cluster
    process.communicate("go on\n", timeout=TIMEOUT_S)
    assert process.returncode == 0
    del kept


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


def encoded(rows: pa.Table) -> bytes:
    """A message without any check."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    message: bytes = sink.getvalue().to_pybytes()
    return message
