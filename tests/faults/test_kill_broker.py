"""A Kafka broker killed and started again, while rows are read from it and logged to it."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest
from support.kafka_broker import Broker, needs_broker, running_broker
from support.kafka_topics import TIMEOUT_S, wait_for
from support.logged import a_row, config_in, features_of
from support.row_tables import table
from support.tried import SEED, Tried, times
from thinrow.client.logger import KafkaOutput, ThinRowLogger
from thinrow.core.files.message import encode_thin_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [needs_broker, pytest.mark.timeout(3600)]
PAUSE_S = 0.2
"""The most between a start of the broker and the next kill, or between a kill and the start."""
MESSAGE_ROWS, MESSAGES = 5, 8
"""Messages of each kill: half are sent before it, half while the broker is dead."""


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


def kill_and_start(broker: Broker, rng: random.Random) -> None:
    broker.kill()
    time.sleep(rng.uniform(0, PAUSE_S))
    broker.start()


def test_source_of_a_killed_broker(broker: Broker) -> None:
    rng, kills = random.Random(SEED), times(1, 25)
    topic, taken, sent = broker.topic(), list[int](), 0
    rows = table(kills * MESSAGES * MESSAGE_ROWS)
    source = topic.source()
    for _ in range(kills):
        for number in range(MESSAGES):
            if number == MESSAGES // 2:
                assert topic.producer.flush(TIMEOUT_S) == 0
                taken += topic.read(source, rows=rng.randint(1, MESSAGE_ROWS * MESSAGES // 2))
                broker.kill()
            message = encode_thin_rows(rows.slice(sent, MESSAGE_ROWS))
            partition = rng.randrange(4)
            topic.producer.produce(topic.name, message, partition=partition)
            topic.ends[partition] += 1
            sent += MESSAGE_ROWS
        time.sleep(rng.uniform(0, PAUSE_S))
        broker.start()
        assert topic.producer.flush(TIMEOUT_S) == 0
        taken += topic.read(source)
    source.commit()
    source.close()
    assert sorted(taken) == list(range(sent))
    wait_for(lambda: topic.committed() == topic.ends)
    Tried(
        fault="A Kafka broker under a source of thin rows: SIGKILL, started again",
        times=kills,
        promised="Each row once, and the offsets of all are committed",
        seen=f"{len(taken):,} rows, each once; 0 lost or doubled",
    ).keep()


def test_logger_of_a_killed_broker(broker: Broker, tmp_path: Path) -> None:
    rng, kills, rows_of_each = random.Random(SEED), times(1, 25), 20
    topic, rows = broker.topic(), 0
    output = KafkaOutput(
        topic=topic.name, bootstrap_servers=broker.address, linger_ms=0, message_rows=8
    )
    with ThinRowLogger(config_in(tmp_path, kafka=output)) as logger:
        for _ in range(kills):
            killed_after = rng.randrange(rows_of_each)
            for number in range(rows_of_each):
                logger.log(f"r{rows}", a_row(rows), features_of(rows)).wait()
                rows += 1
                if number == killed_after:
                    broker.kill()
            time.sleep(rng.uniform(0, PAUSE_S))
            broker.start()
            logger.drain(2 * TIMEOUT_S)
        assert logger.counts.rows_published["kafka"] == rows
    ids = topic.request_ids(rows)
    assert set(ids) == {f"r{number}" for number in range(rows)}
    Tried(
        fault="A Kafka broker under the logger: SIGKILL, started again",
        times=kills,
        promised="No row is lost; each comes at least once",
        seen=f"{rows:,} rows, 0 lost, {len(ids) - rows} doubled",
    ).keep()
