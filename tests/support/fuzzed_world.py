"""A small store with every kind of trait and stripe, and what it must answer: for the fuzzers."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

from support.built_worlds import Built
from support.oracle import DAY_MS, Event, Run, Schema, Trait
from support.scenarios import USERS, World, values
from support.tried import SEED

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = Schema(
    {
        "item": [
            Trait("item_id", "int64", key=True),
            Trait("brand", "string"),
            Trait("kind", "categorical", sparse=True),
        ],
        "feedback": [
            Trait("rating", "int8", sparse=True),
            Trait("weight", "float32", sparse=True, default=1.5),
            Trait("taste", "float16", size=3),
            Trait("seen", "bool"),
            Trait("wide", "uint64"),
        ],
    }
)
BASE_TS = 1_600_000_000_000
WATERMARKS = tuple(BASE_TS + day * DAY_MS for day in (1, 2, 3))
EVENTS = 160


@cache
def fuzzed_world(folder: Path) -> Built:
    """Three generations of a few users' events; one user is erased, and retention drops some."""
    rng = random.Random(SEED)
    runs = []
    for number, watermark_ts in enumerate(WATERMARKS):
        events = []
        for _ in range(EVENTS):
            arrival_ts = watermark_ts - rng.randrange(1, DAY_MS)
            known = {trait.name: values(trait, rng) for trait in SCHEMA.traits}
            event_id = rng.choice((None, rng.getrandbits(40)))
            user_id = rng.choice((*USERS, *USERS[:2]))
            skewed_ts = arrival_ts - rng.choice((0, 0, 5, -5, DAY_MS))
            events.append(Event(user_id, skewed_ts, arrival_ts, event_id, known))
        last = number == len(WATERMARKS) - 1
        runs.append(
            Run(
                events,
                watermark_ts,
                lookback_ms=2 * DAY_MS + DAY_MS // 2 if last else None,
                erase=frozenset({USERS[2]}) if number == 1 else frozenset(),
            )
        )
    world = World(SCHEMA, runs, list(WATERMARKS), shards=2, stripe_events=16, plain=False)
    built = Built(folder, world)
    for run in runs:
        built.compact(run)
    return built
