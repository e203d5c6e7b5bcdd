"""The loader on a Kafka topic."""

from __future__ import annotations

import itertools
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer
from support.kafka_topics import TIMEOUT_S, Topic, mock_cluster, wait_for
from support.thin_rows import rows_table, shown
from support.worlds import as_of, built_world, running_server, some_events
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader, TrackedLoader
from thinrow.core.files.message import (
    encode_thin_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confluent_kafka import Producer
    from support.worlds import Running, World
    from thinrow.client.torch.kafka import KafkaSource
    from thinrow.client.torch.source import RowChunk


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Producer, str]]:
    with mock_cluster() as cluster:
        yield cluster


@pytest.fixture
def topic(cluster: tuple[Producer, str]) -> Topic:
    return Topic(*cluster)


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
    given: list[RowFiles | KafkaSource] = [RowFiles(str(path), order="files"), ending(topic, 300)]
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
    source, waits = topic.source(), threading.Event()
    chunks = source.chunks

    def noticed(examples: int) -> Iterator[RowChunk]:
        for chunk in chunks(examples):
            waits.set()
            yield chunk

    def send_later() -> None:
        assert waits.wait(TIMEOUT_S)
        topic.send_table(rows_table(25), (5,))

    source.chunks = noticed  # type: ignore[method-assign]
    later = threading.Thread(target=send_later)
    later.start()
    with ThinRowLoader(source, served[1].address, Projection(), config) as loader:
        batches = list(itertools.islice(loader, 2))
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
        source = ending(topic, 200 - len(seen), group=f"group-{batches}")
        with ThinRowLoader(source, served[1].address, Projection(), config) as loader:
            if state:
                loader.load_state_dict(json.loads(json.dumps(state)))
            for batch in itertools.islice(loader, batches):
                seen += batch.columns["row"].tolist()  # type: ignore[union-attr]
            state = loader.state_dict()
    assert sorted(seen) == list(range(200))


def test_a_tracked_loader_loses_no_row_that_was_fetched_ahead(
    served: tuple[World, Running], topic: Topic
) -> None:
    topic.send_table(rows_table(100), (9,))
    seen: list[int] = []
    state: dict[str, Any] = {}
    for batches in (2, 3, 100):
        source = ending(topic, 100 - len(seen), group=f"tracked-{batches}")
        config = LoaderConfig(batch_examples=16)
        with ThinRowLoader(source, served[1].address, Projection(), config) as loader:
            tracked = TrackedLoader(loader)
            if state:
                tracked.load_state_dict(json.loads(json.dumps(state)))
            iterator = iter(tracked)
            fetched = list(itertools.islice(iterator, 1))
            while fetched and batches:
                fetched += itertools.islice(iterator, 1)
                seen += fetched.pop(0).columns["row"].tolist()  # type: ignore[union-attr]
                tracked.mark_trained()
                batches -= 1
            state = tracked.state_dict()
    assert sorted(seen) == list(range(100))


def test_rows_of_a_generation_to_come_are_waited_for(
    served: tuple[World, Running], topic: Topic
) -> None:
    world, server = served
    rows = rows_table(20, end_ts=as_of(4))
    topic.send_table(rows, (5,), partitions=1)
    config = LoaderConfig(batch_examples=5, not_ready_wait_s=30)
    compacting = threading.Thread(target=world.compact, args=(some_events(first_day=3, days=1), 4))
    with ThinRowLoader(ending(topic, 20), server.address, Projection(), config) as loader:
        batches = iter(loader)
        waiting = threading.Thread(target=lambda: seen.append(next(batches)))
        seen: list[Any] = []
        waiting.start()
        wait_for(lambda: refused_as_not_ready(server) > 0)
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


def ending(topic: Topic, rows: int, **options: Any) -> KafkaSource:  # noqa: ANN401
    """A source of the topic that ends after as many rows."""
    source = topic.source(**options)
    chunks = source.chunks

    def until_then(examples: int) -> Iterator[RowChunk]:
        left = rows
        for chunk in chunks(examples):
            left -= len(chunk.rows)
            yield chunk
            if left == 0:
                return

    source.chunks = until_then  # type: ignore[method-assign]
    return source


def refused_as_not_ready(server: Running) -> float:
    return sum(
        value
        for name, value in server.scrape().items()
        if "examples" in name and "NOT_READY" in name
    )
