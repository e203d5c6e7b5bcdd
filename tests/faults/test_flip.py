"""Every single bit of a small store, flipped in turn: found or harmless, never a wrong answer."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.small_store import Lookups, Outcomes, all_files, copied, lookups_of, small_world
from support.tried import FULL, SEED, Tried, times
from support.worlds import World, random_bits

PROCESSES = 2
BITS_AT_ONCE = 4096
Place = tuple[str, int]
"""A file by its path in the store, and the number of a bit in it."""


def flip_each(world: World, lookups: Lookups, places: list[Place]) -> Outcomes:
    """Flips one bit after another of a copy, each back before the next."""
    outcomes = Outcomes()
    with TemporaryDirectory() as folder:
        hurt = copied(world, Path(folder) / "world")
        for name, bit in places:
            file = os.open(hurt.store / name, os.O_RDWR)
            [byte] = os.pread(file, 1, bit // 8)
            os.pwrite(file, bytes([byte ^ 1 << bit % 8]), bit // 8)
            outcomes.look(hurt, lookups, f"bit {bit} of {name}")
            os.pwrite(file, bytes([byte]), bit // 8)
            os.close(file)
        outcomes.look(hurt, lookups, "nothing")  # all is as it was
    outcomes.counts["harmless"] -= 1
    return outcomes


@pytest.mark.timeout(3600)
def test_every_bit(tmp_path: Path) -> None:
    world = small_world(tmp_path / "world", SEED)
    lookups = lookups_of(world)
    files = all_files(world.store)
    if FULL:
        bits = [(path, bit) for path in files for bit in range(8 * path.stat().st_size)]
    else:
        bits = list(random_bits(files, 250, SEED))
    places = [(str(path.relative_to(world.store)), bit) for path, bit in bits]
    outcomes = Outcomes()
    if FULL:
        parts = [places[at : at + BITS_AT_ONCE] for at in range(0, len(places), BITS_AT_ONCE)]
        # Where one bit ends the whole process, this raises.
        with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
            for part in pool.map(flip_each, [world] * len(parts), [lookups] * len(parts), parts):
                outcomes += part
    else:
        outcomes += flip_each(world, lookups, places)
    assert not outcomes.wrong, outcomes.wrong[:20]
    assert outcomes.total == len(places)
    assert outcomes.counts["found"] > times(1, 4) * outcomes.counts["harmless"]
    Tried(
        fault="One bit of a store flipped"
        + (": each of every file, in turn" if FULL else ", drawn by chance"),
        times=len(places),
        promised="An error that names the file, or the right answer; never a wrong one",
        seen=outcomes.seen,
    ).keep()
