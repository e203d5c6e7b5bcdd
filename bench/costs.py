"""Costs other than time to read: bytes on disk and on the wire, and the work of compaction."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import polars as pl
import pyarrow.parquet as pq
from expected import Examples
from thinrow.client import Projection, read_thin_rows
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.lookup.batch_lookup import BatchLookup
from workload import SCHEMA, TRAITS, workload
from world import CLUSTERED, DAY_MS, IN_TIME_ORDER, Tenant, built, size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from world import World

DAILY_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Bytes of one order of requests, everything included."""

    order: str
    store_bytes: int
    rows_bytes: int
    fat_bytes: int

    @property
    def share(self) -> float:
        return (self.store_bytes + self.rows_bytes) / self.fat_bytes


def stored(folder: Path, users: int, days: int) -> list[Stored]:
    """Store and thin rows beside fat rows: 20 requests a user and day, newest 4,096 events."""
    made = workload(users=users, events_median=4000, days=365, request_days=days)
    requests = made.requests.with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))
    orders = {
        IN_TIME_ORDER: requests,
        CLUSTERED: requests.sort("user_id", "request_ts", maintain_order=True),
    }
    found = []
    with built("stored", folder, made.events, SCHEMA, orders, made.watermark_ts) as world:
        for order, requested in orders.items():
            fat = folder / "fat.parquet"
            Examples.of(world.histories, requested, 4096, TRAITS, len(requested)).write_fat_rows(
                fat
            )
            found.append(
                Stored(
                    order=order,
                    store_bytes=world.store_bytes,
                    rows_bytes=size(world.rows(order)),
                    fat_bytes=size(fat),
                )
            )
            fat.unlink()
    return found


@dataclass(frozen=True, kw_only=True)
class Wire:
    """Bytes per example of 20 requests of one user in a call, both ways, and of a fat row."""

    call_bytes: float
    own_bytes: float
    """All events of an example in the traits' own types."""
    int64_bytes: float


def wire(world: World, users: int = 64, requests: int = 20) -> Wire:
    """Make one call per user with all their requests."""
    tenant = Tenant(name="", sequence_length=4096, traits=TRAITS, batch_examples=requests)
    projection = Projection(4096, traits=TRAITS)
    before = world.metrics()
    request_bytes = examples = 0
    for rows, _ in read_thin_rows(world.rows(CLUSTERED), examples=requests):
        if examples == users * requests:
            break
        assert len(set(rows.pointers.user_ids.tolist())) == 1
        world.served.client.materialize(rows, projection)
        request_bytes += len(BatchLookup(rows, projection).whole().request())
        examples += len(rows)
    sent_bytes = world.metrics()["sent_bytes"] - before["sent_bytes"]
    events = int(world.examples(CLUSTERED, tenant).lengths[:examples].sum())
    return Wire(
        call_bytes=(request_bytes + sent_bytes) / examples,
        own_bytes=events * world.histories.bytes_per_event(TRAITS) / examples,
        int64_bytes=events * 8 * len(TRAITS) / examples,
    )


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """Medians."""

    events: int
    build_s: float
    build_cpu_s: float
    rebuild_s: float
    increment_s: float
    copy_s: float

    @property
    def events_per_core_s(self) -> float:
        return self.events / self.build_cpu_s

    @property
    def increment_share(self) -> float:
        """Time of a rebuild without the raw copy of the store."""
        return (self.increment_s - self.copy_s) / self.rebuild_s


def compaction(folder: Path, users: int, rounds: int, report: Callable[[str], None]) -> Compaction:
    """Build 99 % of the events, add the rest as one day's increment, and rebuild everything."""
    folder.mkdir()
    made = workload(users=users, events_median=4000, days=365, request_days=1)
    events = made.events
    cut = int(events["event_ts"].quantile(1 - DAILY_SHARE) or 0)
    watermark_ts = made.watermark_ts
    cut = cut // DAY_MS * DAY_MS
    # A day holds less than 1 %, so the increment is the newest 1 % of the events, some days.
    schema = folder / "schema.toml"
    schema.write_text(SCHEMA)
    old, new, everything = (folder / f"{name}.parquet" for name in ("old", "new", "all"))
    events.filter(pl.col("event_ts") < cut).write_parquet(old)
    events.filter(pl.col("event_ts") >= cut).write_parquet(new)
    events.write_parquet(everything)

    def run(store: Path, source: Path, until_ts: int) -> tuple[float, float]:
        config = CompactionConfig(
            store=store, events=[source], schema=schema, watermark_ts=until_ts
        )
        before, start_s = os.times(), time.perf_counter()
        compact(config)
        took_s, after = time.perf_counter() - start_s, os.times()
        return took_s, sum(after[:4]) - sum(before[:4])

    taken: list[tuple[float, ...]] = []
    for number in range(rounds + 1):
        report(f"compaction: round {number} of {rounds}")
        store, fresh, copied = folder / "store", folder / "fresh", folder / "copied"
        build = run(store, old, cut)
        start_s = time.perf_counter()
        shutil.copytree(store, copied)
        os.sync()
        copy_s = time.perf_counter() - start_s
        increment = run(store, new, watermark_ts)
        rebuild = run(fresh, everything, watermark_ts)
        taken.append((*build, increment[0], rebuild[0], copy_s))
        for path in (store, fresh, copied):
            shutil.rmtree(path)
    build_s, build_cpu_s, increment_s, rebuild_s, copy_s = (
        median(column) for column in zip(*taken[1:], strict=True)
    )
    return Compaction(
        events=pq.read_metadata(old).num_rows,
        build_s=build_s,
        build_cpu_s=build_cpu_s,
        rebuild_s=rebuild_s,
        increment_s=increment_s,
        copy_s=copy_s,
    )
