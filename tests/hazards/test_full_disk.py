"""A disk that fills up: one sentence, what was there before stays, and room is all it takes."""

from __future__ import annotations

import gc
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.worlds import (
    ALL,
    DAY_MS,
    World,
    as_of,
    compact_command,
    days,
    leftovers,
    new_world,
    pointers_to,
    read_store,
    shown,
    some_events,
    thinrow,
)
from thinrow.cli.app import app
from thinrow.client import connect
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

ROOMY = 64 << 20
OLD, NEW = pointers_to(days(1, 2, 3)), pointers_to(days(3, 4))


@dataclass(frozen=True)
class Disk:
    """A small file system in memory."""

    path: Path

    def used(self) -> int:
        """Bytes of whole pages, as the file system counts."""
        gc.collect()  # an error that was told may still hold on to files of its run
        told = os.statvfs(self.path)
        return (told.f_blocks - told.f_bfree) * told.f_frsize

    def resize(self, size: int) -> None:
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(self.path)], check=True)

    def leave(self, room: int) -> None:
        """Leaves so many bytes free, also where somebody is writing meanwhile."""
        for attempts_left in reversed(range(10)):
            used = self.used()
            try:
                self.resize(used + room)
                return
            except subprocess.CalledProcessError:
                if not attempts_left or self.used() <= used + room:
                    raise


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "thinrow-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs, which root has on a machine of its own")
    try:
        yield Disk(folder)
    finally:
        gc.collect()  # errors that were told still hold on to the files of their runs
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def run(*command: object) -> Result:
    return CliRunner().invoke(app, list(map(str, command)))


def check_full(result: Result | subprocess.CompletedProcess[str], disk: Disk) -> None:
    code = (
        result.returncode if isinstance(result, subprocess.CompletedProcess) else result.exit_code
    )
    told = result.stderr.strip()
    assert code == 1, told
    assert told.startswith(f"Error: The disk that holds {disk.path}"), told
    assert "is full; free some space and run again" in told
    assert "\n" not in told


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Events on a roomy disk."""
    world = new_world(tmp_path / "world")
    world.write("old.parquet", some_events(5000))
    world.write("new.parquet", some_events(5000, days=1, first_day=3))
    return world


def compacting(world: World, store: Path, name: str, day: int) -> list[str]:
    command = compact_command(world, [world.folder / f"{name}.parquet"], day)[3:]
    command[command.index(str(world.store))] = str(store)
    return [*command, "--shards", "2", "--cadence", "1d"]


def test_compaction(world: World, disk: Disk) -> None:
    store = disk.path / "store"
    first, second = compacting(world, store, "old", 3), compacting(world, store, "new", 4)
    for name, day in (("old", 3), ("new", 4)):
        assert run(*compacting(world, world.store, name, day)).exit_code == 0
    expected = read_store(world.store, NEW)

    disk.leave(100_000)
    check_full(run(*first), disk)
    assert [path.name for path in store.iterdir()] == ["LOCK"]
    disk.resize(ROOMY)
    assert run(*first).exit_code == 0
    before = read_store(store, OLD)

    config = ServerConfig(store=store, listen="127.0.0.1:0", metrics=None, poll_s=0.01)
    with Server(config) as server, connect(server.address) as client:
        refusals = 0
        for room in range(0, 2_000_000, 32_768):
            disk.leave(room)
            result = run(*second)
            if result.exit_code == 0:
                break
            refusals += 1
            check_full(result, disk)
            assert leftovers(store) == []
            assert [path.name for path in store.glob("gen*")] == ["generation-000001"]
            assert shown(client.materialize(OLD, ALL)) == before
        assert refusals > 5
    assert read_store(store, OLD) == before
    assert read_store(store, NEW) == expected


def test_compaction_from_the_real_command_line(world: World, disk: Disk) -> None:
    store = disk.path / "store"
    disk.leave(200_000)
    command = compacting(world, store, "old", 3)
    check_full(thinrow(*command), disk)
    disk.resize(ROOMY)
    assert thinrow(*command).returncode == 0


def requests(world: World) -> Path:
    users = [n % 5 + 1 for n in range(3000)]
    times = [as_of(1) + n * (2 * DAY_MS // 3000) for n in range(3000)]
    return world.write("requests.parquet", pa.table({"user_id": users, "request_ts": times}))


def check_output(command: list[object], out: Path, disk: Disk) -> pa.Table:
    """Runs a command that writes one file, on ever larger disks; an older file stays till then."""
    out.write_bytes(b"an older file")
    refusals = 0
    for power in range(24, 60):
        disk.leave(int(1.4**power))
        result = run(*command)
        if result.exit_code == 0:
            break
        refusals += 1
        check_full(result, disk)
        assert [path.name for path in disk.path.iterdir()] == [out.name]
        assert out.read_bytes() == b"an older file"
    assert refusals > 2
    assert [path.name for path in disk.path.iterdir()] == [out.name]
    return pq.read_table(out)


def test_backfill_and_materialize(world: World, disk: Disk) -> None:
    assert run(*compacting(world, world.store, "old", 3)).exit_code == 0
    events = ("--events", world.folder / "old.parquet")
    backfill = ["backfill", requests(world), "--store", world.store, *events, "--out"]
    rows = world.folder / "rows.parquet"
    assert run(*backfill, rows).exit_code == 0
    out = disk.path / "rows.parquet"
    assert check_output([*backfill, out], out, disk).equals(pq.read_table(rows))
    out.unlink()

    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as server:
        limit = ("--sequence-length", 50)
        materialize = ["materialize", rows, "--server", server.address, *limit, "--out"]
        fat, out = world.folder / "fat.parquet", disk.path / "fat.parquet"
        assert run(*materialize, fat).exit_code == 0
        assert check_output([*materialize, out], out, disk).equals(pq.read_table(fat))
