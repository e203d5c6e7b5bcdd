"""Stores of one topic that both engines build, held to each other and to the log of the topic."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from support.built_worlds import Built
from support.drawn_topics import DrawnTopic
from support.spark_worlds import ON_SPARK, shard_digests
from thinrow.engines.choice import run_compact
from thinrow.jobs.topic.config import BrokersConfig
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import require_generation
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from support.kafka_broker import Broker
    from support.oracle import Run
    from support.scenarios import World
    from thinrow.compaction.report import CompactionReport
    from thinrow.core.engine_config import EngineConfig
    from thinrow.store.manifest import Manifest


def manifest_at(url: str) -> Manifest:
    store = ObjectStore(url)
    record = require_current(store).record
    return require_generation(store, record.number, record.manifest_xxh3).manifest


class TopicTwins:
    """Two stores at URLs of one topic: one is built without Spark."""

    def __init__(self, folder: Path, world: World, broker: Broker, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.brokers = BrokersConfig(bootstrap_servers=broker.address)
        self.topic = DrawnTopic(broker, world.schema, rng, partitions=rng.choice((1, 3)))
        self.built = Built(folder / "local", world)
        self.urls = [f"file://{folder}/{name}/store" for name in ("spark", "embedded")]
        for name in ("spark", "embedded"):
            (folder / name).mkdir()
        self.last_ts = 0
        self.repeated = 0
        """Events of the last run that are repeated in one millisecond, which reading skips."""

    def next_run(self, drawn: Run, messages: int) -> Run:
        """Writes messages, and seals the partitions after them."""
        topic = self.topic
        topic.act(messages)
        watermark_ts = max(self.last_ts, topic.now_ts + self.rng.choice((-3, 0, 40))) + 1
        topic.seal(watermark_ts)
        topic.act(4)
        arrived = topic.arrived(self.last_ts, watermark_ts)
        run = replace(drawn, events=arrived, watermark_ts=watermark_ts)
        if any(event.arrival_ts == 0 for event in arrived):
            run = replace(run, cadence_ms=None)
        self.repeated = topic.repeated(self.last_ts, watermark_ts)
        self.last_ts = watermark_ts
        return run

    def compact(self, run: Run, url: str, engine: EngineConfig) -> CompactionReport:
        config = replace(
            self.built.compaction(run, []),
            time_unit=None,
            events=f"kafka:{self.topic.name}",
            store=url,
        )
        return run_compact(config, engine, brokers=self.brokers)

    def check(self, run: Run) -> None:
        """Compares the generations, and what they say of the topic."""
        one, twin = map(manifest_at, self.urls)
        assert shard_digests(one) == shard_digests(twin)
        assert one.topic is not None
        assert one.topic == twin.topic
        assert one.topic.offsets == self.topic.seals(run.watermark_ts)
        assert one.run == twin.run
        for url in self.urls:
            again = self.compact(run, url, ON_SPARK)
            assert again.already_published
