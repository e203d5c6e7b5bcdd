"""Spark reads a Kafka topic as the embedded engine does, whatever attempts of tasks do."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import new_folder
from support.kafka_broker import Broker, needs_broker, running_broker
from support.kafka_topics import PARTITIONS, mock_cluster
from support.scenarios import World, examples, schema_toml, worlds
from support.spark_worlds import ON_SPARK
from support.task_sizes import SIZES, Sizes
from support.topic_replicas import SCHEMA
from support.topic_twins import TopicTwins
from support.worlds import START_TS
from thinrow.compaction.config import CompactionConfig
from thinrow.compaction.topic import REFUSALS_SHOWN_MAX
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_compact
from thinrow.errors import InputError
from thinrow.jobs.topic.config import BrokersConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.spark_cluster import Sparked

pytestmark = [needs_broker, pytest.mark.timeout(1800)]
STRIPES = "thinrow.compaction.rewrite.STRIPE_EVENTS_MAX"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker(in_memory=True) as broker:
        yield broker


@given(worlds(coded=True, least_runs=2, most_runs=2), SIZES, st.integers(0, 2**32))
@examples(3)
def test_both_engines_build_the_same_of_a_topic(
    local_spark: Sparked, broker: Broker, world: World, sizes: Sizes, seed: int
) -> None:
    rng = random.Random(seed)
    with new_folder() as folder:
        twins = TopicTwins(folder, world, broker, rng)
        for drawn in world.runs:
            run = twins.next_run(drawn, rng.choice((3, 25)))
            with mock.patch(STRIPES, world.stripe_events):
                expected = twins.compact(run, twins.urls[1], EngineConfig())
            read = replace(
                expected,
                rows_read=expected.rows_read - twins.repeated,
                duplicates=expected.duplicates - twins.repeated,
            )
            twins.built.check(run, read)
            if rng.random() < 0.8:
                with sizes.applied(local_spark, {STRIPES: world.stripe_events}):
                    report = twins.compact(run, twins.urls[0], ON_SPARK)
            else:
                with mock.patch(STRIPES, world.stripe_events):
                    report = twins.compact(run, twins.urls[0], EngineConfig())
            assert report.messages_refused == expected.messages_refused
            if report.messages_refused <= REFUSALS_SHOWN_MAX:
                assert sorted(report.refusals) == sorted(expected.refusals)
            twins.check(run)


@pytest.mark.usefixtures("local_spark")
def test_a_topic_that_lost_messages_is_an_error_of_the_task(
    tmp_path: Path,
) -> None:
    """The driver shows the sentence, and publishes nothing."""
    with mock_cluster() as (producer, servers):
        for value in ([b"x" * 800_000] * 8, [None]):
            for number in range(PARTITIONS):
                for each in value:
                    producer.produce("gone", each, partition=number, timestamp=START_TS)
        assert producer.flush(60) == 0
        (tmp_path / "schema.toml").write_text(schema_toml(SCHEMA))
        (tmp_path / "bucket").mkdir()
        config = CompactionConfig(
            events="kafka:gone",
            store=f"file://{tmp_path}/bucket/store",
            schema=tmp_path / "schema.toml",
            watermark_ts=START_TS,
        )
        bounds = "thinrow.engines.spark.compact.topic_bounds"
        with (
            mock.patch(bounds, return_value=np.empty(0, np.uint64)),
            mock.patch("thinrow.online.topic.cleanup.DESCRIBE_TIMEOUT_S", 0.1),
            pytest.raises(InputError, match="it has lost messages"),
        ):
            run_compact(config, ON_SPARK, brokers=BrokersConfig(bootstrap_servers=servers))
        assert not (tmp_path / "bucket" / "store" / "CURRENT").exists()
