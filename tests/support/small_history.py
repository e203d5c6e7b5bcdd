"""A store of two generations and a fill, as tests/compat/ has it from earlier versions.

The archive there was written by this program, with the ThinRow of that time and three shards:
`int64` and `string` are stores of manifest formats 2 and 3, by the kind of user ids.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.filling.config import FillConfig
from thinrow.filling.fill import fill
from thinrow.store.times import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

START_TS = 1_700_000_000_000
SCHEMA = """
[item]
item_id = { type = "int64" }
brand = { type = "string", codes = "vocabulary", sparse = true }
"""
FILLED = """
[price]
cents = { type = "int64", sparse = true }
"""


def user_ids(numbers: Iterable[int], kind: str) -> pa.Array:
    if kind == "string":
        return pa.array([f"user-{number}" for number in numbers])
    return pa.array(list(numbers), pa.int64())


def day_of_events(day: int, kind: str) -> pa.Table:
    days = [[n % 40 - 3 for n in range(400)], [n % 5 for n in range(10)], list(range(5, 37))]
    numbers = days[day]
    count = len(numbers)
    return pa.table(
        {
            "user_id": user_ids(numbers, kind),
            "event_ts": [START_TS + day * DAY_MS + n for n in range(count)],
            "event_id": [1000 * day + n for n in range(count)],
            "item_id": [7 * n % 11 for n in range(count)],
            "brand": [["acme", "bolt", None][n % 3] for n in range(count)],
        }
    )


def compact_day(store: Path, day: int, kind: str, shards: int | None = None) -> None:
    """Adds one day of events as a generation."""
    work = store.with_name(f"{store.name}-work")
    work.mkdir()
    path, schema = work / "events.parquet", work / "schema.toml"
    pq.write_table(day_of_events(day, kind), path)
    schema.write_text(SCHEMA + ('[user]\nid = "string"\n' if kind == "string" else ""))
    compact(
        CompactionConfig(
            events=[str(path)],
            store=store,
            watermark_ts=START_TS + (day + 1) * DAY_MS,
            schema=schema if day == 0 else None,
            shards=shards,
        )
    )
    shutil.rmtree(work)


def fill_prices(store: Path) -> None:
    """Fills the prices of all items."""
    work = store.with_name(f"{store.name}-work")
    work.mkdir()
    path, schema = work / "cents.parquet", work / "filled.toml"
    prices = pa.table({"item_id": list(range(11)), "cents": [100 * n for n in range(11)]})
    pq.write_table(prices, path)
    schema.write_text(SCHEMA + FILLED)
    fill(FillConfig(store=store, values=[str(path)], group="price", schema=schema, by="item_id"))
    shutil.rmtree(work)


def build(store: Path, kind: str, shards: int) -> None:
    """Builds a store of a kind of user ids."""
    compact_day(store, 0, kind, shards)
    compact_day(store, 1, kind)
    if kind == "int64":
        fill_prices(store)
