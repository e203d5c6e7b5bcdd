"""Manifests of shards in an object store: what is lost or altered is named, and nothing removed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from support.remote_stores import RemoteWorld, remote_world
from thinrow.errors import StoreCorruptError
from thinrow.remote.current import require_current
from thinrow.remote.gc import collect_garbage
from thinrow.remote.generation_objects import read_generation, shard_manifest_key
from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.rollback import roll_back
from thinrow.remote.verification import verify_remote
from thinrow.store.generation import Generation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> RemoteWorld:
    """Two generations of two shards."""
    made = remote_world(tmp_path / "world", f"file://{tmp_path}/bucket")
    made.compact(3)
    made.compact(4)
    return made


def manifest_keys(world: RemoteWorld, number: int = 2) -> list[str]:
    found = read_generation(world.objects, number)
    assert found is not None
    return [shard_manifest_key(found.manifest.run_id, shard) for shard in range(2)]


def test_a_manifest_of_a_shard_names_objects(world: RemoteWorld) -> None:
    root = json.loads((world.objects.read("generations/generation-000002.json", 1 << 20)).data)  # type: ignore[union-attr]
    assert "files" not in root["shards"][0]
    content = world.objects.read(manifest_keys(world)[1], 1 << 20)
    assert content is not None
    files = json.loads(content.data)["files"]
    keys = {file["object"] for file in files}
    assert keys <= world.keys()
    before = world.objects.read(manifest_keys(world, 1)[1], 1 << 20)
    assert before is not None
    # The second generation shares the table of the first by the name of its object.
    assert keys & {file["object"] for file in json.loads(before.data)["files"]}


@pytest.mark.parametrize("kind", ["lost", "flipped"])
def test_what_is_damaged_is_named(world: RemoteWorld, tmp_path: Path, kind: str) -> None:
    for number, key in enumerate(manifest_keys(world)):
        content = world.objects.read(key, 1 << 20)
        assert content is not None
        world.damage(key, kind)
        names = re.escape(f"{world.url}/{key} is damaged")
        (problem,) = verify_remote(world.objects).problems
        assert re.search(names, problem)
        before = world.keys()
        with pytest.raises(StoreCorruptError, match=names):
            collect_garbage(world.objects, keep=1, withdrawn=False, grace_ms=0)
        assert world.keys() == before | {"GC"}
        with (
            pytest.raises(StoreCorruptError, match=names),
            Mirror(world.objects, tmp_path / f"mirror-{number}") as mirror,
        ):
            mirror.pull()
        with pytest.raises(StoreCorruptError, match=names):
            world.compact(5)
        world.objects.write(key, content.data)
    assert not verify_remote(world.objects).problems
    roll_back(world.objects, 1)


def test_a_mirror_of_one_shard_reads_one_manifest(world: RemoteWorld, tmp_path: Path) -> None:
    first, second = manifest_keys(world)
    read: list[str] = []
    real = ObjectStore.read

    def reading(store: ObjectStore, key: str, bytes_max: int) -> object:
        read.append(key)
        return real(store, key, bytes_max)

    folder = tmp_path / "mirror"
    with mock.patch.object(ObjectStore, "read", reading):
        with Mirror(world.objects, folder, lambda _: [1]) as mirror:
            assert mirror.pull()
        assert second in read
        assert first not in read
    with Generation(folder / "generation-000002", numbers=[1]) as generation:
        assert list(generation.shards) == [1]
    # Another choice needs the other shard, and so its manifest.
    with Mirror(world.objects, folder) as mirror:
        assert mirror.pull()
    with Generation(folder / "generation-000002") as generation:
        assert list(generation.shards) == [0, 1]


def test_gc_removes_manifests_with_their_generation(world: RemoteWorld) -> None:
    old, new = manifest_keys(world, 1), manifest_keys(world, 2)
    collect_garbage(world.objects, keep=1, withdrawn=False, grace_ms=0)
    assert not set(old) & world.keys()
    assert set(new) <= world.keys()
    assert require_current(world.objects).record.history == [2]
    assert world.answers(4)
