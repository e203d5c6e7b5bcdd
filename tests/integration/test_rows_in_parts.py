"""Jobs write thin rows in folders by the hash of their users."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.past_requests import backfill_of, expected_rows, requested_world
from support.row_parts import check_parts, fat_rows, part_of
from thinrow.client import Projection, connect
from thinrow.client.torch import RowFiles
from thinrow.core.engine_config import EngineConfig
from thinrow.core.shards import shard_of
from thinrow.engines.choice import run_backfill, run_slim
from thinrow.errors import InputError, UsageError
from thinrow.jobs import row_parts
from thinrow.jobs.config import SlimConfig
from thinrow.jobs.materialize import materialize
from thinrow.jobs.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from support.worlds import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return requested_world(tmp_path_factory.mktemp("world"), shards=16)


@pytest.mark.parametrize("parts", [1, 4, 16])
@pytest.mark.parametrize("spill_bytes", [1 << 28, 1 << 12])
def test_backfill_writes_each_user_to_the_part_of_the_hash(
    world: World, tmp_path: Path, parts: int, spill_bytes: int
) -> None:
    config = replace(backfill_of(world), rows=tmp_path / "rows", row_parts=parts)
    with (
        mock.patch.object(row_parts, "SPILL_BYTES", spill_bytes),
        mock.patch("thinrow.jobs.backfill.OUTPUT_ROWS", 64),
        mock.patch.object(row_parts, "GROUP_ROWS", 50),
    ):
        report = run_backfill(config, EngineConfig())
    check_parts(tmp_path / "rows", expected_rows(world), parts)
    assert report.rows == expected_rows(world).num_rows
    assert report.row_bytes == sum(p.stat().st_size for p in tmp_path.rglob("*.parquet"))
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    files = RowFiles(tmp_path / "rows")
    assert len(files) == report.rows
    assert len(files.epoch_order(8).sizes) > 0


def test_numbers_of_parts_are_checked(world: World, tmp_path: Path) -> None:
    config = replace(backfill_of(world), rows=tmp_path / "rows")
    for wrong in (3, 8192):
        with pytest.raises(UsageError, match=r"--row-parts is .*; give a power of two up to 4,096"):
            replace(config, row_parts=wrong)
    with pytest.raises(UsageError, match=r"--row-parts is 4096, but must divide the store's"):
        run_backfill(replace(config, row_parts=4096), EngineConfig())


def test_a_folder_in_use_and_a_column_in_the_way_are_refused(world: World, tmp_path: Path) -> None:
    config = replace(backfill_of(world), rows=tmp_path / "rows", row_parts=4)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mine").write_text("keep")
    with pytest.raises(UsageError, match="There is something at"):
        run_backfill(config, EngineConfig())
    assert (tmp_path / "rows" / "mine").read_text() == "keep"
    shutil.rmtree(tmp_path / "rows")
    requests = pq.read_table(world.folder / "requests.parquet")
    pq.write_table(requests.append_column("part", requests["user_id"]), tmp_path / "r.parquet")
    with pytest.raises(InputError, match="has a column part"):
        run_backfill(replace(config, requests=tmp_path / "r.parquet"), EngineConfig())


def test_rows_in_parts_are_verified_against_fat_rows_made_of_them(
    world: World, tmp_path: Path
) -> None:
    config = replace(backfill_of(world), rows=tmp_path / "rows", row_parts=4)
    run_backfill(config, EngineConfig())
    whole = replace(config, rows=tmp_path / "rows.parquet", row_parts=0)
    run_backfill(whole, EngineConfig())
    with connect(world.store) as client:
        materialize(client, config.rows, Projection(), tmp_path / "fat.parquet")
        report = verify(client, config.rows, tmp_path / "fat.parquet")
        assert report.rows == pq.read_table(whole.rows).num_rows
        assert report.events > 0 and report.rows_that_differ == 0
        with pytest.raises(InputError, match="sort both files alike"):
            verify(client, whole.rows, tmp_path / "fat.parquet")


@pytest.mark.parametrize("users", [list(range(30)), [f"user {n}" for n in range(30)]])
def test_slim_writes_each_user_to_the_part_of_the_hash(
    tmp_path: Path, users: list[int] | list[str]
) -> None:
    config = SlimConfig(
        fat=fat_rows(tmp_path / "fat.parquet", users),
        events=tmp_path / "events.parquet",
        rows=tmp_path / "rows.parquet",
        cadence_ms=60_000,
    )
    run_slim(config, EngineConfig())
    parted = replace(config, events=tmp_path / "again.parquet", rows=tmp_path / "rows", row_parts=8)
    run_slim(parted, EngineConfig())
    check_parts(tmp_path / "rows", pq.read_table(config.rows), 8)
    assert pq.read_table(config.events).equals(pq.read_table(parted.events))
    with pytest.raises(UsageError, match="There is something at"):
        run_slim(parted, EngineConfig())


def test_a_killed_slim_keeps_the_parts_that_it_has_written(tmp_path: Path) -> None:
    config = SlimConfig(
        fat=fat_rows(tmp_path / "fat.parquet", list(range(30))),
        events=tmp_path / "events.parquet",
        rows=tmp_path / "rows",
        cadence_ms=60_000,
        row_parts=4,
    )
    with (
        mock.patch("thinrow.jobs.slim.publish_folder", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        run_slim(config, EngineConfig())
    assert not (tmp_path / "rows").exists()

    def killed_after(new: Path, folder: Path) -> None:
        row_parts.publish_folder(new, folder)
        raise KeyboardInterrupt

    with (
        mock.patch("thinrow.jobs.slim.publish_folder", killed_after),
        pytest.raises(KeyboardInterrupt),
    ):
        run_slim(config, EngineConfig())
    assert (tmp_path / "rows").exists()
    run_slim(config, EngineConfig())
    expected = replace(config, rows=tmp_path / "one.parquet", row_parts=0)
    run_slim(expected, EngineConfig())
    check_parts(tmp_path / "rows", pq.read_table(expected.rows), 4)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_parts_are_shards_of_fewer_shards() -> None:
    users = np.arange(-500, 500)
    assert np.array_equal(shard_of(users, 4096) % 16, shard_of(users, 16))
    assert shard_of(users, 64).tolist() == [part_of(int(user), 64) for user in users]
