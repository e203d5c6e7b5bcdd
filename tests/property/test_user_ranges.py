"""A shard that is built one range of users after the other is the same as one built at once."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import Built, new_folder
from support.scenarios import World, bulk, examples, worlds
from support.store_contents import contents
from support.worlds import DAY_MS, new_world, some_events
from thinrow.compaction.shard import LAST_USER, ShardBuild
from thinrow.store.current import require_current_folder
from thinrow.store.manifest import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from thinrow.store.user_texts import UserTexts

at_once = ShardBuild.add


def in_ranges(rng: random.Random, count: int) -> mock._patch[object]:
    """Lets builds take their events in ranges of users, cut at users and between them."""

    def add(
        build: ShardBuild,
        events: pa.Table,
        last_user: int = LAST_USER,
        texts: UserTexts | None = None,
    ) -> None:
        assert last_user == LAST_USER
        users = events.column("user_id").to_numpy().view(np.uint64)
        cuts = {rng.choice([0, rng.getrandbits(64), *users.tolist()]) for _ in range(count)}
        first = 0
        for last in sorted({*cuts, LAST_USER}):
            is_in = (users >= np.uint64(first)) & (users <= np.uint64(last))
            at_once(build, events.filter(is_in), last, texts)
            first = last + 1

    return mock.patch.object(ShardBuild, "add", add)


def digests(store: Path) -> list[str | None]:
    return [shard.kv_xxh3_128 for shard in read_manifest(require_current_folder(store)).shards]


def check_same(world: World, rng: random.Random) -> None:
    with new_folder() as folder:
        one, other = Built(folder / "one", world), Built(folder / "other", world)
        for run in world.runs:
            one.compact(run)
            with in_ranges(rng, 3):
                other.compact(run)  # its report is compared with the oracle's
            assert digests(one.store) == digests(other.store)
        assert contents(one.store) == contents(other.store)


@given(worlds(coded=True), st.randoms(use_true_random=False))
@examples(18)
def test_ranges_of_any_world(world: World, rng: random.Random) -> None:
    check_same(world, rng)


@given(worlds(most_runs=3, coded=True), st.integers(0, 2**32))
@examples(2)
def test_ranges_of_long_histories(world: World, seed: int) -> None:
    check_same(bulk(world, seed, 6000), random.Random(seed))


def test_ranges_of_many_users(tmp_path: Path) -> None:
    """More ranges than there are chunks, layers, a new group, retention, and a report as before."""
    reports, stores = [], []
    for name in ("one", "other"):
        world = new_world(tmp_path / name)
        with in_ranges(random.Random(7), 0 if name == "one" else 9):
            found = [world.compact(some_events(3000, users=400), 3, shards=2)]
            schema = world.schema.read_text()
            found.append(world.compact(some_events(30, 9, 1, 1, first_day=3), 4, shards=None))
            world.schema.write_text(schema + '\n[more]\ncount = { type = "int8", sparse = true }\n')
            found.append(world.compact(some_events(30, 9, 1, 2, first_day=4), 5, shards=None))
            late = some_events(30, 9, 1, 3, first_day=5)
            found.append(world.compact(late, 6, shards=None, lookback_ms=4 * DAY_MS))
        reports.append([asdict(report) for report in found])
        stores.append(world.store)
    assert reports[0] == reports[1]
    assert digests(stores[0]) == digests(stores[1])
    assert contents(stores[0]) == contents(stores[1])
    assert reports[0][-1]["events_dropped"] > 0


def test_ranges_cover_all_users(tmp_path: Path) -> None:
    """A mistake of an engine is found before anything is published."""

    def half(build: ShardBuild, events: pa.Table, **_: object) -> None:
        few = events.filter(pc.less(events.column("user_id"), 3))
        at_once(build, few, 3)

    def outside(build: ShardBuild, events: pa.Table, **_: object) -> None:
        at_once(build, events.slice(0, 0), 1 << 40)
        at_once(build, events)

    for wrong, says in ((half, "a range of users is missing"), (outside, "users of another range")):
        world = new_world(tmp_path / wrong.__name__)
        with (
            mock.patch.object(ShardBuild, "add", wrong),
            pytest.raises(AssertionError, match=says),
        ):
            world.compact(some_events(), 3)
        assert not (world.store / "CURRENT").exists()
