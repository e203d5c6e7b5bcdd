"""A store so small that everything can be done to every bit of it, and what it must answer."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from support.worlds import Answers, World, days, new_world, pointers_to, read_store, some_events
from thinrow.client import Pointers
from thinrow.errors import StoreError
from thinrow.store.generation import Generation
from thinrow.store.history import digests_at
from thinrow.store.shard import block_cache
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from pathlib import Path

USERS = (1, 2, 3, 4, 99)


def small_world(folder: Path, seed: int = 0) -> World:
    """Two shards, a whole writing under a layer in each, as an increment leaves them."""
    world = new_world(folder)
    world.compact(some_events(40, users=4, seed=seed), 3, keep=1)
    world.compact(some_events(6, users=4, days=1, first_day=3, seed=seed + 1), 4, keep=1)
    return world


def all_files(store: Path) -> list[Path]:
    """Every file, also those that lie beside the generation."""
    return sorted(path for path in store.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Lookups:
    """Everything that there is to request, and the answers of the store when it was whole."""

    pointers: Pointers
    right: Answers


def lookups_of(world: World) -> Lookups:
    """All histories as of all moments, once without digests, which could hide a wrong answer."""
    bare = pointers_to(days(3, 4), USERS)
    with Generation.open_current(world.store) as generation:
        digests = digests_at(generation, bare.user_ids, bare.end_ts)
    pointers = Pointers(
        user_ids=np.tile(bare.user_ids, 2),
        end_ts=np.tile(bare.end_ts, 2),
        digests=np.concatenate([np.zeros(len(bare), np.uint64), digests]),
    )
    right = read_store(world.store, pointers)
    assert {status for status, _ in right} == {wire.STATUS_OK} and digests.all()
    return Lookups(pointers, right)


@dataclass
class Outcomes:
    """Outcomes of changing a store again and again."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def look(self, world: World, lookups: Lookups, done: str) -> StoreError | None:
        """Opens and requests as a server does, with nothing in memory from before."""
        block_cache.cache_clear()
        try:
            answers = read_store(world.store, lookups.pointers)
        except StoreError as error:
            self.counts["found"] += 1
            return error
        except Exception as error:  # whatever else it says, no operator could act on it
            self.wrong.append(f"{done}: {error!r}")
            return None
        self.counts["harmless"] += answers == lookups.right
        if answers != lookups.right:
            self.wrong.append(f"{done}: a wrong answer")
        return None

    def __iadd__(self, other: Outcomes) -> Self:
        self.counts += other.counts
        self.wrong += other.wrong
        return self

    @property
    def total(self) -> int:
        return self.counts.total() + len(self.wrong)

    @property
    def seen(self) -> str:
        return (
            f"{self.counts['found']:,} found, {self.counts['harmless']:,} harmless, "
            f"{len(self.wrong)} wrong"
        )


def copied(world: World, folder: Path) -> World:
    """A copy to do something to."""
    shutil.copytree(world.folder, folder)
    return World(folder)


def sample(everything: list[Any], count: int, seed: int) -> list[Any]:
    return random.Random(seed).sample(everything, min(count, len(everything)))
