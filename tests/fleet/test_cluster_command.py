"""`thinrow cluster` with real servers: apply, killed and run again, status, drain, gc, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.cluster import running_cluster
from support.remote_stores import remote_world
from support.worlds import thinrow
from thinrow.cluster import map_objects
from thinrow.cluster.desired import read_desired
from thinrow.cluster.map_objects import map_versions
from thinrow.errors import StoreLockedError
from thinrow.jobs import cluster as jobs
from thinrow.jobs.connecting import Access
from thinrow.remote.gc import collect_garbage

pytestmark = pytest.mark.timeout(600)

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.cluster.map_objects import StoredMap
    from thinrow.remote.object_store import ObjectStore


def test_a_cluster_grows_and_drains_though_its_commands_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step that a killed command made, the next command goes on."""
    (tmp_path / "bucket").mkdir()
    world = remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/store")
    world.compact(3)
    objects = world.objects
    write = map_objects.write_map

    def killed(store: ObjectStore, replaced: StoredMap | None, new: object) -> StoredMap:
        """Writes the map, and ends the command there."""
        write(store, replaced, new)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    url = world.url
    with running_cluster(url, tmp_path / "cluster", groups=1, copies=1, lifetime_s=0.5) as one:
        assert one.command("status").returncode == 0
        assert map_versions(objects) == [1]
        added = one.grow(2)
        plan = one.command("plan", one.file)
        assert plan.returncode == 0, plan.stderr
        assert "would arrive at a group" in plan.stdout and map_versions(objects) == [1]
        for replica in added:
            replica.launch()
        desired = read_desired(one.file)
        kills = 0
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "write_map", killed)
            while True:
                try:
                    found = jobs.apply_cluster(objects, desired, Access(), wait_s=120)
                    break
                except KeyboardInterrupt:
                    kills += 1
        assert kills == 3, "loading, served by both, and left"
        shards = found.shards
        assert [len(each.serving) for each in found.groups.values()] == [shards // 2] * 2
        for replica in added:
            replica.ready()
        status = one.command("status")
        assert status.returncode == 0, status.stdout
        assert "no shard moves" in status.stdout and "2 groups" in status.stdout
        # Of two commands at once one wins.
        with monkeypatch.context() as patch:

            def lose(store: ObjectStore, replaced: StoredMap | None, new: object) -> StoredMap:
                write(store, replaced, new)  # type: ignore[arg-type]
                return write(store, replaced, new)  # type: ignore[arg-type]

            patch.setattr(jobs, "write_map", lose)
            with pytest.raises(StoreLockedError, match="run this one again"):
                jobs.apply_cluster(objects, jobs.drained(objects, "0"), Access(), wait_s=120)
        drained = one.command("drain", "0")
        assert drained.returncode == 0, drained.stderr
        one.groups["0"][0].stop()
        status = one.command("status")
        assert status.returncode == 0 and "in 1 group," in status.stdout, status.stdout
        only = one.command("drain", "1")
        assert only.returncode == 2 and "is the only group" in only.stderr
        one.groups["1"][0].kill()
        dead = one.command("status")
        assert dead.returncode == 1 and "have no ready replica" in dead.stdout
        keys = {one.key for one in objects.listed("cluster")}
        collect_garbage(objects, keep=1, withdrawn=True, grace_ms=0)
        assert {one.key for one in objects.listed("cluster")} == keys
        assert thinrow("store", "verify", "--store", url).returncode == 0
