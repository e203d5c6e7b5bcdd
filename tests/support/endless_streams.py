"""Streams of requests without an end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.worlds import (
    START_TS,
    Answers,
    read_store,
)
from thinrow.client import ClientConfig, Pointers

if TYPE_CHECKING:
    import random
    import threading
    from collections.abc import Iterator
    from pathlib import Path


QUICK = ClientConfig(
    examples_per_request=8, requests_in_flight=3, backoff_max_s=0.1, retry_deadline_s=30
)


def some_batches(rng: random.Random, store: Path) -> tuple[list[Pointers], list[Answers]]:
    """Batches of different sizes, some larger than a request, and what they must give."""
    batches = [
        Pointers(
            user_ids=[rng.choice((1, 2, 3, 4, 5, 99)) for _ in range(size)],
            end_ts=[START_TS + 3 * 86_400_000] * size,
            start_ts=[START_TS + rng.randrange(3 * 86_400_000) for _ in range(size)],
        )
        for size in (rng.choice((0, 1, 5, 20)) for _ in range(40))
    ]
    return batches, [read_store(store, batch) for batch in batches]


def endless(batches: list[Pointers], enough: threading.Event) -> Iterator[Pointers]:
    """The batches over and over, until what was to happen has happened, and once more."""
    while not enough.is_set():
        yield from batches
    yield from batches
