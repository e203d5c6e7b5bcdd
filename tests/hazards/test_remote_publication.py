"""Publication to object stores: races, kills at every step, lost answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from support.remote_stores import RemoteWorld, remote_world
from support.worlds import days, thinrow
from thinrow.errors import (
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UsageError,
)
from thinrow.online.config import OnlineConfig
from thinrow.remote import object_store, publication
from thinrow.remote.current import require_current
from thinrow.remote.object_store import ObjectStore

if TYPE_CHECKING:
    from support.object_storage import ObjectStorage


@pytest.fixture
def world(tmp_path: Path) -> RemoteWorld:
    (tmp_path / "bucket").mkdir()
    return remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/a store")


@pytest.fixture
def on_s3(tmp_path: Path, object_storage: ObjectStorage) -> RemoteWorld:
    return remote_world(tmp_path / "world", object_storage.new_url())


@pytest.mark.parametrize("place", ["file", "s3"])
def test_a_remote_store_answers_as_a_local_one(request: pytest.FixtureRequest, place: str) -> None:
    world: RemoteWorld = request.getfixturevalue("world" if place == "file" else "on_s3")
    world.compact_both(3, 4, 5)
    assert world.answers(3, 4, 5) == world.local_answers(3, 4, 5)
    assert world.compact(5).already_published
    assert require_current(world.objects).record.history == [1, 2, 3]


def test_generations_share_tables_by_name(world: RemoteWorld) -> None:
    world.compact(3)
    first = set(world.tables())
    world.compact(4)
    second = set(world.tables())
    assert first < second
    keys = {one.key: one.bytes for one in world.objects.listed("runs")}
    files = {key: size for key, size in keys.items() if "/manifests/" not in key}
    written = sum(size for key, size in files.items() if key not in first)
    assert sum(keys[key] for key in first) > written


def test_a_kept_mirror_copies_nothing_again(world: RemoteWorld, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    world.compact(3, mirror=mirror)
    with mock.patch.object(ObjectStore, "download", side_effect=AssertionError("copied")):
        world.compact(4, mirror=mirror)
        world.compact(5, mirror=mirror)
    world.compact_both(6)
    assert len(world.answers(3, 4, 5, 6)) == 24


class Killed(BaseException):
    """Stands for SIGKILL in this process: nothing catches it, and nothing cleans up remotely."""


@pytest.mark.parametrize("step", ["upload", "create", "replace"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_run_that_is_killed_leaves_what_served(
    world: RemoteWorld, step: str, is_first: bool, tmp_path: Path
) -> None:
    """While files go up, before the manifest, and before CURRENT."""
    if not is_first:
        world.compact_both(3)
    before = world.objects.read("CURRENT", 1 << 20) if not is_first else None
    done: list[str] = []
    real = getattr(ObjectStore, step)

    def die(store: ObjectStore, key: str, *rest: Any) -> object:  # noqa: ANN401
        if step != "upload" or len(done) == 2:
            raise Killed
        done.append(key)
        return real(store, key, *rest)

    mirror = tmp_path / "mirror"
    with mock.patch.object(ObjectStore, step, die), pytest.raises(Killed):
        world.compact(4, mirror=mirror)
    assert world.objects.read("CURRENT", 1 << 20) == before
    # The same mirror holds what could not be published, and is put right.
    assert not world.compact(4, mirror=mirror).already_published
    if not is_first:
        world.compact_locally(4)
        assert world.answers(3, 4) == world.local_answers(3, 4)
    assert len(world.answers(4)) == 6


@pytest.mark.server
def test_a_process_killed_while_it_uploads(on_s3: RemoteWorld) -> None:
    """SIGKILL, with its S3 server: what it uploaded stays unseen."""
    on_s3.compact(3)
    before = on_s3.answers(3)
    code = (
        "import os, signal, sys\n"
        "from thinrow.remote.object_store import ObjectStore\n"
        "def die(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "ObjectStore.create = die\n"
        "from thinrow.cli.entry import main\nmain()"
    )
    command = ["compact", str(on_s3.events(4)), "--store", on_s3.url]
    command += ["--watermark", str(days(4)[0])]
    ended = subprocess.run([sys.executable, "-c", code, *command], check=False, timeout=60)
    assert ended.returncode == -9
    unseen = on_s3.keys() - on_s3.current().keys
    assert len(unseen) > 2
    assert on_s3.answers(3) == before
    done = thinrow(*command)
    assert done.returncode == 0, done.stderr
    on_s3.compact_locally(3)
    on_s3.compact_locally(4)
    assert on_s3.answers(3, 4) == on_s3.local_answers(3, 4)


@pytest.mark.parametrize("place", ["file", "s3"])
@pytest.mark.parametrize("at", ["_create_root", "_swap"])
def test_of_two_compactions_one_is_locked_out(
    request: pytest.FixtureRequest, place: str, at: str
) -> None:
    """The other one publishes while this one is about to."""
    world: RemoteWorld = request.getfixturevalue("world" if place == "file" else "on_s3")
    world.compact(3)
    real = getattr(publication, at)

    def overtaken(*arguments: Any) -> None:  # noqa: ANN401
        with mock.patch.object(publication, at, real):
            world.compact(5)
        real(*arguments)

    with (
        mock.patch.object(publication, at, overtaken),
        pytest.raises(StoreLockedError, match="Another run has published"),
    ):
        world.compact(4)
    serving = world.current().manifest
    assert serving.watermark_ts == days(5)[0]
    assert require_current(world.objects).record.history == [1, serving.number]
    assert world.compact(6).generation == serving.number + 1


def test_the_first_two_compactions_of_a_store_race(world: RemoteWorld) -> None:
    real = publication._swap

    def overtaken(*arguments: Any) -> None:  # noqa: ANN401
        with mock.patch.object(publication, "_swap", real):
            world.compact(4)
        real(*arguments)

    with mock.patch.object(publication, "_swap", overtaken), pytest.raises(StoreLockedError):
        world.compact(3)
    assert require_current(world.objects).record.history == [2]


@pytest.mark.parametrize("part", ["one/generations", "one/CURRENT"])
def test_an_answer_that_was_lost_is_read_back(
    on_s3: RemoteWorld, object_storage: ObjectStorage, part: str
) -> None:
    """The request was done, its answer is an error, and the retry finds its own work."""
    on_s3.compact(3)
    object_storage.fail("lost", "PUT", 1, part)
    assert on_s3.compact(4).generation == 2
    assert require_current(on_s3.objects).record.history == [1, 2]


def test_no_outcome_is_guessed(on_s3: RemoteWorld, object_storage: ObjectStorage) -> None:
    on_s3.compact(3)
    with mock.patch.object(object_store, "RETRIES_MAX", 0):
        object_storage.fail("refused", "PUT", 1, "one/CURRENT")
        with pytest.raises(StoreUnavailableError, match="503"):
            on_s3.compact(4)
    assert require_current(on_s3.objects).record.history == [1]
    assert on_s3.compact(4).generation == 3


def test_a_store_without_conditional_writes_is_refused(world: RemoteWorld) -> None:
    def overwrite(store: ObjectStore, key: str, data: bytes) -> bool:
        store.write(key, data)
        return True

    with (
        mock.patch.object(ObjectStore, "create", overwrite),
        pytest.raises(StoreError, match="ignores If-None-Match"),
    ):
        world.compact(3)
    assert world.objects.read("CURRENT", 1 << 20) is None


def test_busy_stores_are_waited_for(on_s3: RemoteWorld, object_storage: ObjectStorage) -> None:
    object_storage.fail("refused", "PUT", 3)
    on_s3.compact(3)
    object_storage.fail("refused", "GET", 3)
    on_s3.compact(4)
    assert len(on_s3.answers(4)) == 6


def test_objects_lost_before_the_manifest_stop_the_run(world: RemoteWorld) -> None:
    """gc removes them from a run that was paused for longer than its grace period."""
    real = ObjectStore.upload
    lost: list[str] = []

    def lose(store: ObjectStore, key: str, path: Path) -> None:
        real(store, key, path)
        if not lost:
            lost.append(key)
            store.delete([key])

    with (
        mock.patch.object(ObjectStore, "upload", lose),
        pytest.raises(StoreCorruptError, match="is gone"),
    ):
        world.compact(3)
    assert not list(world.objects.listed("generations"))


def test_no_key_is_written_by_two_attempts(world: RemoteWorld) -> None:
    keys: list[str] = []
    real = ObjectStore.upload

    def count(store: ObjectStore, key: str, path: Path) -> None:
        keys.append(key)
        real(store, key, path)

    with mock.patch.object(ObjectStore, "upload", count):
        for _ in range(2):
            with (
                mock.patch.object(publication, "_create_root", side_effect=StoreLockedError("")),
                pytest.raises(StoreLockedError),
            ):
                world.compact(3)
    assert len(keys) == len(set(keys)) and all(key.startswith("runs/") for key in keys)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "lost", "swapped"])
def test_no_generation_is_built_on_a_damaged_object(world: RemoteWorld, kind: str) -> None:
    world.compact(3)
    (key,) = {key for key in world.tables() if "shard-0000" in key}
    world.damage(key, kind)
    with pytest.raises(StoreCorruptError, match="damaged"):
        world.compact(4)
    assert require_current(world.objects).record.history == [1]


def test_stores_of_both_layouts_are_not_confused(world: RemoteWorld) -> None:
    world.compact_both(3)
    with pytest.raises(UsageError, match="name it without file://"):
        ObjectStore(f"file://{world.local.store}")
    folder = world.url.removeprefix("file://")
    answer = thinrow("inspect", "--server", folder, "--user", 1)
    assert answer.returncode == 2
    assert "as object stores do; name it file://" in answer.stderr
    found = thinrow("inspect", "--server", world.url, "--user", 1)
    assert found.stdout == thinrow("inspect", "--server", world.local.store, "--user", 1).stdout


def test_options_that_do_not_fit_the_place(world: RemoteWorld, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="thinrow store gc"):
        world.compact(3, keep=1)
    with pytest.raises(UsageError, match="leave it out with the folder"):
        world.compact(3, store=world.local.store, mirror=tmp_path / "mirror")
    (tmp_path / "other").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="holds other files and is no mirror"):
        world.compact(3, mirror=tmp_path)
    with pytest.raises(UsageError, match="is a URL; give the folder of a mirror"):
        OnlineConfig(store=Path(world.url))
