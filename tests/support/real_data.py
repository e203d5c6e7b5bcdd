"""Real events in raw files as people have them, and fat rows of them as the oracle writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from support import datasets, oracle
from support.worlds import DAY_MS, REPEATS
from thinrow.schema import parse_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.demo.sample_data import SampleData


def users_every(count: int) -> int:
    """One user of that many; THINROW_EXAMPLES divides, so that long runs try more users."""
    return max(1, count // REPEATS)


CASES: list[tuple[str, Callable[[], SampleData], int, int]] = [
    # name, events, one user of that many, every that many events a request
    ("movielens", datasets.movielens_100k, users_every(5), 10),
    ("mathoverflow", datasets.mathoverflow, users_every(16), 20),
    ("completejourney", datasets.complete_journey, users_every(320), 20),
]


def oracle_schema(text: str) -> oracle.Schema:
    """The schema in the oracle's own terms."""
    return oracle.Schema(
        groups={
            group.name: [
                oracle.Trait(
                    name=trait.name,
                    type=trait.type.label,
                    size=0 if trait.size == 1 else trait.size,
                    sparse=trait.sparse,
                    default=trait.default,
                    key=trait.key,
                )
                for trait in group.traits
            ]
            for group in parse_schema(text).groups
        }
    )


def with_late_and_early(events: pl.DataFrame) -> pl.DataFrame:
    """Some events reach the system hours or days late, some carry a clock that runs ahead."""
    rng = np.random.default_rng(0)
    delay_ms = np.where(rng.random(len(events)) < 0.1, rng.integers(0, 3 * DAY_MS, len(events)), 0)
    ahead_ms = np.where(rng.random(len(events)) < 0.01, DAY_MS, 0)
    event_ts = events["event_ts"].to_numpy()
    return events.with_columns(
        pl.Series("arrival_ts", event_ts + delay_ms), pl.Series("event_ts", event_ts + ahead_ms)
    ).sample(fraction=1.0, shuffle=True, seed=1)


def truth(path: Path, events: pl.DataFrame, requests: pl.DataFrame, schema: oracle.Schema) -> None:
    """Fat rows as the oracle writes them."""
    traits = [trait.name for trait in schema.traits]
    raw = [
        oracle.Event(
            user_id=row["user_id"],
            event_ts=row["event_ts"],
            arrival_ts=row["arrival_ts"],
            event_id=None,
            traits={trait: row[trait] for trait in traits},
        )
        for row in events.iter_rows(named=True)
    ]
    past = oracle.Past(raw, schema, DAY_MS)
    sequences = [
        past.sees(user_id, request_ts).sequence
        for user_id, request_ts in requests.select("user_id", "request_ts").iter_rows()
    ]
    oracle.fat_rows(path, requests.to_arrow(), sequences, schema)
