"""Spark and the embedded engine build the same generations, and continue each other's."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import Built, new_folder
from support.scenarios import World, bulk, events_table, examples, worlds
from support.spark_worlds import ON_SPARK
from support.store_contents import contents
from support.task_sizes import SIZES, Sizes
from thinrow.compaction.compact import compact
from thinrow.engines.choice import run_compact
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import require_generation
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.reading import local_store
from thinrow.store.current import require_current_folder
from thinrow.store.manifest import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from support.oracle import Run
    from support.spark_cluster import Sparked
    from thinrow.compaction.report import CompactionReport
    from thinrow.store.manifest import Manifest

STRIPES = "thinrow.compaction.rewrite.STRIPE_EVENTS_MAX"


def manifest_at(url: str) -> Manifest:
    """Returns the manifest of the serving generation."""
    store = ObjectStore(url)
    record = require_current(store).record
    return require_generation(store, record.number, record.manifest_xxh3).manifest


def digests(manifest: Manifest) -> list[tuple[str | None, int, int, int]]:
    return [(one.kv_xxh3_128, one.keys, one.events, one.users) for one in manifest.shards]


class Twins:
    """A local store, and the same at a URL, where either engine builds generations."""

    def __init__(self, folder: Path, world: World, spark: Sparked, rng: random.Random) -> None:
        self.local = Built(folder / "local", world)
        self.folder, self.world, self.spark, self.rng = folder, world, spark, rng
        (folder / "bucket").mkdir()
        self.url = f"file://{folder}/bucket/store"

    def in_files(self, run: Run) -> list[Path]:
        """Writes the events of a run in another order, to files of some row groups."""
        rows = self.rng.sample(run.events, len(run.events))
        cut = self.rng.choice((0, len(rows) // 2))
        found: list[Path] = []
        for part in (rows[:cut], rows[cut:]):
            if part or len(found) == 0:
                table = events_table(part, self.world.schema, self.world.plain)
                path = self.folder / f"{run.watermark_ts}-{len(found)}.parquet"
                pq.write_table(table, path, row_group_size=max(1, len(part) // 3))
                found.append(path)
        return found

    def remote(self, run: Run, sizes: Sizes | None) -> CompactionReport:
        """Builds a generation at the URL: on Spark, or embedded if there are no sizes."""
        config = replace(self.local.compaction(run, self.in_files(run)), store=self.url)
        if sizes is None:
            with mock.patch(STRIPES, self.world.stripe_events):
                return compact(config)
        with sizes.applied(self.spark, {STRIPES: self.world.stripe_events}):
            return run_compact(config, ON_SPARK)

    def check(self, run: Run, sizes: Sizes | None) -> None:
        """Builds the next generation of both stores."""
        ours, theirs = self.local.compact(run), self.remote(run, sizes)
        local, remote = read_manifest(require_current_folder(self.local.store)), self.manifest()
        assert digests(remote) == digests(local)
        assert asdict(theirs) == asdict(ours)
        assert remote.watermarks == local.watermarks
        assert remote.engine == ("embedded" if sizes is None else "spark")

    def manifest(self) -> Manifest:
        return manifest_at(self.url)

    def check_contents(self) -> None:
        with local_store(self.url) as folder:
            assert contents(folder) == contents(self.local.store)


@given(worlds(coded=True), st.data(), st.randoms(use_true_random=False))
@examples(6)
def test_engines_build_the_same_of_any_world(
    local_spark: Sparked, world: World, data: st.DataObject, rng: random.Random
) -> None:
    """Schemas, ids, layers, late events, duplicates and erasures, with any sizes and engines."""
    with new_folder() as folder:
        twins = Twins(folder, world, local_spark, rng)
        for number, run in enumerate(world.runs):
            is_embedded = number and data.draw(st.sampled_from((False, False, True)), "embedded")
            twins.check(run, None if is_embedded else data.draw(SIZES, "sizes"))
        twins.check_contents()


@given(worlds(most_runs=3, least_runs=3, coded=True), st.integers(0, 2**32), SIZES)
@examples(1)
def test_engines_build_the_same_long_histories(
    local_spark: Sparked, world: World, seed: int, sizes: Sizes
) -> None:
    """Thousands of events of one user, which no range of users divides."""
    sizes = replace(sizes, slice_bytes=64 << 10, flush_bytes=50_000, message_bytes=20_000)
    with new_folder() as folder:
        twins = Twins(folder, bulk(world, seed, 3000), local_spark, random.Random(seed))
        for run, on_spark in zip(twins.world.runs, (True, False, True), strict=True):
            twins.check(run, sizes if on_spark else None)
        twins.check_contents()
