"""How histories lie on disk: full stripes, then ever shorter ones, and nothing left over."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from thinrow.compaction import compact
from thinrow.schema import DIRECTORY_GROUP
from thinrow.store.generation import Generation
from thinrow.store.keys import USER_BYTES, group_and_stripe
from thinrow.store.stripe import STRIPE_EVENTS_MAX
from worlds import DAY_MS, new_world, some_events

if TYPE_CHECKING:
    from pathlib import Path

USERS = 4


def stripe_sizes(generation: Generation, user_id: int) -> list[int]:
    directories = generation.directories(np.array([user_id]))
    sizes: list[int] = (directories.stripe_ends - directories.stripe_ordinals).tolist()
    return sizes


@pytest.mark.parametrize("lookback_ms", [None, 3 * DAY_MS])
def test_stripes_grow_shorter_and_no_old_one_stays(tmp_path: Path, lookback_ms: int | None) -> None:
    rng = random.Random(7)
    world = new_world(tmp_path)
    for day in range(8):
        count = rng.choice((3, 300, 2000, 6000))
        events = world.write(f"{day}.parquet", some_events(count, USERS, 1, day, first_day=day))
        compact(world.compaction([events], day + 1, lookback_ms=lookback_ms))
        with Generation.open_current(world.store) as generation:
            kept: Counter[tuple[int, int]] = Counter()
            for shard, summary in zip(generation.shards, generation.manifest.shards, strict=True):
                for key, _ in shard.items(summary.keys):
                    user_id = int.from_bytes(key[:USER_BYTES], "big")
                    group, _ = group_and_stripe(key)
                    kept[user_id, group] += group != DIRECTORY_GROUP
            for user_id in range(1, USERS + 1):
                sizes = stripe_sizes(generation, user_id)
                # Retention may leave one that is not full in front.
                behind = sizes[1:] if lookback_ms else sizes
                full = behind.count(STRIPE_EVENTS_MAX)
                assert behind[:full] == [STRIPE_EVENTS_MAX] * full
                shorter = behind[full:]
                assert sum(shorter) < STRIPE_EVENTS_MAX
                assert shorter == sorted(shorter, reverse=True)
                assert len(shorter) <= 4
                for group in {group for _, group in kept} - {DIRECTORY_GROUP}:
                    assert kept[user_id, group] == len(sizes)
