"""Attempts of backfill's tasks that die or have twins: each row is written once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.past_requests import backfill_of, expected_rows, requested_world, rows_of
from support.task_hooks import Fault, hooked, new_traces
from support.task_sizes import SMALL
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_backfill

if TYPE_CHECKING:
    from pathlib import Path

    from support.spark_cluster import Sparked
    from support.worlds import World

pytestmark = pytest.mark.timeout(1800)
PUT = "thinrow.engines.spark.outputs.OutputFolder.put"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Requests, and the rows that the embedded engine writes."""
    return requested_world(tmp_path_factory.mktemp("world"))


def check_rows(world: World, spark: Sparked, folder: Path, *faults: Fault) -> None:
    """Writes the rows with faults; nothing else is left."""
    config = replace(backfill_of(world), rows=folder / "rows")
    with SMALL.applied(spark), hooked(spark.hooks, *faults):
        run_backfill(config, EngineConfig(engine="spark"))
    assert rows_of(folder / "rows").equals(expected_rows(world))
    assert [path.name for path in folder.iterdir()] == ["rows"]


def test_executors_and_workers_are_killed(
    cluster_spark: Sparked, world: World, tmp_path: Path
) -> None:
    """An executor before it hands a file over, and the process of a task after that."""
    executor = Fault(PUT, "kill_executor", new_traces(tmp_path / "first"))
    worker = Fault(PUT, "kill_worker", new_traces(tmp_path / "second"), when="after")
    (tmp_path / "out").mkdir()
    check_rows(world, cluster_spark, tmp_path / "out", executor, worker)
    assert (executor.count, worker.count) == (1, 1)


def test_two_attempts_write_the_same_slice(
    cluster_spark: Sparked, world: World, tmp_path: Path
) -> None:
    twins = Fault(
        PUT, "wait_for_twin", new_traces(tmp_path / "twins"), at_most=2, only="/0.parquet"
    )
    (tmp_path / "out").mkdir()
    check_rows(world, cluster_spark, tmp_path / "out", twins)
    assert twins.count == 2
