"""A disk that fills up: one sentence, what was there before stays, and room is all it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_disks import ROOMY, Disk, check_full, compacting, disk, run
from support.worlds import (
    ALL,
    DAY_MS,
    World,
    as_of,
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
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["disk"]

OLD, NEW = pointers_to(days(1, 2, 3)), pointers_to(days(3, 4))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Events on a roomy disk."""
    world = new_world(tmp_path / "world")
    world.write("old.parquet", some_events(5000))
    world.write("new.parquet", some_events(5000, days=1, first_day=3))
    return world


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
        for room in range(0, 2_000_000, 65_536):
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
    for power in range(12, 30, 2):
        disk.leave(2**power)
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
