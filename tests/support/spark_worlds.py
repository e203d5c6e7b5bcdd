"""Stores at a URL that are built on Spark, beside local ones that are built of the same events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from support.remote_stores import RemoteWorld, remote_world
from support.worlds import SCHEMA
from thinrow.compaction.compact import compact
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_compact
from thinrow.remote.current import require_current
from thinrow.remote.gc import CLOCK, collect_garbage
from thinrow.remote.generation_objects import require_generation
from thinrow.store.current import require_current_folder
from thinrow.store.manifest import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.compaction.config import CompactionConfig
    from thinrow.compaction.report import CompactionReport
    from thinrow.store.manifest import Manifest

SHARDS = 4
HOUR_MS = 3_600_000
FILES = 3
ON_SPARK = EngineConfig(engine="spark")
CODED = SCHEMA.replace('brand = "string"', 'brand = { type = "string", codes = "vocabulary" }')


def shard_digests(manifest: Manifest) -> list[tuple[str | None, int, int, int]]:
    """Returns what each shard of a generation holds."""
    return [(one.kv_xxh3_128, one.keys, one.events, one.users) for one in manifest.shards]


@dataclass(frozen=True)
class SparkWorld:
    """Generations by the days up to which they go; more events are in the first than later."""

    remote: RemoteWorld

    @property
    def url(self) -> str:
        return self.remote.url

    def files(self, day: int) -> list[Path]:
        """Writes the events of a generation, to some files: one slice each."""
        events = pq.read_table(self.remote.events(day))
        paths = []
        for number in range(FILES):
            path = self.remote.local.folder / f"events-{day}-{number}.parquet"
            if not path.exists():
                rows = len(events)
                first, last = (rows * end // FILES for end in (number, number + 1))
                pq.write_table(events.slice(first, last - first), path)
            paths.append(path)
        return paths

    def compaction(self, day: int, files: list[Path] | None = None) -> CompactionConfig:
        """Returns a run at the URL."""
        files = self.files(day) if files is None else files
        return replace(
            self.remote.local.compaction(files, day, shards=SHARDS, time_unit="ms"), store=self.url
        )

    def build(self, day: int) -> CompactionReport:
        """Builds the generation on Spark."""
        return run_compact(self.compaction(day), ON_SPARK)

    def build_embedded(self, day: int) -> CompactionReport:
        """Builds the same generation at the URL without Spark."""
        return compact(self.compaction(day))

    def build_locally(self, day: int) -> None:
        """Builds the same generation in the local store, whose answers are right."""
        compact(replace(self.compaction(day), store=self.remote.local.store))

    def check(self, *numbers: int) -> None:
        """Compares what the serving generation holds and answers with the local store."""
        local = read_manifest(require_current_folder(self.remote.local.store))
        assert shard_digests(self.remote.current().manifest) == shard_digests(local)
        assert self.remote.answers(*numbers) == self.remote.local_answers(*numbers)

    def check_no_garbage_left(self) -> int:
        """Runs gc as if later than its grace period, and compares what stays.

        Returns:
            The number of objects removed.
        """
        objects = self.remote.objects
        report = collect_garbage(objects, keep=None, withdrawn=False, grace_ms=-HOUR_MS)
        history = require_current(objects).record.history
        needed = {f"generations/generation-{number:06d}.json" for number in history}
        for number in history:
            needed |= require_generation(objects, number).keys
        keys = self.remote.keys()
        assert keys == needed | {"CURRENT", "CURRENT-COPY", CLOCK}
        return report.object_count


def spark_world(folder: Path, url: str) -> SparkWorld:
    """A store of one generation, which both engines would build alike."""
    world = SparkWorld(remote_world(folder, url, CODED))
    world.build_embedded(3)
    world.build_locally(3)
    return world
