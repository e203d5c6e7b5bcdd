"""Small topics of one schema, and stores and exports of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.drawn_topics import DrawnTopic
from support.scenarios import schema_toml
from support.topic_replicas import SCHEMA
from thinrow.compaction.config import CompactionConfig
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_compact
from thinrow.jobs.config import ExportConfig
from thinrow.jobs.connected_jobs import run_export
from thinrow.jobs.connecting import Access
from thinrow.jobs.topic.config import BrokersConfig
from thinrow.store.current import require_current_folder
from thinrow.store.generation import Generation
from thinrow.store.manifest import Manifest, TopicSeal, read_manifest, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.kafka_broker import Broker
    from thinrow.compaction.report import CompactionReport


def brokers(broker: Broker) -> BrokersConfig:
    return BrokersConfig(bootstrap_servers=broker.address)


def manifest_of(store: Path) -> Manifest:
    return read_manifest(require_current_folder(store))


def digests(store: Path) -> list[str | None]:
    with Generation.open_current(store) as generation:
        return [shard.kv_xxh3_128 for shard in generation.manifest.shards]


@dataclass
class Small:
    """A topic of a few messages, and a folder for stores."""

    broker: Broker
    folder: Path
    topic: DrawnTopic = field(init=False)

    def __post_init__(self) -> None:
        self.topic = DrawnTopic(self.broker, SCHEMA, random.Random(1), partitions=3)
        (self.folder / "schema.toml").write_text(schema_toml(SCHEMA))

    @property
    def name(self) -> str:
        return f"kafka:{self.topic.name}"

    def step(self, messages: int = 12) -> int:
        """Writes messages, and seals the partitions after them; returns the watermark."""
        self.topic.act(messages)
        watermark_ts = self.topic.now_ts = self.topic.now_ts + 1000
        self.topic.seal(watermark_ts)
        self.topic.act(5)
        return watermark_ts

    def config(self, store: str, watermark_ts: int, **more: Any) -> CompactionConfig:  # noqa: ANN401
        options: dict[str, Any] = {
            "events": self.name,
            "store": self.folder / store,
            "schema": self.folder / "schema.toml",
            "watermark_ts": watermark_ts,
        }
        return CompactionConfig(**(options | more))

    def compact(self, store: str, watermark_ts: int, **more: Any) -> CompactionReport:  # noqa: ANN401
        config = self.config(store, watermark_ts, **more)
        options = BrokersConfig() if config.topic is None else brokers(self.broker)
        return run_compact(config, EngineConfig(), brokers=options)

    def export(self, name: str, watermark_ts: int, **more: Any) -> Path:  # noqa: ANN401
        path = self.folder / name
        config = ExportConfig(
            topic_events=self.name, watermark_ts=watermark_ts, events=path, **more
        )
        run_export(config, Access(), brokers(self.broker))
        return path

    def set_offsets(self, store: str, change: Callable[[list[int]], list[int]]) -> None:
        folder = require_current_folder(self.folder / store)
        manifest = read_manifest(folder)
        assert manifest.topic is not None
        offsets = change(manifest.topic.offsets)
        topic = TopicSeal(name=manifest.topic.name, offsets=offsets)
        write_manifest(folder, manifest.model_copy(update={"topic": topic}))
