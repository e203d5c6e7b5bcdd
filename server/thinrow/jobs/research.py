"""Research: from a raw interaction log to a store and thin rows for training, validation and test.

All of the log is past, so generations are free: the store is cut so often that a row carries
hardly an event inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.client import Projection, connect
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.files.permissions import make_folder
from thinrow.errors import InputError, ThinRowError, UsageError
from thinrow.events.time_columns import TimeSpan
from thinrow.events.units import PLAUSIBLE_UNTIL_TS, UNIT_NAMES, likely_unit
from thinrow.jobs.backfill import OUTPUT_ROWS, backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.interaction_log import LogColumns, read_log
from thinrow.jobs.interactions import (
    PARTS,
    fewest_cuts,
    interactions,
    requests_of,
    split_leave_one_out,
    split_time,
    thinned,
)
from thinrow.jobs.materialize import materialize
from thinrow.jobs.thin_rows import thin_rows_writer
from thinrow.store.scratch import scratch_beside
from thinrow.store.shard import storage_error
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.events.split import Progress
    from thinrow.events.units import TimeUnit
    from thinrow.jobs.interactions import Interactions
    from thinrow.jobs.research_config import ResearchConfig

__all__ = ["CUTS_MAX", "FatBytes", "ResearchReport", "research"]

CUTS_MAX = 20_000
"""Limit on a store's generations but the last: each costs 16 bytes of its manifest."""
FAT_EVENTS_MAX = 20_000_000
"""Limit on the events of the fat rows that are written to be measured, but for one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FatBytes:
    """Size of the same rows as fat rows."""

    bytes: int
    """Bytes of all rows, in proportion to the events of those measured."""
    rows_measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResearchReport:
    """Report of a run."""

    events: int
    users: int
    items: int
    time_unit: TimeUnit | None
    """Unit of the log's times, where they are integers."""
    span: TimeSpan
    generations: int
    """Watermarks of the store."""
    rows: dict[str, int]
    """Rows of each part."""
    history_events: int
    """Events in the histories of all rows."""
    mutable_events: int
    """Those carried inside the rows."""
    store_bytes: int
    rows_bytes: int
    fat: FatBytes
    left_out: tuple[str, ...]
    """Columns of the log of types that no trait has."""


def research(config: ResearchConfig, progress: Progress = lambda *_: None) -> ResearchReport:
    """Writes the folder: all of it, or nothing.

    Raises:
        UsageError: The folder has files.
        InputError: The log cannot be used as it is.
        StoreError: The disk is full.
    """
    out = config.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is no empty folder; name another one with --out.")
    columns = LogColumns(user=config.user, item=config.item, time=config.time)
    log = read_log(config.events, columns, config.time_unit, progress)
    found = interactions(log)
    span = TimeSpan.of(found.events["arrival_ts"].to_numpy())
    if span.latest_ts >= PLAUSIBLE_UNTIL_TS:
        raise InputError(
            f"{log.name}: {config.time} reaches {readable_time(span.latest_ts)}; correct such "
            f"times, or leave their rows out."
        )
    unit = likely_unit(span.latest_ts)
    if unit is not None and unit != "ms":
        raise InputError(
            f"{log.name}: {config.time} ends at {readable_time(span.latest_ts)}; they look "
            f"like {UNIT_NAMES[unit]}, so give --time-unit {unit}."
        )
    try:
        with scratch_beside(out) as scratch:
            return _research(config, found, log.time_unit, span, scratch, progress)
    except (OSError, pa.ArrowException) as error:
        raise storage_error(error, out) from error


