"""CURRENT of a store in an object store lost, damaged, or set back to what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from support.remote_stores import RemoteWorld, remote_world
from support.worlds import thinrow
from thinrow.errors import StoreCorruptError, StoreMissingError, StoreUnavailableError
from thinrow.remote import current
from thinrow.remote.current import (
    COPY,
    CURRENT_BYTES_MAX,
    CurrentRecord,
    read_current,
    require_current,
)
from thinrow.remote.gc import collect_garbage
from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.rollback import roll_back
from thinrow.remote.verification import verify_remote

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.remote.object_store import Content

PROBLEMS = {"lost": "it is gone", "damaged": "a later version", "set back": "2 was published"}


@pytest.fixture
def world(tmp_path: Path) -> RemoteWorld:
    (tmp_path / "bucket").mkdir()
    return remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/store")


def content_of(world: RemoteWorld, key: str) -> bytes:
    found = world.objects.read(key, CURRENT_BYTES_MAX)
    assert found is not None
    return found.data


def spoil(world: RemoteWorld, kind: str, older: bytes) -> None:
    if kind == "lost":
        world.objects.delete(["CURRENT"])
    else:
        world.objects.write("CURRENT", b"{}" if kind == "damaged" else older)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_no_command_believes_a_damaged_current(
    world: RemoteWorld, tmp_path: Path, kind: str
) -> None:
    """A run would begin another history, whose events are missing, and gc remove the first."""
    world.compact_both(3)
    older = content_of(world, "CURRENT")
    world.compact_both(4)
    right = content_of(world, "CURRENT")
    with Mirror(world.objects, tmp_path / "mirror") as mirror:
        mirror.pull()
        spoil(world, kind, older)
        before = world.keys()
        names = rf"CURRENT is damaged \(.*{PROBLEMS[kind]}.*thinrow store rollback"
        with pytest.raises(StoreCorruptError, match=names):
            mirror.pull()
        with pytest.raises(StoreCorruptError, match=names):
            world.compact(5)
        with pytest.raises(StoreCorruptError, match=names):
            collect_garbage(world.objects, keep=1, withdrawn=True, grace_ms=0)
        with pytest.raises(StoreCorruptError, match=names):
            verify_remote(world.objects)
        assert world.keys() == before
        listed = thinrow("store", "list", "--store", world.url)
        assert listed.returncode == 0, listed.stderr
        assert "CURRENT names none of them" in listed.stdout and "current" not in listed.stdout
        # What served last is known to the copy.
        assert roll_back(world.objects, 2).withdrawn == []
        assert not mirror.pull() and mirror.generation == 2
    assert CurrentRecord.model_validate_json(right).history == [1, 2]
    assert require_current(world.objects).record.history == [1, 2]
    world.compact_both(5)
    assert world.answers(3, 4, 5) == world.local_answers(3, 4, 5)


def test_the_way_back_from_a_lost_current_may_be_an_older_generation(world: RemoteWorld) -> None:
    world.compact_both(3, 4)
    world.objects.delete(["CURRENT"])
    with pytest.raises(StoreMissingError, match="those it has: 1, 2"):
        roll_back(world.objects, 3)
    assert roll_back(world.objects, 1).withdrawn == [2]
    assert world.compact(4).generation == 3
    assert world.answers(3, 4) == world.local_answers(3, 4)


@pytest.mark.parametrize("copy", ["lost", "damaged"])
def test_the_copy_is_not_needed(world: RemoteWorld, copy: str) -> None:
    """A store without one, or with a damaged one, works, and gets it with its next publication."""
    world.compact_both(3)
    if copy == "lost":
        world.objects.delete([COPY])
    else:
        world.objects.write(COPY, b"nonsense")
    assert world.answers(3) == world.local_answers(3)
    world.compact_both(4)
    assert content_of(world, COPY) == content_of(world, "CURRENT")
    world.objects.delete([COPY, "CURRENT"])
    assert read_current(world.objects) is None


def test_a_copy_that_cannot_be_written_fails_no_run(world: RemoteWorld) -> None:
    world.compact_both(3)
    real = ObjectStore.replace

    def refuse(store: ObjectStore, key: str, data: bytes, replaced: Content | None) -> bool:
        if key == COPY:
            raise StoreUnavailableError("refused")
        return real(store, key, data, replaced)

    with mock.patch.object(ObjectStore, "replace", refuse):
        world.compact_both(4)
    assert content_of(world, COPY) != content_of(world, "CURRENT")
    assert world.answers(3, 4) == world.local_answers(3, 4)


def test_a_publication_between_two_reads_is_no_damage(world: RemoteWorld) -> None:
    world.compact(3)
    real = current._read_copy

    def publish_first(store: ObjectStore) -> CurrentRecord | None:
        with mock.patch.object(current, "_read_copy", real):
            world.compact(4)
        return real(store)

    with mock.patch.object(current, "_read_copy", publish_first):
        found = require_current(world.objects)
    assert found.record.history == [1, 2]


def test_an_older_copy_replaces_no_newer_one(world: RemoteWorld) -> None:
    """Another command publishes while one is about to write the copy of what it published."""
    world.compact(3)
    real = ObjectStore.replace
    crossed: list[str] = []

    def cross(store: ObjectStore, key: str, data: bytes, replaced: Content | None) -> bool:
        if key == COPY and not crossed:
            crossed.append(key)
            world.compact(5)
        return real(store, key, data, replaced)

    with mock.patch.object(ObjectStore, "replace", cross):
        world.compact(4)
    assert require_current(world.objects).record.history == [1, 2, 3]
    assert content_of(world, COPY) == content_of(world, "CURRENT")


def test_a_generation_that_was_never_published_is_not_served(
    world: RemoteWorld, tmp_path: Path
) -> None:
    """A killed run leaves it in its mirror, which a server is given then."""
    world.compact_both(3)
    folder = tmp_path / "mirror"
    with (
        mock.patch("thinrow.remote.checkout.publish", side_effect=StoreUnavailableError("killed")),
        pytest.raises(StoreUnavailableError),
    ):
        world.compact(4, mirror=folder)
    assert (folder / "CURRENT").read_text() == "generation-000002\n"
    with Mirror(world.objects, folder) as mirror:
        assert mirror.problem() == "generation-000002 was built here, and not published"
        assert mirror.pull(verify=True)
        assert mirror.problem() is None and mirror.generation == 1
