"""Compaction removes only what its runs made, numbers never come twice, and rollback goes back."""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from support.worlds import (
    ALL,
    World,
    built_world,
    days,
    leftovers,
    new_world,
    pointers_to,
    read_store,
    shown,
    some_events,
    thinrow,
)
from thinrow.client import connect
from thinrow.compaction.compact import compact
from thinrow.errors import StoreCorruptError, StoreError, StoreLockedError, UsageError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.store.rollback import rollback
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.compaction.report import CompactionReport


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three generations, of days 3, 4 and 5."""
    world = built_world(tmp_path_factory.mktemp("grown"))
    for day in (4, 5):
        next_day(world, day)
    return world


@pytest.fixture
def world(grown: World, tmp_path: Path) -> World:
    """A copy of those."""
    shutil.copytree(grown.folder, tmp_path / "world")
    return World(tmp_path / "world")


def next_day(world: World, day: int, **options: object) -> CompactionReport:
    events = some_events(50, days=1, first_day=day - 1, seed=day)
    return world.compact(events, day, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "LOCK"
    }


def current(world: World) -> str:
    return (world.store / "CURRENT").read_text(encoding="utf-8").strip()


def set_current(world: World, content: str) -> None:
    (world.store / "CURRENT").write_text(content, encoding="utf-8")


def copy_name(world: World, number: int) -> Path:
    return world.store / f"generation-{number:06d}"


def wait_for(happened: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.01)


# What CURRENT says.


@pytest.mark.parametrize("content", ["generation-000001\n", "generation-000002\n", None])
def test_a_complete_newer_generation_is_never_removed(world: World, content: str | None) -> None:
    set_current(world, content or "")
    if content is None:
        (world.store / "CURRENT").unlink()
    before = files(world.store)
    for keep in (None, 1):
        with pytest.raises(StoreError, match="thinrow store rollback"):
            next_day(world, 6, keep=keep)
        assert files(world.store) == before
    rollback(world.store, 3, "keep")
    assert current(world) == "generation-000003"
    assert next_day(world, 6).generation == 4


@pytest.mark.parametrize("content", ["", "\n", "generation-3", "generation-000009\n", "\x00" * 20])
def test_a_damaged_current_changes_nothing(world: World, content: str) -> None:
    set_current(world, content)
    before = files(world.store)
    with pytest.raises(StoreCorruptError):
        next_day(world, 6, keep=1)
    assert files(world.store) == before
    assert rollback(world.store, 3, "keep").watermark_ts == days(5)[0]
    assert next_day(world, 6).generation >= 4


def test_current_that_is_a_folder_or_a_dangling_link(world: World) -> None:
    path = world.store / "CURRENT"
    for make in (path.mkdir, lambda: path.symlink_to(world.folder / "away")):
        path.unlink()
        make()  # type: ignore[no-untyped-call]
        with pytest.raises(StoreError, match="thinrow store rollback"):
            next_day(world, 6, keep=1)
        assert len(list(world.store.glob("generation-*"))) == 3
        rollback(world.store, 3, "keep")
        assert current(world) == "generation-000003" and not path.is_symlink()


def test_all_generations_gone_is_no_new_store(world: World) -> None:
    for path in world.store.glob("generation-*"):
        shutil.rmtree(path)
    (world.store / "CURRENT").unlink()
    with pytest.raises(StoreError, match="up to 3"):
        next_day(world, 6)


# Numbers.


@pytest.mark.parametrize("newer", ["keep", "remove"])
def test_numbers_continue_above_the_highest(world: World, newer: str) -> None:
    old = read_store(world.store, pointers_to(days(3, 4)))
    report = rollback(world.store, 1, newer)  # type: ignore[arg-type]
    assert report.watermark_ts == days(3)[0]
    assert (report.withdrawn or report.removed) == [2, 3]
    kept = ["withdrawn-000002", "withdrawn-000003"] if newer == "keep" else []
    assert sorted(leftovers(world.store)) == kept
    for day, number in ((4, 4), (5, 5)):
        assert next_day(world, day).generation == number
    assert read_store(world.store, pointers_to(days(3, 4))) == old
    assert next_day(world, 6, keep=2).generation == 6
    # The two newest of this history, not of those set aside.
    assert [path.name for path in sorted(world.store.glob("generation-*"))] == [
        "generation-000005",
        "generation-000006",
    ]
    assert sorted(leftovers(world.store)) == kept


def test_a_store_copied_without_its_mark(world: World) -> None:
    rollback(world.store, 2, "keep")
    (world.store / "HIGHEST").unlink()
    assert next_day(world, 5).generation == 4


@pytest.mark.parametrize("content", ["", "x", "generation-1"])
def test_a_damaged_mark_is_refused(world: World, content: str) -> None:
    (world.store / "HIGHEST").write_text(content, encoding="utf-8")
    before = files(world.store)
    with pytest.raises(StoreCorruptError, match="HIGHEST"):
        next_day(world, 6)
    assert files(world.store) == before


def test_numbers_after_the_newest_were_removed_by_hand(world: World) -> None:
    shutil.rmtree(copy_name(world, 3))
    set_current(world, "generation-000002\n")
    assert next_day(world, 5).generation == 4


# The way back.


def test_rows_past_the_watermark_are_not_ready(world: World) -> None:
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, poll_s=0.01)
    newest, old = pointers_to(days(5)), pointers_to(days(3))
    with Server(config) as server, connect(server.address) as client:
        right = shown(client.materialize(old, ALL))
        rollback(world.store, 2, "remove")
        wait_for(lambda: client.describe_store().generation == 2)
        assert set(client.materialize(newest, ALL).statuses) == {wire.STATUS_NOT_READY}
        assert shown(client.materialize(old, ALL)) == right
        assert next_day(world, 5).generation == 4
        wait_for(lambda: client.describe_store().generation == 4)
        assert set(client.materialize(newest, ALL).statuses) == {wire.STATUS_OK}


def test_a_generation_set_aside_comes_back(world: World) -> None:
    before = read_store(world.store, pointers_to(days(3, 4, 5)))
    rollback(world.store, 1, "keep")
    report = rollback(world.store, 3, "keep")
    assert report.withdrawn == []
    assert read_store(world.store, pointers_to(days(3, 4, 5))) == before
    assert leftovers(world.store) == ["withdrawn-000002"]


def test_rollback_to_what_cannot_serve(world: World) -> None:
    table = next(copy_name(world, 2).rglob("*.sst"))
    table.write_bytes(table.read_bytes()[:-1])
    before = files(world.store)
    with pytest.raises(UsageError, match="its size differs"):
        rollback(world.store, 2, "remove")
    with pytest.raises(StoreError, match="no generation 7"):
        rollback(world.store, 7, "remove")
    with pytest.raises(StoreError, match="does not exist"):
        rollback(world.folder / "nowhere", 7, "remove")
    assert files(world.store) == before
    empty = world.folder / "empty"
    empty.mkdir()
    with pytest.raises(StoreError, match="no generation 1"):
        rollback(empty, 1, "keep")
    assert names(empty) == []


def test_the_commands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    store = ("--store", world.store)
    shown_list = thinrow("store", "list", *store)
    assert shown_list.returncode == 0 and "complete, current" in shown_list.stdout
    assert "2023-11-19" in shown_list.stdout
    assert thinrow("store", "rollback", *store, "--to", 2).returncode == 2, "a choice is needed"
    assert current(world) == "generation-000003"
    back = thinrow("store", "rollback", *store, "--to", 2, "--newer", "keep")
    assert back.returncode == 0 and "NOT_READY" in back.stdout and "Kept aside: 3" in back.stdout
    assert "withdrawn" in thinrow("store", "list", *store).stdout
    assert thinrow("store", "list", "--store", world.folder / "none").returncode != 0


def test_list_changes_nothing(world: World) -> None:
    (copy_name(world, 3) / "manifest.json").write_text("{", encoding="utf-8")
    (world.store / "LOCK").unlink()
    before = names(world.store)
    result = thinrow("store", "list", "--store", world.store)
    assert result.returncode == 0 and "not complete" in result.stdout
    assert names(world.store) == before


# Erasure.


def test_rollback_past_an_erasure_is_reported(world: World) -> None:
    users = world.folder / "users.txt"
    users.write_text("2\n", encoding="utf-8")
    next_day(world, 6, erase_users=users)
    assert rollback(world.store, 3, "keep").erasing == [4]
    # What was set aside holds the user's events, too.
    next_day(world, 6, erase_users=users, keep=1)
    assert names(world.store) == ["CURRENT", "HIGHEST", "LOCK", "generation-000005"]


# What is not a run's own.


@pytest.mark.parametrize(
    "name", ["building", "building.new", "removing-generation-000001", "generation-000004"]
)
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_nothing_shows_to_be_ours_stays(world: World, name: str, kind: str) -> None:
    theirs, elsewhere = world.store / name, world.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "house.txt").write_text("x", encoding="utf-8")
    if kind == "folder":
        shutil.copytree(elsewhere, theirs)
    elif kind == "link":
        theirs.symlink_to(elsewhere)
    else:
        theirs.write_text("x", encoding="utf-8")
    before = files(world.store)
    with pytest.raises((UsageError, StoreError), match=name):
        next_day(world, 6, keep=1)
    assert files(world.store) == before
    assert (elsewhere / "house.txt").exists()


def old_work(folder: Path, kind: str) -> None:
    """Files as version 0.1, killed, left them in what it built or removed."""
    folder.mkdir()
    if kind == "empty":
        return
    for name in ("events/0000.arrow", "shard-0000/000008.sst", "shard-0000/MANIFEST-000005"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    for name in ("CURRENT", "LOG", "rocksdict-config.json", "OPTIONS-000007", "bulk-000000.sst"):
        (folder / "shard-0000" / name).touch()
    if kind == "finished":
        (folder / "manifest.json").touch()


@pytest.mark.parametrize("name", ["building", "removing-generation-000001"])
@pytest.mark.parametrize("kind", ["empty", "half", "finished"])
def test_what_a_killed_run_of_version_0_1_left_goes(world: World, name: str, kind: str) -> None:
    (world.store / "HIGHEST").unlink()
    old_work(world.store / name, kind)
    assert next_day(world, 6).generation == 4
    assert leftovers(world.store) == []


@pytest.mark.parametrize("name", ["building", "removing-generation-000001"])
@pytest.mark.parametrize(
    "theirs", ["house.txt", "events/house.txt", "shard-0000/x/1.sst", "shard-0000/link", "shard-1"]
)
def test_what_version_0_1_never_wrote_stays(world: World, name: str, theirs: str) -> None:
    old_work(world.store / name, "half")
    path = world.store / name / theirs
    path.parent.mkdir(exist_ok=True)
    if path.name == "link":
        path.symlink_to(world.folder)
    else:
        path.write_text("x", encoding="utf-8")
    before = files(world.store)
    with pytest.raises(UsageError, match=name):
        next_day(world, 6)
    assert files(world.store) == before


@pytest.mark.parametrize("kind", ["unmarked", "marked", "HIGHEST.new", "CURRENT.new", "0.1"])
def test_a_first_run_killed_early_can_be_run_again(tmp_path: Path, kind: str) -> None:
    world = new_world(tmp_path)
    world.store.mkdir()
    (world.store / "LOCK").touch()
    if kind.endswith(".new"):
        (world.store / kind).write_text("gener", encoding="utf-8")
    elif kind == "0.1":
        old_work(world.store / "building", "half")
    else:
        (world.store / "building.new").mkdir()
        if kind == "marked":
            (world.store / "building.new" / "UNPUBLISHED").touch()
    assert next_day(world, 3).generation == 1
    assert leftovers(world.store) == []


def test_every_way_back_that_an_error_gives_can_be_run(world: World) -> None:
    """Runs the text unchanged in a shell."""
    current_file = world.store / "CURRENT"
    for break_it in (current_file.unlink, lambda: set_current(world, "generation-000002\n")):
        break_it()  # type: ignore[no-untyped-call]
        with pytest.raises(StoreError) as refused:
            next_day(world, 6)
        command = re.findall("`thinrow ([^`]*--newer[^`]*)`", str(refused.value))[0]
        assert thinrow(*command.split()).returncode == 0
        assert current(world) == "generation-000003"
    set_current(world, "x")
    with pytest.raises(StoreCorruptError) as damaged:
        next_day(world, 6)
    [command] = re.findall("`thinrow ([^`]*)`", str(damaged.value))
    assert thinrow(*command.replace("NUMBER", "3").split()).returncode == 0


@pytest.mark.parametrize("name", ["building-plans", "removing-old", "buildings", "notes", "gen"])
def test_other_files_in_a_store_are_left_alone(world: World, name: str) -> None:
    (world.store / name).mkdir()
    (world.store / name / "house.txt").write_text("x", encoding="utf-8")
    assert next_day(world, 6, keep=1).generation == 4
    assert (world.store / name / "house.txt").exists()


@pytest.mark.parametrize("name", ["building", "building-plans", "events.parquet", "withdrawn"])
def test_a_folder_with_other_files_is_not_adopted(tmp_path: Path, name: str) -> None:
    world = new_world(tmp_path)
    world.store.mkdir()
    (world.store / name).mkdir()
    (world.store / name / "x").touch()
    before = names(world.store)
    with pytest.raises(UsageError, match="not a store"):
        next_day(world, 3)
    assert names(world.store) == before


def test_an_empty_file_system_is_taken(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    world.store.mkdir()
    (world.store / "lost+found").mkdir()
    (world.store / ".snapshot").mkdir()
    assert next_day(world, 3).generation == 1


@pytest.mark.parametrize("cut", ["no manifest", "no shard", "short table"])
def test_a_half_copied_generation_is_refused(world: World, cut: str) -> None:
    arriving = copy_name(world, 4)
    shutil.copytree(copy_name(world, 3), arriving)
    if cut == "no manifest":
        (arriving / "manifest.json").unlink()
    elif cut == "no shard":
        shutil.rmtree(arriving / "shard-0000")
    else:
        table = next(arriving.rglob("*.sst"))
        table.write_bytes(table.read_bytes()[:-5])
    before = files(world.store)
    with pytest.raises(StoreError, match="not complete"):
        next_day(world, 6, keep=1)
    assert files(world.store) == before


def test_old_generations_that_are_links_are_not_pruned(world: World) -> None:
    moved = world.folder / "moved"
    copy_name(world, 1).rename(moved)
    copy_name(world, 1).symlink_to(moved)
    with pytest.raises(UsageError, match="generation-000001"):
        next_day(world, 6, keep=1)
    assert next_day(world, 6).generation == 4
    assert (moved / "manifest.json").exists()


def test_a_lock_that_is_a_link_is_not_followed(world: World) -> None:
    precious = world.folder / "precious"
    precious.write_text("x", encoding="utf-8")
    (world.store / "LOCK").unlink()
    (world.store / "LOCK").symlink_to(precious)
    with pytest.raises(StoreError):
        next_day(world, 6)
    assert precious.read_text(encoding="utf-8") == "x"


# Two at once.


def test_a_live_run_keeps_its_scratch_when_its_lock_file_is_removed(world: World) -> None:
    building = world.store / "building"
    building.mkdir()
    (building / "half").touch()
    with (building / "UNPUBLISHED").open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError):
            next_day(world, 6)
        assert (building / "half").exists()
    assert next_day(world, 6).generation == 4


def test_rollback_during_a_compaction(world: World) -> None:
    with (world.store / "LOCK").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError):
            rollback(world.store, 1, "remove")
        with pytest.raises(StoreLockedError):
            next_day(world, 6)
    assert current(world) == "generation-000003"


# Killed.


def test_killed_right_after_publishing(world: World) -> None:
    """CURRENT names it, and nothing else says so yet."""
    (copy_name(world, 3) / "UNPUBLISHED").touch()
    (world.store / "HIGHEST").write_text("generation-000002\n", encoding="utf-8")
    (world.store / "HIGHEST.new").write_text("gener", encoding="utf-8")
    assert next_day(world, 6).generation == 4
    assert not (copy_name(world, 3) / "UNPUBLISHED").exists()
    assert leftovers(world.store) == []


def test_a_mark_that_stayed_does_not_give_a_published_generation_away(world: World) -> None:
    (copy_name(world, 3) / "UNPUBLISHED").touch()
    set_current(world, "generation-000002\n")
    with pytest.raises(StoreError, match="complete and newer"):
        next_day(world, 6, keep=1)
    assert copy_name(world, 3).exists()


def test_a_removal_that_was_killed_goes_on(world: World) -> None:
    (copy_name(world, 1) / "manifest.json").rename(copy_name(world, 1) / "UNPUBLISHED")
    events = [world.folder / "events-5.parquet"]
    assert compact(world.compaction(events, 5, keep=2)).already_published
    assert not copy_name(world, 1).exists()
    assert leftovers(world.store) == []