def _research(
    config: ResearchConfig,
    found: Interactions,
    time_unit: TimeUnit | None,
    span: TimeSpan,
    scratch: Path,
    progress: Progress,
) -> ResearchReport:
    requests, parts = _split_requests(config, found.events)
    events, wanted = scratch / "events.parquet", scratch / "requests.parquet"
    rows, folder = scratch / "rows.parquet", scratch / "out"
    make_folder(folder)
    found.events.write_parquet(events)
    requests.drop("since_ts").write_parquet(wanted)
    found.items.write_parquet(folder / "items.parquet")
    if found.users is not None:
        found.users.write_parquet(folder / "users.parquet")
    (folder / "schema.toml").write_text(found.schema, encoding="utf-8")
    cuts_ts = fewest_cuts(requests, CUTS_MAX)
    compact(
        CompactionConfig(
            store=folder / "store",
            events=events,
            schema=folder / "schema.toml",
            watermark_ts=max(span.latest_ts, 0) + 1,
            cuts_ts=cuts_ts,
            time_unit="ms",
        ),
        progress,
    )
    report = backfill(
        BackfillConfig(
            requests=wanted, store=folder / "store", events=events, rows=rows, time_unit="ms"
        ),
        progress,
    )
    thin = pq.read_table(rows)
    counts, rows_bytes = {}, 0
    for number, part in enumerate(PARTS):
        path = folder / f"{part}.parquet"
        chosen = thin.filter(pa.array(parts == number))
        write_rows(chosen, path)
        counts[part] = len(chosen)
        rows_bytes += path.stat().st_size
    lengths = requests["history_length"]
    fat = _fat_bytes(folder / "store", thin, scratch, progress)
    folder.replace(config.out)
    return ResearchReport(
        events=len(found.events),
        users=found.events["user_id"].n_unique(),
        items=len(found.items),
        time_unit=time_unit,
        span=span,
        generations=len(cuts_ts) + 1,
        rows=counts,
        history_events=int(lengths.sum()),
        mutable_events=report.mutable_events,
        store_bytes=sum(path.stat().st_size for path in (config.out / "store").rglob("*")),
        rows_bytes=rows_bytes,
        fat=fat,
        left_out=found.left_out,
    )


def _split_requests(config: ResearchConfig, events: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Returns the requests, and each one's number in PARTS."""
    requests = requests_of(events)
    if not len(requests):
        raise InputError(
            "No user has two interactions or more, so there is no history to learn from; check "
            "--user."
        )
    shares = config.time_shares
    parts = split_leave_one_out(requests) if shares is None else split_time(requests, shares)
    kept = thinned(requests, parts, config.every)
    if not (parts[kept] == 0).any():
        raise InputError(
            f"--split {config.split} leaves nothing to train on, since users have too few "
            f"interactions; leave-one-out needs users with four or more."
        )
    return requests.filter(pl.Series(kept)), pl.Series(parts[kept])


def write_rows(rows: pa.Table, path: Path) -> None:
    """Writes thin rows as backfill does."""
    with thin_rows_writer(path, rows.schema) as writer:
        writer.write_table(rows, row_group_size=OUTPUT_ROWS)


def _fat_bytes(store: Path, rows: pa.Table, scratch: Path, progress: Progress) -> FatBytes:
    """Measures the rows as fat rows: all, or the middle of them where they are too many.

    Raises:
        ThinRowError: The store gives rows another number of events than the log has.
    """
    ends = np.cumsum(rows.column("history_length").to_numpy())
    first = int(np.searchsorted(ends, max(int(ends[-1]) - FAT_EVENTS_MAX, 0) // 2))
    before = int(ends[first - 1]) if first else 0
    last = max(int(np.searchsorted(ends, before + FAT_EVENTS_MAX, side="right")), first + 1)
    expected = int(ends[last - 1]) - before
    thin, fat = scratch / "measured.parquet", scratch / "fat.parquet"
    write_rows(rows.slice(first, last - first), thin)
    with connect(store) as client:
        report = materialize(client, thin, Projection(), fat, progress)
    if report.events != expected:
        raise ThinRowError(
            f"The store has {report.events} events for rows whose histories have {expected}; "
            f"report this as a bug."
        )
    return FatBytes(
        bytes=round(fat.stat().st_size * int(ends[-1]) / expected), rows_measured=report.rows
    )
