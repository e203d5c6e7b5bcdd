"""Logs of a topic in memory, applied to tiers without a broker.

Run as a program, `topic_logs.py FOLDER LOG` applies a log that was pickled. It is started often,
so it imports only what applying needs; making a log needs most of the tests' helpers.
"""

from __future__ import annotations

import pickle
import random
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.online import database
from thinrow.online.erasure import erase_from_tier
from thinrow.online.topic.settings import TopicSettings
from thinrow.online.topic.tier import ReadMessage, TopicTier
from thinrow.schema import parse_schema
from thinrow.store.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SCHEMA = """
[g]
x = "int64"
t = { type = "string", sparse = true }
"""
DAY_MS = 86_400_000
PARTITIONS = 4
START_TS = 1_700_000_000_000
LOG_USERS = 50
TEXTS = (None, "é")


def messages(seed: int, count: int) -> list[ReadMessage]:
    """A log: some events come twice, clocks are skewed, and some messages have no events."""
    from support.event_topics import encoded, partition
    from support.oracle import Event, Schema, Trait

    schema = Schema({"g": [Trait("x", "int64"), Trait("t", "string", sparse=True)]})
    rng = random.Random(seed)
    ends = [0] * PARTITIONS
    log = []
    for number in range(count):
        user = rng.randrange(LOG_USERS)
        place = partition(user, "int64", PARTITIONS)
        now_ts = START_TS + number // 3
        events = [
            Event(
                user, now_ts, 0, rng.randrange(count), {"x": number, "t": rng.choice((None, "é"))}
            )
            for _ in range(rng.choice((1, 1, 1, 4)))
        ]
        value = encoded(user, events, schema) if rng.random() < 0.9 else None
        timestamp_ts = now_ts + rng.choice((0, 0, 0, 50, -50))
        log.append(ReadMessage(place, ends[place], timestamp_ts, value))
        ends[place] += 1
    return log


@contextmanager
def opened_topic(
    folder: Path,
    partitions: Sequence[int] = range(PARTITIONS),
    toml: str = SCHEMA,
    dedup_window_ms: int = DAY_MS,
    generation: Generation | None = None,
) -> Iterator[TopicTier]:
    """A replica's tier, without a server; a new one begins behind a generation if one is given."""
    tier = TopicTier(
        TopicSettings(
            folder=folder,
            dedup_window_ms=dedup_window_ms,
            retention_ms=DAY_MS,
            wall=lambda: START_TS,
            topic="events",
            bootstrap_servers="",
            partition_count=PARTITIONS,
            partitions=tuple(partitions),
        )
    )
    try:
        tier.use_schema(parse_schema(toml))
        if generation is not None:
            tier.histories = lambda: nullcontext(generation)
            assert tier.take_up(generation).is_accepted
        if not tier.has_begun:
            tier.begin_with_first_message()
        yield tier
    finally:
        tier.close()


def apply_all(
    tier: TopicTier,
    log: Sequence[ReadMessage],
    rng: random.Random,
    generation: Generation | None = None,
) -> None:
    """Applies what a tier lacks, in groups of any sizes, and takes a generation up when it may."""
    at = 0
    is_taken_up = generation is None
    while at < len(log) or not is_taken_up:
        size = rng.choice((1, 7, 100, 500))
        tier.apply(log[at : at + size])
        at += size
        if generation is not None and not is_taken_up:
            tier.histories = partial(nullcontext, generation)
            is_taken_up = tier.take_up(generation).is_accepted
            if is_taken_up:
                erase_from_tier(tier, generation)


def contents(tier: TopicTier) -> list[tuple[bytes, bytes]]:
    """Events, ids and places."""
    pairs = [*tier.database.items(b"e", b"f"), *tier.database.items(b"i", b"j")]
    return [*pairs, *tier.database.items(b"mplace", b"mplacf")]


if __name__ == "__main__":
    folder, log, *stores = map(Path, sys.argv[1:])
    # Memory tables become files often, so that a kill finds some of the log on disk.
    database.MEMTABLE_BYTES = 1 << 16  # type: ignore[attr-defined]
    generation = Generation.open_current(stores[0]) if stores else None
    with opened_topic(folder) as tier:
        print("opened", flush=True)
        rows = pickle.loads(log.read_bytes())  # noqa: S301 - our own
        apply_all(tier, [ReadMessage(*row) for row in rows], random.Random(), generation)
