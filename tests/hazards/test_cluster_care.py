"""A cluster's map that is lost and restored, and old versions of it that are removed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.remote_stores import RemoteWorld, remote_world
from support.worlds import thinrow
from thinrow.cluster.cluster_map import ClusterMap, Group
from thinrow.cluster.local_map import LOCAL_MAP, LocalMap
from thinrow.cluster.map_objects import (
    KEPT,
    MAP,
    map_key,
    map_versions,
    old_maps,
    read_map,
    restore_map,
    write_map,
)
from thinrow.cluster.replica_report import ReplicaReport
from thinrow.errors import StoreCorruptError, StoreMissingError, UsageError
from thinrow.jobs import cluster as jobs
from thinrow.jobs.connecting import Access
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.cluster.map_objects import StoredMap

SOON_TS = 1 << 62


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/store", create=True)


def written(objects: ObjectStore, count: int) -> list[StoredMap]:
    """Writes versions of a map, each another one."""
    found: list[StoredMap] = []
    for number in range(count):
        groups = {"0": Group(targets=("127.0.0.1:1",), serving=(0, 1, 2, 3))}
        new = ClusterMap(version=1, shards=4, lifetime_ms=1000, changed_ts=number, groups=groups)
        found.append(write_map(objects, found[-1] if found else None, new))
    return found


def break_map(objects: ObjectStore, kind: str, older: StoredMap) -> None:
    if kind == "lost":
        objects.delete([MAP])
    else:
        objects.write(MAP, older.content.data if kind == "set back" else b"{}")


@pytest.mark.parametrize("kind", ["lost", "damaged", "set back"])
def test_the_command_restores_what_names_the_map(objects: ObjectStore, kind: str) -> None:
    first, second = written(objects, 2)
    break_map(objects, kind, first)
    done = thinrow("cluster", "restore", "--store", objects.url)
    assert (done.returncode, done.stdout) == (0, "cluster/MAP names version 2 of the map again.\n")
    restored = read_map(objects)
    assert restored is not None and restored.map == second.map
    again = thinrow("cluster", "restore", "--store", objects.url)
    assert again.returncode == 2
    assert "is whole and names version 2, so there is nothing to restore" in again.stderr
    assert write_map(objects, restored, second.map).map.version == 3


def test_the_version_that_replicas_follow_is_restored(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed command leaves a version that never counted; none names one that is not there."""
    written(objects, 3)
    objects.delete([MAP])
    for followed, restored in ((2, 2), (9, 3), (0, 3)):
        monkeypatch.setattr(
            jobs,
            "replica_reports",
            lambda targets, _, followed=followed: {
                each: ReplicaReport(each, map_version=followed) for each in targets
            },
        )
        assert jobs.restore_cluster(objects, Access()).version == restored
        objects.delete([MAP])
    objects.delete([map_key(version) for version in map_versions(objects)])
    with pytest.raises(StoreMissingError, match="write one with thinrow cluster apply"):
        jobs.restore_cluster(objects, Access())


def test_a_version_is_restored_from_the_copy_of_a_mirror(
    objects: ObjectStore, tmp_path: Path
) -> None:
    """The copy is the object, byte by byte."""
    [stored] = written(objects, 1)
    (tmp_path / "mirror").mkdir()
    LocalMap(tmp_path / "mirror").write(stored.map)
    objects.delete([map_key(1)])
    with pytest.raises(StoreCorruptError, match=f"copy {LOCAL_MAP} of a mirror"):
        read_map(objects)
    objects.write(map_key(1), (tmp_path / "mirror" / LOCAL_MAP).read_bytes())
    found = read_map(objects)
    assert found is not None and found.map == stored.map


def test_what_counts_is_never_old(objects: ObjectStore) -> None:
    assert old_maps(objects, SOON_TS) == []
    first, *_ = written(objects, KEPT + 3)
    leftover = map_key(KEPT + 9)
    objects.write(leftover, b"of a command that was killed")
    assert [one.key for one in old_maps(objects, SOON_TS)] == [map_key(n) for n in (1, 2, 3)]
    assert old_maps(objects, 0) == []
    for kind in ("lost", "damaged"):
        break_map(objects, kind, first)
        with pytest.raises(StoreCorruptError, match="thinrow cluster restore"):
            old_maps(objects, SOON_TS)
    restore_map(objects, KEPT + 2)
    assert len(old_maps(objects, SOON_TS)) == 2
    with pytest.raises(UsageError, match="nothing to restore"):
        restore_map(objects, KEPT + 1)


def test_gc_keeps_the_newest_maps(tmp_path: Path) -> None:
    world: RemoteWorld = remote_world(tmp_path, f"file://{tmp_path}/bucket")
    world.compact(3)
    written(world.objects, KEPT + 4)
    collect = ("store", "gc", "--store", world.url, "--grace")
    kept = thinrow(*collect, "1h")
    assert kept.returncode == 0, kept.stderr
    assert len(map_versions(world.objects)) == KEPT + 4
    trial = thinrow(*collect, "1ms", "--dry-run")
    assert "Would remove no generation and 4 objects" in trial.stdout
    assert len(map_versions(world.objects)) == KEPT + 4
    for version in (1, 2):  # a day old
        path = tmp_path / "bucket" / map_key(version)
        os.utime(path, (path.stat().st_mtime - 90_000,) * 2)
    day = thinrow(*collect[:-1])
    assert "Removed no generation and 2 objects" in day.stdout
    assert map_versions(world.objects) == list(range(3, KEPT + 5))
    world.objects.delete([MAP])
    refused = thinrow(*collect, "1ms")
    assert refused.returncode == 1
    assert "thinrow cluster restore" in refused.stderr
    assert len(map_versions(world.objects)) == KEPT + 2
