"""A store of made-up histories of one length, and thin rows that point into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig

DAY_MS = 24 * 3600 * 1000
SPAN_DAYS = 1000
TRAITS = ("item_id", "watch_ms", "action", "event_ts")
SCHEMA = '[item]\nitem_id = "int64"\n[use]\nwatch_ms = "int32"\naction = "int8"\n'


@dataclass(frozen=True)
class Sample:
    """Paths of the data."""

    store: Path
    rows: Path


def build(folder: Path, *, users: int, events: int, requests: int) -> Sample:
    """Makes histories of `events` events each, and `requests` rows per user about all of one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    count = users * events
    times = np.sort(rng.integers(0, SPAN_DAYS * DAY_MS, (users, events)), axis=1)
    raw, request_file = folder / "events.parquet", folder / "requests.parquet"
    schema, store, rows = folder / "schema.toml", folder / "store", folder / "rows.parquet"
    pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), events),
            "event_ts": times.reshape(-1),
            "item_id": rng.zipf(1.3, count).clip(max=10**9),
            "watch_ms": rng.integers(0, 100_000, count),
            "action": rng.integers(0, 5, count),
        }
    ).write_parquet(raw)
    schema.write_text(SCHEMA)
    watermark_ts = SPAN_DAYS * DAY_MS
    compact(
        CompactionConfig(
            store=store, events=[raw], schema=schema, watermark_ts=watermark_ts, time_unit="ms"
        )
    )
    pl.DataFrame(
        {
            "user_id": np.tile(np.arange(users), requests),
            "request_ts": np.full(users * requests, watermark_ts, np.int64),
            "label": rng.integers(0, 2, users * requests),
        }
    ).write_parquet(request_file)
    backfill(
        BackfillConfig(requests=request_file, store=store, events=[raw], rows=rows, time_unit="ms")
    )
    return Sample(store, rows)
