"""Attempts of tasks that read a Kafka topic: those that are killed, and those that run twice."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from support.kafka_broker import needs_broker, running_broker
from support.oracle import Run
from support.scenarios import World
from support.spark_worlds import ON_SPARK
from support.task_hooks import Fault, hooked
from support.topic_replicas import SCHEMA
from support.topic_twins import TopicTwins
from support.tried import Tried, times
from thinrow.core.engine_config import EngineConfig

if TYPE_CHECKING:
    from pathlib import Path

    from support.spark_cluster import Sparked

pytestmark = [needs_broker, pytest.mark.timeout(1800)]


def test_tasks_that_are_killed_while_they_read(cluster_spark: Sparked, tmp_path: Path) -> None:
    """Others read the partition again, and find the same offsets."""
    world = World(SCHEMA, [], [], shards=4, stripe_events=1024, plain=False)
    tables = "thinrow.engines.spark.topic_slices.canonical_tables"
    scatter = "thinrow.engines.spark.reading.Scatter"
    with running_broker(in_memory=True) as broker:
        twins = TopicTwins(tmp_path, world, broker, random.Random(3))
        acts = (("kill_executor", tables), ("kill_worker", scatter))
        tried = acts * times(1, 5)
        for number, (act, name) in enumerate(tried):
            run = twins.next_run(Run([], 0), 60)
            folder = tmp_path / f"traces-{number}"
            folder.mkdir()
            fault = Fault(name, act, folder)
            with hooked(cluster_spark.hooks, fault):
                twins.compact(run, twins.urls[0], ON_SPARK)
            assert fault.count == 1
            twins.compact(run, twins.urls[1], EngineConfig())
            twins.check(run)
    Tried(
        "`--engine spark` over a Kafka topic: SIGKILL to an executor, or to Python, that reads it",
        len(tried),
        "The partition is read again; generation and offsets are the embedded engine's",
        "0 messages lost or doubled",
    ).keep()
