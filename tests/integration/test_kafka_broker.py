"""KafkaSource and the logger with a broker in a process of its own, which is killed meanwhile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support.kafka_broker import Broker, needs_broker, running_broker
from support.kafka_topics import TIMEOUT_S, wait_for
from support.logged import a_row, config_in, features_of
from support.row_tables import table
from thinrow.client.logger import KafkaOutput, ThinRowLogger
from thinrow.core.files.message import encode_thin_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = needs_broker


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


def test_rows_come_as_they_were_sent_and_offsets_are_committed(broker: Broker) -> None:
    topic = broker.topic()
    topic.send_table(table(60), (7,))
    source = topic.source()
    assert sorted(topic.read(source)) == list(range(60))
    source.commit()
    wait_for(lambda: topic.committed() == topic.ends)
    source.close()
    assert topic.read_all() == []


def test_a_resume_is_exact_although_the_broker_is_killed_between(broker: Broker) -> None:
    topic = broker.topic()
    topic.send_table(table(60), (7,))
    source = topic.source()
    taken = topic.read(source, rows=30)
    source.commit()
    state = json.loads(json.dumps(source.state_dict()))
    source.close()
    broker.kill()
    broker.start()
    source = topic.source(connect_timeout_s=TIMEOUT_S)
    source.load_state_dict(state)
    taken += topic.read(source)
    source.close()
    assert sorted(taken) == list(range(60))


def test_a_broker_killed_while_rows_come_loses_and_doubles_none(broker: Broker) -> None:
    topic = broker.topic()
    topic.send_table(table(60), (7,))
    source = topic.source()
    taken = topic.read(source, rows=20)
    broker.kill()
    for start in (60, 70):
        topic.producer.produce(
            topic.name, encode_thin_rows(table(80).slice(start, 10)), partition=1
        )
        topic.ends[1] += 1
    broker.start()
    assert topic.producer.flush(TIMEOUT_S) == 0
    taken += topic.read(source)
    source.commit()
    source.close()
    assert sorted(taken) == list(range(80))
    wait_for(lambda: topic.committed() == topic.ends)


def test_closing_while_the_broker_is_dead(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    topic = broker.topic()
    topic.send_table(table(30), (7,))
    source = topic.source()
    assert len(topic.read(source)) == 30
    broker.kill()
    source._offsets._timeout_s = 0.2
    source.commit()
    source.close()
    assert "could not commit offset" in caplog.text
    broker.start()
    wait_for(lambda: topic.producer.list_topics(timeout=TIMEOUT_S) is not None)
    # Nothing was committed, so every row comes again.
    assert sorted(topic.read_all()) == list(range(30))


def test_the_logger_publishes_across_a_kill(broker: Broker, tmp_path: Path) -> None:
    topic = broker.topic()
    output = KafkaOutput(
        topic=topic.name, bootstrap_servers=broker.address, linger_ms=0, message_rows=8
    )
    with ThinRowLogger(config_in(tmp_path, kafka=output)) as logger:
        for half in range(2):
            for n in range(20):
                logger.log(f"r{half * 20 + n}", a_row(n), features_of(n)).wait()
            if half == 0:
                logger.drain(TIMEOUT_S)
                broker.kill()
        broker.start()
        logger.drain(2 * TIMEOUT_S)
        assert logger.counts.rows_published["kafka"] == 40
    ids = topic.request_ids(40)
    assert set(ids) == {f"r{n}" for n in range(40)}
