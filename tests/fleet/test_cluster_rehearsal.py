"""The rehearsal: what happens to a cluster in its life, under streams that must not notice."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from support.checked_stream import CheckedStream
from support.cluster import Cluster, running_cluster
from support.remote_stores import RemoteWorld, remote_world
from support.server_processes import until
from support.thin_rows import rows_table
from support.trainer import Trainer, lines
from support.worlds import days, pointers_to, read_store, running_server, some_events
from thinrow.remote.reading import local_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(900)
SHARDS = 16
USERS = range(1, 61)


@pytest.fixture
def world(tmp_path: Path) -> RemoteWorld:
    (tmp_path / "bucket").mkdir()
    found = remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/store")
    found.local.write("events-3.parquet", some_events(2000, users=len(USERS)))
    found.compact(3, shards=SHARDS)
    return found


def settled(cluster: Cluster) -> bool:
    """Returns whether every replica of every group is ready, and no shard moves."""
    done = cluster.command("status")
    assert done.returncode == 0, done.stdout + done.stderr
    return "no shard moves" in done.stdout and done.stdout.count(" ready ") == len(cluster.replicas)


def test_a_cluster_lives(
    world: RemoteWorld, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with local_store(world.url) as folder:
        expected = read_store(folder, pointers_to(days(3), USERS))
    with (
        running_cluster(world.url, tmp_path / "cluster", groups=4) as cluster,
        CheckedStream(cluster.addresses[0], USERS, expected) as stream,
    ):

        def record(name: str) -> None:
            stall_s = stream.goes_on()
            record_property(name, stall_s)
            print(f"{name}: longest stall {stall_s:.2f} s")
            stream.reset()

        record("healthy")
        for copy in range(cluster.copies):
            servers = [replicas[copy] for replicas in cluster.groups.values()]
            for replica in servers:
                assert replica.stop() == 0
                stream.goes_on()
            cluster.start(servers)
            stream.goes_on()
        record("rolling update")

        # Each server of a group in turn: the stream uses one of them.
        for replica in cluster.groups["0"]:
            replica.kill(lose_disk=True)
            record("node lost")
            replica.start()
        for replica in cluster.groups["1"]:
            replica.pause()
            record("server paused")
            replica.resume()
            stream.goes_on()

        # More groups, and a generation that appears in the middle of the move.
        for replica in cluster.grow(8):
            replica.launch()
        stream.reset()
        applying = cluster.applying()
        stream.goes_on()
        world.local.write(
            "events-4.parquet", some_events(200, users=len(USERS), days=1, first_day=3, seed=4)
        )
        world.compact(4, shards=SHARDS)
        said, _ = applying.communicate(timeout=240)
        assert applying.returncode == 0, said
        for replica in cluster.groups["7"]:
            replica.ready()
        until(lambda: settled(cluster), 120)
        until(lambda: stream.groups == 8, 120)
        record("reshard")
        for replica in cluster.replicas:
            server = replica.ready()
            until(lambda server=server: server.scrape()["thinrow_generation"] == 2, 120)  # type: ignore[misc]
        record("new generation")


def test_a_trainer_is_killed_while_shards_move(world: RemoteWorld, tmp_path: Path) -> None:
    """It resumes in the middle of the move, and its batches are those of one server."""
    rows = tmp_path / "rows.parquet"
    pq.write_table(rows_table(800, users=USERS), rows)
    with running_server(
        world.url, "--mirror", tmp_path / "mirror", log=tmp_path / "single"
    ) as server:
        trainer = Trainer(
            paths=str(rows), server=[server.address], log=str(tmp_path / "single.log")
        )
        subprocess.run(trainer.command(), check=True, timeout=120)
        wanted = lines(tmp_path / "single.log")
    with running_cluster(world.url, tmp_path / "cluster", groups=2, copies=1) as cluster:
        log = tmp_path / "cluster.log"
        trainer = Trainer(
            paths=str(rows), server=[cluster.addresses[0]], log=str(log), pause_s=0.05
        )
        with subprocess.Popen(trainer.command()) as first:
            until(lambda: log.exists() and len(lines(log)) > 5, 120)
            for replica in cluster.grow(4):
                replica.launch()
            applying = cluster.applying()
            assert applying.stdout is not None
            applying.stdout.readline()
            first.kill()
        reached = len(lines(log))
        assert reached < len(wanted)
        subprocess.run(trainer.command(), check=True, timeout=240)
        said, _ = applying.communicate(timeout=240)
        assert applying.returncode == 0, said
        until(lambda: settled(cluster), 120)
    assert lines(log) == wanted
