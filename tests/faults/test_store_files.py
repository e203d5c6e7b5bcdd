"""Files cut short, removed, exchanged, or with a part that never reached the disk: the same."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from support.small_store import (
    Lookups,
    Outcomes,
    all_files,
    copied,
    lookups_of,
    sample,
    small_world,
)
from support.tried import SEED, Tried, times
from support.worlds import World, some_events

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROMISED = "An error that names the file, or the right answer; never a wrong one"
EVERYTHING = 1 << 30
PART_BYTES = 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("small") / "world", SEED)


@pytest.fixture(scope="module")
def lookups(world: World) -> Lookups:
    return lookups_of(world)


@pytest.fixture(scope="module")
def others(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    """The same store with a generation more; and one built twice from the same events."""
    grown = copied(world, tmp_path_factory.mktemp("grown") / "world")
    grown.compact(some_events(6, users=4, days=1, first_day=4, seed=SEED + 2), 5)
    again = small_world(tmp_path_factory.mktemp("again") / "world", SEED)
    return [grown, again]


@contextmanager
def instead(path: Path, content: bytes | None) -> Iterator[None]:
    """Another content, or no file, for a while."""
    before = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kept(outcomes: Outcomes, fault: str) -> None:
    assert not outcomes.wrong, outcomes.wrong[:20]
    Tried(fault=fault, times=outcomes.total, promised=PROMISED, seen=outcomes.seen).keep()


def test_cut_short(world: World, lookups: Lookups) -> None:
    files = all_files(world.store)
    every = [(path, size) for path in files for size in range(path.stat().st_size)]
    emptied = [(path, 0) for path in files if path.stat().st_size]
    outcomes = Outcomes()
    for path, size in emptied + sample(every, times(150, EVERYTHING), SEED):
        with instead(path, path.read_bytes()[:size]):
            error = outcomes.look(world, lookups, f"{path.name} cut to {size} bytes")
        if path not in unread(world):
            assert error is not None or not path.read_bytes()[size:].strip(), (path, size)
        assert error is None or path.name in str(error)
    kept(outcomes, "A file of a store cut short, to each length there is, and emptied")


def unread(world: World) -> list[Path]:
    """Files that commands alone use, not readers; tests/hazards/test_rollback.py damages those."""
    return [world.store / name for name in ("HIGHEST", "LOCK")]


def test_removed(world: World, lookups: Lookups) -> None:
    outcomes = Outcomes()
    for path in all_files(world.store):
        with instead(path, None):
            error = outcomes.look(world, lookups, f"{path.name} removed")
        assert (error is None) == (path in unread(world)), path
    for folder in sorted(path for path in world.store.rglob("*") if path.is_dir()):
        away = folder.with_name("away")
        folder.rename(away)
        assert outcomes.look(world, lookups, f"{folder.name} removed") is not None
        away.rename(folder)
    kept(outcomes, "A file of a store removed, or a folder: each in turn")


def test_exchanged(world: World, lookups: Lookups, others: list[World]) -> None:
    """Exchanges with the file of that name of any other generation or shard, also of equal size."""
    outcomes = Outcomes()
    places = [*all_files(world.store), *(p for other in others for p in all_files(other.store))]
    for path in all_files(world.store):
        if path.parent == world.store:
            continue  # CURRENT may name another generation: that is no damage
        for other in places:
            alike = path.name == other.name or path.suffix == other.suffix == ".sst"
            content = other.read_bytes()
            if not alike or content == path.read_bytes():
                continue
            with instead(path, content):
                error = outcomes.look(world, lookups, f"{other} in the place of {path}")
            assert error is not None, (path, other)
    folders = [path.parent for path in places if path.name == "IDENTITY"]
    for folder in (path for path in folders if world.store in path.parents):
        for other in folders:
            if contents(other) == contents(folder):
                continue
            away = folder.with_name("away")
            folder.rename(away)
            shutil.copytree(other, folder)
            assert outcomes.look(world, lookups, f"{other} in the place of {folder}") is not None
            shutil.rmtree(folder)
            away.rename(folder)
    kept(outcomes, "A file, or a shard, exchanged for that of another generation, shard or store")


def test_current_names_each_generation_whole(others: list[World]) -> None:
    """A CURRENT put back to an older generation serves that one, whole."""
    grown = others[0]
    lookups = lookups_of(World(grown.folder))
    current = grown.store / "CURRENT"
    outcomes = Outcomes()
    for folder in sorted(grown.store.glob("generation-*")):
        with instead(current, folder.name.encode() + b"\n"):
            assert outcomes.look(grown, lookups, folder.name) is None
    kept(outcomes, "CURRENT put back to an older generation")


def test_parts_never_written(world: World, lookups: Lookups, others: list[World]) -> None:
    """Zeros, or what lay there before, as a lying disk leaves them."""
    outcomes = Outcomes()
    every = [
        (path, start, old)
        for path in all_files(world.store)
        for start in range(0, path.stat().st_size, PART_BYTES)
        for old in (False, True)
    ]
    for path, start, old in sample(every, times(60, EVERYTHING), SEED):
        data, there = path.read_bytes(), bytes(PART_BYTES)
        if old:
            before = others[1].store / path.relative_to(world.store)
            there = before.read_bytes()[start : start + PART_BYTES] if before.exists() else b""
        end = min(start + len(there), len(data))
        content = data[:start] + there[: end - start] + data[end:]
        if content != data:
            with instead(path, content):
                outcomes.look(world, lookups, f"{path.name} from {start}")
    # What the tables say of themselves, such as when they were made, is read by no one.
    assert outcomes.counts["found"] > 2 * outcomes.counts["harmless"]
    kept(outcomes, "64 bytes of a file that are zeros, or those of another build")


def test_longer(world: World, lookups: Lookups) -> None:
    outcomes = Outcomes()
    for path in all_files(world.store):
        for more in (b"\0", b"\n", path.read_bytes() or b"x"):
            with instead(path, path.read_bytes() + more):
                outcomes.look(world, lookups, f"{path.name} longer by {len(more)}")
    kept(outcomes, "A file longer than it was")
