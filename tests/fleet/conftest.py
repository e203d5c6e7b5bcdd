"""Spark for the tests of the fleet: skipped where pyspark or Java is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.object_storage import found_by_clients
from support.spark_cluster import Sparked, active_session, properties, running_cluster
from support.spark_worlds import SparkWorld, spark_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.object_storage import ObjectStorage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks these tests, so that other runs leave them out."""
    for item in items:
        if item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker("fleet")


@pytest.fixture(scope="module")
def local_spark(
    tmp_path_factory: pytest.TempPathFactory, storage_process: ObjectStorage
) -> Iterator[Sparked]:
    """A session whose tasks run in one executor, which is in the driver."""
    folder = tmp_path_factory.mktemp("spark")
    with found_by_clients(storage_process):
        wanted = properties(folder, spark_master="local[2]")
        with active_session(folder, wanted) as spark:
            yield spark


@pytest.fixture(scope="module")
def cluster_spark(
    tmp_path_factory: pytest.TempPathFactory, storage_process: ObjectStorage
) -> Iterator[Sparked]:
    """A session on a standalone master and two workers, on hosts of their own."""
    folder = tmp_path_factory.mktemp("cluster")
    with found_by_clients(storage_process), running_cluster(folder) as cluster:
        wanted = properties(
            folder,
            spark_master=cluster.url,
            spark_speculation="true",
            spark_speculation_interval="100ms",
            spark_speculation_quantile="0.5",
        )
        with active_session(folder, wanted, cluster.disk) as spark:
            yield spark


@pytest.fixture
def new_world(tmp_path: Path, object_storage: ObjectStorage) -> Callable[[], SparkWorld]:
    """Makes stores of one generation in S3."""
    made: list[SparkWorld] = []

    def new() -> SparkWorld:
        made.append(spark_world(tmp_path / f"world-{len(made)}", object_storage.new_url()))
        return made[-1]

    return new
