"""Disks that fill up, at sizes drawn by chance: one sentence, nothing acknowledged is lost.

What happens to each command at ever larger disks is in hazards/test_full_disk.py; here they are
compaction, export and the online service, as often as `make faults` says.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.online_events import batch, ids_seen
from support.small_disks import ROOMY, Disk, check_full, compacting, disk, run
from support.store_contents import contents
from support.tried import SEED, Tried, times
from support.worlds import World, leftovers, new_world, running_online, some_events
from thinrow.client.online import connect_online
from thinrow.errors import StoreError
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.client.online import OnlineClient
    from thinrow.v1.online_pb2 import EventBatch

__all__ = ["disk"]

BATCH_EVENTS = 500
PAGES_BYTES = 16_384
"""More than a file system adds to be whole pages."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Events, and stores of one generation and of two, on a roomy disk."""
    world = new_world(tmp_path / "world")
    world.write("old.parquet", some_events(3000))
    world.write("new.parquet", some_events(3000, days=1, first_day=3))
    for store, runs in (("first", [("old", 3)]), ("second", [("old", 3), ("new", 4)])):
        for name, day in runs:
            assert run(*compacting(world, world.folder / store, name, day)).exit_code == 0
    return world


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("lacking", ["bytes", "files"])
def test_compaction(world: World, disk: Disk, lacking: str) -> None:
    rng, store = random.Random(SEED), disk.path / "store"
    refusals = 0
    for number in range(times(3, 80)):
        disk.resize(ROOMY)
        shutil.rmtree(store, ignore_errors=True)
        name, day, expected = ("old", 3, "first") if number % 2 == 0 else ("new", 4, "second")
        if day == 4:
            shutil.copytree(world.folder / "first", store)
        command = compacting(world, store, name, day)
        if lacking == "bytes":
            disk.leave(int(1.5 ** rng.uniform(1, 32)))
        else:
            leave_files(disk, rng.randrange(25))
        result = run(*command)
        if result.exit_code:
            refusals += 1
            check_full(result, disk)
            assert leftovers(store) == [] if store.exists() else day == 3
            assert len(list(store.glob("generation-*"))) == (day == 4)
            if day == 4:
                assert contents(store) == contents(world.folder / "first")
            roomy(disk)
            assert run(*command).exit_code == 0
        assert contents(store) == contents(world.folder / expected)
        roomy(disk)
    assert refusals
    Tried(
        fault=f"`thinrow compact` on a disk without room for its {lacking}",
        times=refusals,
        promised="One sentence; the old generation serves on; room is all it takes",
        seen="Each refused so, nothing left lying; with room, the same contents",
    ).keep()


def refusals(client: OnlineClient, again: EventBatch) -> list[str]:
    """No one knows which of those refused are on disk: a row that shows one could lose it."""
    reported = []
    for call in (lambda: ids_seen(client), lambda: list(client.append_all([again]))):
        with pytest.raises(StoreError) as raised:
            call()
        reported.append(str(raised.value))
    return reported


def leave_files(disk: Disk, files: int) -> None:
    reported = os.statvfs(disk.path)
    limit(disk, reported.f_files - reported.f_ffree + files)


def roomy(disk: Disk) -> None:
    disk.resize(ROOMY)
    limit(disk, 1 << 16)


def limit(disk: Disk, files: int) -> None:
    options = f"remount,nr_inodes={files}"
    subprocess.run(["mount", "-o", options, str(disk.path)], check=True)


@pytest.mark.timeout(3600)
def test_online_appends(disk: Disk, tmp_path: Path) -> None:
    rng, world = random.Random(SEED), new_world(tmp_path / "world")
    acknowledged, next_id, rounds, retried = set[int](), 0, times(1, 60), 0
    for _ in range(rounds):
        config = OnlineConfig(
            store=world.store,
            data=disk.path / "tier",
            schema=world.schema,
            listen="127.0.0.1:0",
            metrics=None,
        )
        disk.resize(1 << 30)
        with OnlineServer(config) as server, connect_online(server.address) as client:
            known = ids_seen(client)
            assert acknowledged <= known
            disk.leave(rng.randrange(300_000))
            refused = []
            for first in itertools.count(next_id, BATCH_EVENTS):
                ids = set(range(first, first + BATCH_EVENTS))
                try:
                    list(client.append_all([batch(client, first, BATCH_EVENTS)]))
                except StoreError as error:
                    refused.append(str(error))
                    break
                acknowledged |= ids
            again = batch(client, first, BATCH_EVENTS)
            refused += refusals(client, again)
            for sentence in refused:
                assert str(disk.path) in sentence and "is full; free some space" in sentence
                assert sentence.endswith(".") and "\n" not in sentence
        disk.resize(1 << 30)
        with OnlineServer(config) as server, connect_online(server.address) as client:
            [reported] = client.append_all([again])
            assert reported.appended + reported.duplicates == BATCH_EVENTS
            retried += reported.appended
            acknowledged |= ids
            assert ids_seen(client) == acknowledged
        next_id = first + BATCH_EVENTS
    Tried(
        fault="`thinrow online` whose disk fills up under appends",
        times=rounds,
        promised="One sentence; nothing acknowledged is lost; room and a start are all it takes",
        seen=f"{len(acknowledged):,} events acknowledged, each there once; "
        f"{retried:,} of them refused at first",
    ).keep()


@pytest.mark.timeout(3600)
def test_export(disk: Disk, tmp_path: Path) -> None:
    world = new_world(tmp_path / "world")
    with running_online(world) as server, connect_online(server.address) as client:
        reported = list(client.append_all(batch(client, at, 5000) for at in range(0, 10_000, 5000)))
        watermark_ts = reported[-1].arrival_ts + 1
        while client.describe().now_ts < watermark_ts:
            pass
        command = ["export", "--online", server.address, "--watermark", watermark_ts, "--out"]
        expected, out = tmp_path / "expected.parquet", disk.path / "events.parquet"
        assert run(*command, expected).exit_code == 0
        rng, refusals = random.Random(SEED), 0
        for _ in range(times(2, 60)):
            disk.resize(ROOMY)
            out.write_bytes(b"an older file")
            disk.leave(rng.randrange(expected.stat().st_size - PAGES_BYTES))
            check_full(run(*command, out), disk)
            assert out.read_bytes() == b"an older file"
            refusals += 1
            disk.resize(ROOMY)
            assert run(*command, out).exit_code == 0
            assert out.read_bytes() == expected.read_bytes()
            assert [path.name for path in disk.path.iterdir()] == [out.name]
    Tried(
        fault="`thinrow export` to a disk without room for its file",
        times=refusals,
        promised="One sentence; an older file stays; room is all it takes",
        seen="Each refused so, nothing left lying; with room, the same bytes",
    ).keep()
