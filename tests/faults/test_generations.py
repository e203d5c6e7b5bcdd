"""Generations published under load, and stores whose CURRENT or folders are not right."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from support.load import Histories, Load, open_files, pauses
from support.small_store import copied, small_world
from support.tried import FULL, SEED, Tried, times
from support.worlds import World, as_of, new_world, running_server, some_events
from thinrow.client import connect
from thinrow.compaction.compact import compact
from thinrow.errors import ThinRowError
from thinrow.store.generation import Generation
from thinrow.store.history import digests_at
from thinrow.store.rollback import rollback
from thinrow.store.shard import BLOCK_CACHE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(1800)
KEEP = 2
PERIOD_S = 1.0 if FULL else 0.2
USERS = 30
OPEN_FILES_SPREAD_MAX = 16
"""A generation more or less that is open, and connections."""
GROWTH_BYTES_MAX = BLOCK_CACHE_BYTES + (16 << 20)
"""Blocks of new generations fill the cache, and take the places of old ones only then."""


def test_a_new_generation_every_second(tmp_path: Path) -> None:
    generations = times(3, 120)
    daily = [
        some_events(600 if day == 0 else 60, USERS, 1, SEED + day, first_day=day)
        for day in range(generations + 1)
    ]
    world = new_world(tmp_path)
    world.compact(daily[0], 1)
    users = np.arange(1, USERS + 1)
    files: list[int] = []
    memory: list[int] = []
    with running_server(world.store, "--drain", "1s") as server:
        load = Load(server, Histories(pa.concat_tables(daily)), SEED)
        load.publishing(1)
        load.published = 1
        with (
            # A process of its own: the clients' threads would not let it come to its turn.
            ProcessPoolExecutor(1, get_context("spawn")) as compacting,
            connect(server.address) as client,
            load.running("stream", "unary", "cancelling"),
        ):
            compacting.submit(int).result()
            began_s = time.monotonic()
            for day in islice(pauses(PERIOD_S), generations):
                load.publishing(day + 1)
                path = world.write(f"{day}.parquet", daily[day])
                compacting.submit(compact, world.compaction([path], day + 1, keep=KEEP)).result()
                while client.describe_store().generation <= day:
                    time.sleep(0.01)
                load.published = day + 1
                with Generation.open_current(world.store) as generation:
                    ends = np.full(USERS, as_of(day + 1))
                    found = digests_at(generation, users, ends).tolist()
                load.digests.update({(n, day + 1): d for n, d in enumerate(found, 1)})
                load.check()
                assert len(list(world.store.glob("generation-*"))) <= KEEP
                files.append(open_files(server))
                memory.append(server.resident_bytes())
            every_s = (time.monotonic() - began_s) / generations
        opened = [line for line in server.events() if line["event"] == "generation opened"]
        assert len(opened) == generations
        assert not [line for line in server.events() if line["event"] == "call failed"]
        closed_by_s = time.monotonic() + 60
        while sum(line["event"] == "generation closed" for line in server.events()) < generations:
            assert time.monotonic() < closed_by_s, "an old generation stays open"
            time.sleep(0.05)
        assert server.scrape()["thinrow_generation_open_failures_total"] == 0
        assert server.stop() == 0
    warm = len(files) // 3
    spread = max(files[warm:]) - min(files[warm:])
    assert spread <= OPEN_FILES_SPREAD_MAX, files
    grown_bytes = max(memory[warm:]) - memory[warm]
    assert grown_bytes < GROWTH_BYTES_MAX, memory
    Tried(
        "A new generation published every second under load, old ones removed",
        generations,
        "right answers or NOT_READY, from whichever generation; open files flat, and memory within "
        "RocksDB's cache",
        f"{load.seen['right']:,} examples right, {load.seen['NOT_READY']:,} NOT_READY, 0 wrong; "
        f"one every {every_s:.1f} s, open files within {spread}"
        f", memory {grown_bytes / 2**20:+.1f} MiB",
    ).keep()


NAMES = ("building", "building.new", "removing-generation-000001", "generation-000004", "plans")
CURRENTS = (None, "", "x", *(f"generation-{number:06d}\n" for number in (1, 2, 3, 9)))


def stored(world: World) -> dict[str, bytes]:
    """Every file of a store but the lock, and what people keep beside."""
    return {
        str(path.relative_to(world.store)): path.read_bytes()
        for path in sorted(world.store.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def confuse(world: World, rng: random.Random) -> None:
    """CURRENT says something else, folders of other people's lie about, copies are half done."""
    current, content = world.store / "CURRENT", rng.choice(CURRENTS)
    current.unlink()
    if content is not None:
        current.write_text(content, encoding="utf-8")
    if rng.random() < 0.3:
        (world.store / "HIGHEST").unlink()
    if rng.random() < 0.5:
        theirs = world.store / rng.choice(NAMES)
        theirs.mkdir()
        (theirs / "house.txt").write_text("x", encoding="utf-8")
    if rng.random() < 0.5:
        copy = shutil.copytree(world.store / "generation-000003", world.store / "generation-000005")
        rng.choice([path for path in copy.rglob("*") if path.is_file()]).unlink()


def test_stores_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    rng, seen = random.Random(SEED), Counter[str]()
    whole = small_world(tmp_path / "whole", SEED)
    whole.compact(some_events(6, users=4, days=1, first_day=4, seed=SEED), 5)
    tries = times(25, 1000)
    for number in range(tries):
        world = copied(whole, tmp_path / str(number))
        confuse(world, rng)
        before = stored(world)
        events = some_events(3, users=4, days=1, first_day=5, seed=number)
        keep = rng.choice((None, 1))
        try:
            report = world.compact(events, 6, keep=keep)
        except ThinRowError as error:
            assert str(error).count("\n") == 0
            assert stored(world) == before, error
            seen["refused"] += 1
        else:
            # Only where CURRENT named the newest, and then nothing but old generations went.
            assert report.generation == 4 and report.event_count == 55
            kept = {name for name in before if not name.startswith(("gen", "CURRENT", "HIGHEST"))}
            assert kept <= stored(world).keys()
            seen["built"] += 1
        if (world.store / "generation-000003").exists():
            seen["went back"] += went_back(world)
        shutil.rmtree(world.folder)
    Tried(
        "A store whose CURRENT is missing, older or damaged, with other people's folders and half "
        "copies of generations, compacted",
        tries,
        "nothing removed that no run is proven to have made, no number twice; a rollback goes on",
        f"{seen['refused']} refused and nothing changed, {seen['built']} built, "
        f"{seen['went back']} went on after a rollback; 0 files lost",
    ).keep()


def went_back(world: World) -> bool:
    """Rolls back to generation 3 once people's folders are away, and compacts on."""
    for name in NAMES:
        if (world.store / name / "house.txt").exists():
            shutil.rmtree(world.store / name)
    highest = max(int(path.name[-6:]) for path in world.store.glob("generation-*"))
    rollback(world.store, 3, "keep")
    report = world.compact(some_events(3, users=4, days=1, first_day=5, seed=1), 6)
    assert report.generation > highest and report.event_count == 55
    return True
