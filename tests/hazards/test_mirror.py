"""Mirrors: servers of stores at a URL, through what happens to the store and to the mirror."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from support.remote_stores import RemoteWorld, remote_world
from support.server_processes import AT_ONCE, TWO, until
from support.worlds import ALL, THINROW, Running, days, pointers_to, running_server, shown
from thinrow.client import connect
from thinrow.core.shards import shard_of
from thinrow.errors import StoreFullError, StoreLockedError, UnavailableError, UsageError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.remote import copies, mirror_follower, object_store
from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.rollback import roll_back
from thinrow.store.shard_choice import ShardChoice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.object_storage import ObjectStorage
    from support.worlds import Answers


@pytest.fixture
def world(tmp_path: Path) -> RemoteWorld:
    (tmp_path / "bucket").mkdir()
    return remote_world(tmp_path / "world", f"file://{tmp_path}/bucket/store")


@pytest.fixture
def on_s3(tmp_path: Path, object_storage: ObjectStorage) -> RemoteWorld:
    return remote_world(tmp_path / "world", object_storage.new_url())


@contextmanager
def serving(world: RemoteWorld, **options: Any) -> Iterator[Server]:  # noqa: ANN401
    """A server in this process, whose mirror looks often."""
    config = ServerConfig(
        store=world.url,
        mirror=world.local.folder.parent / "mirror",
        listen="127.0.0.1:0",
        **{"metrics": None, "poll_s": 0.05, "mirror_poll_s": 0.1, **options},
    )
    with Server(config) as server:
        yield server


def answers_of(address: str, *numbers: int) -> Answers:
    with connect(address, AT_ONCE) as client:
        return shown(client.materialize(pointers_to(days(*numbers)), ALL))


def value(server: Server, name: str, **labels: str) -> float:
    found = server.metrics.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


def serves(server: Server, generation: int) -> None:
    until(lambda: value(server, "thinrow_generation") == generation)


@pytest.mark.parametrize("place", ["file", "s3"])
def test_a_mirrored_server_answers_as_a_local_one(
    request: pytest.FixtureRequest, place: str
) -> None:
    """The same bytes, and so they stay as generations follow each other."""
    world: RemoteWorld = request.getfixturevalue("world" if place == "file" else "on_s3")
    world.compact_both(3)
    with serving(world) as server:
        assert answers_of(server.address, 3) == world.local_answers(3)
        world.compact_both(4)
        serves(server, 2)
        assert answers_of(server.address, 3, 4) == world.local_answers(3, 4)
        assert value(server, "thinrow_mirror_generation") == 2
        assert value(server, "thinrow_mirror_failing") == 0


def test_an_increment_copies_what_changed(
    on_s3: RemoteWorld, object_storage: ObjectStorage
) -> None:
    on_s3.compact(3)
    with Mirror(on_s3.objects, on_s3.local.folder / "mirror") as mirror:
        mirror.pull()
        before = on_s3.current().keys
        on_s3.compact(4)
        now = on_s3.current()
        changed = sum(file.bytes for _, file in now.files if file.object not in before)
        served = object_storage.served()["bytes"]
        assert mirror.pull()
        received = object_storage.served()["bytes"] - served
    manifests = len(now.body) + sum(map(len, now.texts.values())) + 2000
    assert changed <= received <= 1.1 * changed + manifests
    shared = sum(file.bytes for _, file in now.files if file.object in before)
    assert shared > changed / 2


@pytest.mark.parametrize("kind", ["truncated", "flipped", "lost", "swapped"])
def test_a_damaged_object_keeps_the_old_generation_serving(
    world: RemoteWorld, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.compact_both(3)
    before = set(world.tables())
    with serving(world):
        pass
    world.compact_both(4)
    (key, *_) = sorted(set(world.tables()) - before)
    good = world.objects.read(key, 1 << 30)
    assert good is not None
    world.damage(key, kind)
    with serving(world, metrics="127.0.0.1:0") as server:
        until(lambda: value(server, "thinrow_mirror_failures_total", kind="damaged") > 0)
        assert value(server, "thinrow_mirror_failing") == 1
        assert answers_of(server.address, 3) == world.local_answers(3)
        assert value(server, "thinrow_generation") == 1
        assert any(f"{key} is damaged" in str(vars(record)) for record in caplog.records)
        with urllib.request.urlopen(f"http://{server.metrics_address}/", timeout=60) as page:
            assert "cannot follow the store" in page.read().decode()
        world.objects.write(key, good.data)
        serves(server, 2)
        until(lambda: value(server, "thinrow_mirror_failing") == 0)
        assert answers_of(server.address, 3, 4) == world.local_answers(3, 4)


def test_it_serves_on_without_the_store(on_s3: RemoteWorld) -> None:
    """Running and started again, with nothing but its mirror."""
    on_s3.compact_both(3)
    with serving(on_s3):
        pass
    elsewhere = {"AWS_ENDPOINT": "http://127.0.0.1:1"}
    with (
        mock.patch.dict("os.environ", elsewhere),
        mock.patch.object(object_store, "RETRIES_MAX", 0),
        serving(on_s3) as server,
    ):
        until(lambda: value(server, "thinrow_mirror_failures_total", kind="unreachable") > 0)
        assert answers_of(server.address, 3) == on_s3.local_answers(3)
        assert value(server, "thinrow_mirror_failing") == 1
    with serving(on_s3) as server:
        on_s3.compact_both(4)
        serves(server, 2)


def test_busy_stores_are_waited_for(on_s3: RemoteWorld, object_storage: ObjectStorage) -> None:
    on_s3.compact_both(3)
    object_storage.fail("refused", "GET", 5)
    with serving(on_s3) as server:
        assert answers_of(server.address, 3) == on_s3.local_answers(3)
        assert value(server, "thinrow_mirror_failing") == 0


def test_a_server_killed_while_it_copies_goes_on_where_it_was(
    on_s3: RemoteWorld, tmp_path: Path
) -> None:
    on_s3.compact_both(3)
    mirror = tmp_path / "mirror"
    real = ObjectStore.download
    copied: list[str] = []

    class Killed(BaseException):
        pass

    def die(store: ObjectStore, key: str, *rest: Any) -> None:  # noqa: ANN401
        if len(copied) == 3:
            raise Killed
        real(store, key, *rest)
        copied.append(key)

    with (
        mock.patch.object(copies, "COPIES_AT_ONCE", 1),
        mock.patch.object(ObjectStore, "download", die),
        pytest.raises(Killed),
        Mirror(on_s3.objects, mirror) as half,
    ):
        half.pull()
    (mirror / "objects" / copied[0]).with_name("half.part").write_bytes(b"half")
    with running_server(on_s3.url, "--mirror", mirror, log=tmp_path / "log") as server:
        line = server.wait_for("objects copied")
        begun = [line for line in server.events() if line["event"] == "copying objects"]
        assert [line["bytes_received"] for line in begun][:1] == [0] and len(begun) == 1
        files = len(on_s3.current().files)
        assert line["files_received"] == files - 3 and line["bytes_shared"] > 0
        assert answers_of(server.address, 3) == on_s3.local_answers(3)
        assert not list(mirror.rglob("*.part"))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with running_server(on_s3.url, "--mirror", mirror, log=tmp_path / "log-2") as server:
        assert not [line for line in server.events() if line["event"] == "copying objects"]
        assert answers_of(server.address, 3) == on_s3.local_answers(3)
        on_s3.compact_both(4)
        server.wait_for("generation opened", generation=2)
        assert answers_of(server.address, 3, 4) == on_s3.local_answers(3, 4)
        assert "a-secret-of-tests" not in server.log.read_text(encoding="utf-8")


def test_what_is_damaged_in_the_mirror_is_copied_again(world: RemoteWorld) -> None:
    world.compact_both(3)
    with serving(world) as server:
        mirror = server._config.store_folder
    for problem in ("truncated", "lost", "flipped"):
        table = next(mirror.glob("generation-000001/shard-0000/*.sst"))
        content = table.read_bytes()
        if problem == "lost":
            table.unlink()
        elif problem == "truncated":
            table.write_bytes(content[:-1])
        else:
            # The footer, which opening reads.
            table.write_bytes(content[:-20] + bytes(20))
        with serving(world) as server:
            assert answers_of(server.address, 3) == world.local_answers(3)


def test_room_is_checked_before_anything_is_copied(world: RemoteWorld, tmp_path: Path) -> None:
    world.compact(3)
    usage = shutil.disk_usage(tmp_path)._replace(free=copies.ROOM_SPARE_BYTES + 10)
    with (
        Mirror(world.objects, tmp_path / "mirror") as mirror,
        mock.patch.object(shutil, "disk_usage", lambda _: usage),
        mock.patch.object(ObjectStore, "download", side_effect=AssertionError("copied")),
        pytest.raises(StoreFullError, match=r"needs [\d,]+ bytes more"),
    ):
        mirror.pull()


def test_a_disk_without_room_keeps_the_old_generation_serving(world: RemoteWorld) -> None:
    world.compact_both(3)
    with serving(world) as server:
        usage = shutil.disk_usage("/")
        full = str(world.local.folder.parent / "mirror")

        def of(folder: Path) -> object:
            return usage._replace(free=0) if str(folder).startswith(full) else usage

        with mock.patch.object(shutil, "disk_usage", of):
            world.compact_both(4)
            until(lambda: value(server, "thinrow_mirror_failures_total", kind="full") > 0)
            assert answers_of(server.address, 3) == world.local_answers(3)
        serves(server, 2)


def test_a_server_of_some_shards_has_only_those(world: RemoteWorld) -> None:
    world.compact_both(3)
    owners = shard_of(pointers_to(days(3)).user_ids, 2)
    for options in ({"shards": "1"}, {"group": "1/2"}):
        with serving(world, **options) as server:
            mirror = server._config.store_folder
            with connect(server.address, AT_ONCE) as client:
                pointers = pointers_to(days(3))[owners == 1]
                batch = shown(client.materialize(pointers, ALL))
                whole = world.local_answers(3)
                assert batch == [whole[n] for n in range(len(owners)) if owners[n] == 1]
                with pytest.raises(UnavailableError, match="without shard 0 of 2"):
                    client.materialize(pointers_to(days(3)), ALL)
            world.compact_both(4 if "shards" in options else 5)
            serves(server, 2 if "shards" in options else 3)
        (generation, *_) = mirror.glob("generation-*")
        assert not (generation / "shard-0000").exists()
    # Other shards are copied before they are served.
    with serving(world, shards="0-1") as server:
        assert answers_of(server.address, 3, 4, 5) == world.local_answers(3, 4, 5)


def test_choices_of_shards() -> None:
    assert ShardChoice.parse(None, None)(4) == range(4)
    assert ShardChoice.parse("1-2", None)(4) == range(1, 3)
    groups = [ShardChoice.parse(None, f"{n}/3")(8) for n in range(3)]
    assert [number for group in groups for number in group] == list(range(8))
    for shards, group in (("2-1", None), ("a", None), (None, "3/3"), (None, "1"), ("1", "0/2")):
        with pytest.raises(UsageError):
            ShardChoice.parse(shards, group)
    with pytest.raises(UsageError, match="shards 0 to 3"):
        ShardChoice.parse("2-4", None)(4)
    with pytest.raises(UsageError, match="too few for 8 groups"):
        ShardChoice.parse(None, "0/8")(4)


def test_a_mirror_has_one_owner_and_one_store(world: RemoteWorld, tmp_path: Path) -> None:
    world.compact(3)
    with serving(world) as server, pytest.raises(StoreLockedError, match="its own --mirror"):
        world.compact(4, mirror=server._config.store_folder)
    (tmp_path / "bucket/other").mkdir()
    other = ObjectStore(f"file://{tmp_path}/bucket/other")
    with pytest.raises(UsageError, match="is a mirror of"), Mirror(other, tmp_path / "mirror"):
        pass
    with pytest.raises(UsageError, match="give --mirror FOLDER"):
        ServerConfig(store=world.url)


def test_several_processes_share_one_mirror(on_s3: RemoteWorld, tmp_path: Path) -> None:
    on_s3.compact_both(3)
    mirror = tmp_path / "mirror"
    with running_server(on_s3.url, "--mirror", mirror, *TWO, log=tmp_path / "log") as server:
        assert answers_of(server.address, 3) == on_s3.local_answers(3)
        on_s3.compact_both(4)
        until(lambda: server.scrape()["thinrow_generation"] == 2)
        assert server.scrape()["thinrow_mirror_generation"] == 2
        assert answers_of(server.address, 3, 4) == on_s3.local_answers(3, 4)


def test_progress_is_visible_while_the_first_copy_is_made(world: RemoteWorld) -> None:
    world.compact_both(3)
    pages: list[str] = []
    real = ObjectStore.download

    def look(store: ObjectStore, key: str, *rest: Any) -> None:  # noqa: ANN401
        real(store, key, *rest)
        if not pages:
            address = server.metrics_address
            with urllib.request.urlopen(f"http://{address}/", timeout=60) as page:
                pages.append(page.read().decode())

    config = ServerConfig(
        store=world.url,
        mirror=world.local.folder / "mirror",
        listen="127.0.0.1:0",
        metrics="127.0.0.1:0",
    )
    server = Server(config)
    with mock.patch.object(ObjectStore, "download", look), server:
        pass
    assert "copying generation 1" in pages[0]


@pytest.mark.parametrize(
    ("when", "processes"), [("first copy", 1), ("first copy", 2), ("CURRENT", 1)]
)
def test_sigterm_ends_a_server_whose_store_never_answers(
    on_s3: RemoteWorld,
    object_storage: ObjectStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    processes: int,
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "1 hour")
    on_s3.compact(3)
    log = tmp_path / "log"
    command = [*THINROW, "serve", "--store", on_s3.url, "--mirror", str(tmp_path / "mirror")]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    if when == "first copy":
        object_storage.fail("hung", "GET", 1000, ".sst")
    with log.open("wb") as sink:
        process = subprocess.Popen([*command, "--processes", str(processes)], stderr=sink)
    try:
        server = Running(process, "", "", log)
        server.wait_for("copying objects" if when == "first copy" else "serving")
        if when == "CURRENT":
            object_storage.fail("hung", "GET", 1000, "CURRENT")
        until(lambda: object_storage.hung() > 0)
        assert server.stop() == 0
        assert ("serving" in {line["event"] for line in server.events()}) == (when == "CURRENT")
    finally:
        process.kill()
        process.wait()


def test_a_mirror_that_waits_for_its_store_stays_locked(
    on_s3: RemoteWorld, object_storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is closed while a request hangs may not share its folder with the next."""
    on_s3.compact_both(3)
    monkeypatch.setattr(mirror_follower, "STOP_S", 0.1)
    with serving(on_s3):
        object_storage.fail("held", "GET", 1000, "CURRENT")
        until(lambda: object_storage.hung() > 0)
    folder = on_s3.local.folder.parent / "mirror"
    with pytest.raises(StoreLockedError, match="its own --mirror"), Mirror(on_s3.objects, folder):
        pass
    object_storage.fail("held", "GET", 0)
    until(lambda: not any(thread.name == "thinrow-mirror" for thread in threading.enumerate()))
    with Mirror(on_s3.objects, folder):
        pass


def test_a_rollback_reaches_servers(world: RemoteWorld) -> None:
    world.compact_both(3, 4)
    with serving(world) as server:
        serves(server, 2)
        roll_back(world.objects, 1)
        serves(server, 1)
        world.compact(4)
        serves(server, 3)
        world.compact_locally(4)
        assert answers_of(server.address, 3, 4) == world.local_answers(3, 4)
