"""Jobs on Spark write thin rows in parts, with the rows of the embedded engine in their order."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow.parquet as pq
import pytest
from support.past_requests import backfill_of, expected_rows, requested_world
from support.row_parts import check_parts, fat_rows, no_messages
from support.spark_worlds import ON_SPARK
from support.task_hooks import Fault, Patch, hooked, new_traces
from support.task_sizes import SMALL
from thinrow.core.engine_config import EngineConfig
from thinrow.core.shards import part_folder
from thinrow.engines.choice import run_backfill, run_slim
from thinrow.errors import EngineError, InputError, StoreFullError, UsageError
from thinrow.jobs.config import SlimConfig
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    from pathlib import Path

    from support.object_storage import ObjectStorage
    from support.spark_cluster import Sparked
    from support.worlds import World

pytestmark = pytest.mark.timeout(1800)
ROW_PARTS = "thinrow.jobs.row_parts"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return requested_world(tmp_path_factory.mktemp("world"), shards=4)


def test_backfill_writes_the_parts_of_the_embedded_engine(
    local_spark: Sparked, world: World, tmp_path: Path
) -> None:
    """Several slices, spilled files and messages of each part."""
    config = replace(backfill_of(world), rows=tmp_path / "rows", row_parts=4)
    small = {f"{ROW_PARTS}.SPILL_BYTES": 1 << 12, f"{ROW_PARTS}.GROUP_ROWS": 50}
    with (
        SMALL.applied(local_spark, {**small, "thinrow.engines.spark.thin_rows.OUTPUT_ROWS": 32}),
        mock.patch("thinrow.engines.spark.slices.SLICE_BYTES", 500),
    ):
        report = run_backfill(config, ON_SPARK)
    check_parts(tmp_path / "rows", expected_rows(world), 4)
    embedded = run_backfill(replace(config, rows=tmp_path / "embedded"), EngineConfig())
    assert asdict(report) == asdict(embedded) | {"row_bytes": report.row_bytes}
    assert report.row_bytes == sum(p.stat().st_size for p in (tmp_path / "rows").rglob("*.parquet"))
    assert {path.name for path in tmp_path.iterdir()} == {"rows", "embedded"}


def test_parts_in_an_object_store(
    local_spark: Sparked, object_storage: ObjectStorage, world: World, tmp_path: Path
) -> None:
    """Parts without a user have no file."""
    requests = pq.read_table(world.folder / "requests.parquet")
    user = requests["user_id"][0].as_py()
    mine = [n for n, found in enumerate(requests["user_id"].to_pylist()) if found == user]
    pq.write_table(requests.take(mine), tmp_path / "requests.parquet", row_group_size=2)
    rows = ObjectStore(object_storage.new_url())
    config = replace(backfill_of(world), requests=tmp_path / "requests.parquet", row_parts=4)
    with SMALL.applied(local_spark):
        run_backfill(replace(config, rows=rows.url), ON_SPARK)
    keys = sorted(found.key for found in rows.listed())
    assert keys[0] == "_SUCCESS"
    assert len(keys) == 2
    found = rows.read(keys[1], 1 << 20)
    assert found is not None
    path = tmp_path / "rows" / keys[1]
    path.parent.mkdir(parents=True)
    path.write_bytes(found.data)
    check_parts(tmp_path / "rows", expected_rows(world).take(mine), 4)


def test_no_requests_are_an_empty_last_part(
    local_spark: Sparked, world: World, tmp_path: Path
) -> None:
    requests = pq.read_table(world.folder / "requests.parquet").slice(0, 0)
    pq.write_table(requests, tmp_path / "requests.parquet")
    config = replace(backfill_of(world), requests=tmp_path / "requests.parquet", row_parts=2)
    with SMALL.applied(local_spark):
        run_backfill(replace(config, rows=tmp_path / "rows"), ON_SPARK)
    run_backfill(replace(config, rows=tmp_path / "embedded"), EngineConfig())
    [path] = (tmp_path / "rows").rglob("*.parquet")
    assert path.parent.name == part_folder(1)
    embedded = tmp_path / "embedded" / path.relative_to(tmp_path / "rows")
    assert pq.ParquetFile(path).read().equals(pq.ParquetFile(embedded).read())


@pytest.mark.parametrize("users", [list(range(30)), [f"user {n}" for n in range(30)]])
def test_slim_writes_the_parts_of_the_embedded_engine(
    local_spark: Sparked, tmp_path: Path, users: list[int] | list[str]
) -> None:
    """Rows with columns of views, which Arrow takes nothing from."""
    config = SlimConfig(
        fat=fat_rows(tmp_path / "fat.parquet", users),
        events=tmp_path / "events.parquet",
        rows=tmp_path / "rows.parquet",
        cadence_ms=60_000,
    )
    one = run_slim(config, EngineConfig())
    parted = replace(config, events=tmp_path / "events", rows=tmp_path / "rows", row_parts=8)
    with (
        SMALL.applied(local_spark, {f"{ROW_PARTS}.SPILL_BYTES": 1 << 10}),
        mock.patch("thinrow.jobs.fat.PIECE_ROWS", 25),
    ):
        report = run_slim(parted, ON_SPARK)
    check_parts(tmp_path / "rows", pq.read_table(config.rows), 8)
    written = {"event_bytes": report.event_bytes, "row_bytes": report.row_bytes}
    assert asdict(report) == asdict(one) | written
    assert report.row_bytes == sum(p.stat().st_size for p in (tmp_path / "rows").rglob("*.parquet"))


def test_lost_messages_and_full_disks_publish_nothing(
    local_spark: Sparked, world: World, tmp_path: Path
) -> None:
    config = replace(backfill_of(world), rows=tmp_path / "rows", row_parts=4)
    full = Fault(
        "thinrow.engines.spark.outputs.shutil.move", "full_disk", new_traces(tmp_path / "full"), 1
    )
    with hooked(local_spark.hooks, full), pytest.raises(StoreFullError, match="is full"):
        run_backfill(config, ON_SPARK)
    assert full.count == 1
    lost = Patch("thinrow.engines.spark.row_parts.part_messages", no_messages)
    with hooked(local_spark.hooks, lost), pytest.raises(EngineError, match="nothing was published"):
        run_backfill(config, ON_SPARK)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.usefixtures("local_spark")
def test_mistakes_are_reported_as_without_spark(world: World, tmp_path: Path) -> None:
    config = replace(backfill_of(world), rows=tmp_path / "rows", row_parts=4)
    with pytest.raises(UsageError, match="--row-parts is 4096, but must divide the store's"):
        run_backfill(replace(config, row_parts=4096), ON_SPARK)
    requests = pq.read_table(world.folder / "requests.parquet")
    pq.write_table(requests.append_column("part", requests["user_id"]), tmp_path / "r.parquet")
    with pytest.raises(InputError, match="has a column part"):
        run_backfill(replace(config, requests=tmp_path / "r.parquet"), ON_SPARK)
    fat = pq.read_table(fat_rows(tmp_path / "fat.parquet", [1]))
    pq.write_table(fat.append_column("part", fat["user_id"]), tmp_path / "fat.parquet")
    slim = SlimConfig(
        fat=tmp_path / "fat.parquet", events=tmp_path / "events", rows=config.rows, row_parts=4
    )
    with pytest.raises(InputError, match="has a column part"):
        run_slim(slim, ON_SPARK)
    assert {path.name for path in tmp_path.iterdir()} == {"r.parquet", "fat.parquet"}
