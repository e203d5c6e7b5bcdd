"""A new generation every second under load, old ones removed: right answers from all of them."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from load import Histories, Load, open_files, pauses
from thinrow.client import connect
from thinrow.compaction import compact
from thinrow.store.generation import Generation
from thinrow.store.history import digests_at
from thinrow.store.shard import BLOCK_CACHE_BYTES
from tried import FULL, SEED, Tried, times
from worlds import as_of, new_world, running_server, some_events

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
