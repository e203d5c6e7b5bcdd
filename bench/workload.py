"""Made-up events and requests of the shape that recommenders see, the same for the same seed.

Users differ widely in how much they do: most of them little, a few very much. They come back in
sessions of some minutes; each request falls into one, and so does each event. Items are Zipf
distributed and hashed to 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

DAY_MS = 24 * 3600 * 1000
FIRST_DAY = 19_000
"""Days since the epoch on which the histories begin."""
ITEMS = 2_000_000
SESSION_MS = 12 * 60 * 1000
SESSIONS_PER_DAY = 3
EVENTS_MAX = 100_000

SCHEMA = """\
[item]
item_id = { type = "int64", key = true }
author_id = { type = "int64" }
category = "categorical"

[feedback]
action = "int8"
like = { type = "int8", default = 0 }
share = { type = "int8", default = 0 }

[use]
watch_ms = "int32"
duration_ms = "int32"
"""
TRAITS = ("item_id", "author_id", "category", "action", "like", "share", "watch_ms", "duration_ms")


@dataclass(frozen=True, slots=True)
class Workload:
    """Events of everyone, and requests over the last days."""

    events: pl.DataFrame
    """user_id, event_ts and the traits, in the order of time."""

    requests: pl.DataFrame
    """user_id and request_ts, in the order of time."""

    watermark_ts: int
    """The midnight after the last event."""


def workload(
    *,
    users: int,
    events_median: int,
    days: int,
    request_days: int,
    requests_per_day: int = 20,
    spread: float = 0.9,
    seed: int = 0,
) -> Workload:
    """Makes a workload.

    users: how many there are.
    events_median: events of the middle user; others have a tenth or ten times as many.
    days: how long the histories are.
    request_days: on how many of the last days there are requests.
    requests_per_day: of each user.
    spread: standard deviation of the logarithm of a user's events; 0: all have the same number.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.lognormal(np.log(events_median), spread, users)
    lengths = np.clip(np.rint(drawn) if spread == 0 else drawn, 20, EVENTS_MAX).astype(np.int64)
    count = int(lengths.sum())
    user = np.repeat(np.arange(users), lengths)
    event_ts = session_times(rng, user, rng.integers(0, days, count))
    item = rng.zipf(1.2, count) % ITEMS
    events = pl.DataFrame(
        {
            "user_id": user,
            "event_ts": event_ts,
            "item_id": hashed(item),
            "author_id": hashed(item // 40),
            "category": (item % 60).astype(np.int64),
            "action": rng.integers(0, 6, count).astype(np.int8),
            "like": (rng.random(count) < 0.04).astype(np.int8),
            "share": (rng.random(count) < 0.01).astype(np.int8),
            "watch_ms": rng.exponential(20_000, count).astype(np.int32),
            "duration_ms": (1000 * (5 + item % 90)).astype(np.int32),
        }
    ).sort("event_ts", "user_id")
    request_users = np.repeat(np.arange(users), request_days * requests_per_day)
    day = np.tile(np.repeat(np.arange(days - request_days, days), requests_per_day), users)
    requests = pl.DataFrame(
        {"user_id": request_users, "request_ts": session_times(rng, request_users, day)}
    ).sort("request_ts", "user_id")
    return Workload(events, requests, (FIRST_DAY + days) * DAY_MS)


def session_times(rng: np.random.Generator, user: np.ndarray, day: np.ndarray) -> np.ndarray:
    """A moment in one of the user's sessions of that day, for each pair; ms, int64."""
    session = rng.integers(0, SESSIONS_PER_DAY, len(user))
    key = (user * 1_000_003 + day) * SESSIONS_PER_DAY + session
    # Where in the day a session lies follows from its key, the same for events and requests.
    start = hashed(key).view(np.uint64) % np.uint64(DAY_MS - SESSION_MS)
    within = rng.integers(0, SESSION_MS, len(user))
    times: np.ndarray = (FIRST_DAY + day) * DAY_MS + start.astype(np.int64) + within
    return times


def hashed(values: np.ndarray) -> np.ndarray:
    """Scatters integers over 63 bits."""
    mixed = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(1)).astype(np.int64)
