"""Figures taken from thin rows and their store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from thinrow.client import Projection, read_thin_rows, row_count
from thinrow.core.files.parquet import open_parquet
from thinrow.errors import InputError
from thinrow.jobs.materialize import materialize
from thinrow.store.times import DAY_MS
from thinrow.wall.curve import Curve
from thinrow.wall.model import events_read, increment_events
from thinrow.wall.workloads import assumed_workload

if TYPE_CHECKING:
    from thinrow.client import Client
    from thinrow.wall.figures import Figures
    from thinrow.wall.model import Workload

__all__ = ["measured_workload"]

SAMPLE_ROWS = 4096
"""Thin rows that are measured, from the middle of their file."""
LENGTH_STEP = 2
"""Ratio of one measured length to the next."""
REQUEST_EXAMPLES = 512


def measured_workload(client: Client, rows: Path, figures: Figures) -> Workload:
    """Takes every figure but CPU seconds from thin rows and the store that they point at.

    A sample of the rows is requested at several lengths, written as fat rows, and weighed. CPU
    seconds, and what layers and compactions cost, are those of the order of ``figures`` in which
    examples share a history most nearly as often as here.

    Raises InputError where there are no rows, or none of them has a history.
    """
    store = client.describe_store()
    keys = open_parquet(rows).read(["user_id", "request_ts"])
    if not len(keys) or not store.event_count:
        raise InputError(f"{rows} and its store hold nothing to measure; give other ones.")
    bounds = pc.min_max(keys["request_ts"]).as_py()
    days = max((bounds["max"] - bounds["min"]) / DAY_MS, 1)
    users = pc.count_distinct(keys["user_id"]).as_py()
    with TemporaryDirectory() as folder:
        part = Path(folder) / "rows.parquet"
        table = open_parquet(rows).read()
        pq.write_table(table.slice(max(0, (len(table) - SAMPLE_ROWS) // 2), SAMPLE_ROWS), part)
        whole, oldest_ts = _history_lengths(client, part)
        sharing = _sharing(part)
        steps = int(np.ceil(np.log(whole.max()) / np.log(LENGTH_STEP)))
        lengths = np.unique([min(LENGTH_STEP**n, whole.max()) for n in range(steps + 1)]).tolist()
        sent, fat = zip(*(_weighed(client, part, length) for length in lengths), strict=True)
    # A row's own bytes cannot be requested: length 0 stands for all. Those of one event stand in.
    events = (0.0, *(float(np.minimum(whole, length).mean()) for length in lengths))
    sent, fat = (sent[0], *sent), (fat[0], *fat)
    retention_days = max((store.watermark_ts - oldest_ts) / DAY_MS, 1)
    stored_events = store.event_count / store.user_count
    events_per_day = stored_events / retention_days
    row_age_days = max((store.watermark_ts - pc.mean(keys["request_ts"]).as_py()) / DAY_MS, 0)
    event_bytes = store.stored_bytes / store.event_count
    histories = whole.astype(np.float64)
    read = [events_read(histories, length, events_per_day, row_age_days) for length in lengths]
    return replace(
        assumed_workload(figures, figures.nearest(sharing)),
        order="as the rows lie",
        sharing=sharing,
        users=store.user_count,
        requests_per_day=len(keys) / users / days,
        histories=histories,
        stored_events=stored_events,
        events_per_day=events_per_day,
        increment_events=increment_events(histories, events_per_day),
        rows_kept_days=days,
        fat_row=Curve(events, fat),
        thin_row=rows.stat().st_size / len(keys),
        stored=Curve.line(0, event_bytes),
        store_read=Curve(events, (0.0, *(count * event_bytes / sharing for count in read))),
        answer=Curve(events, sent),
    )


def _sharing(rows: Path) -> float:
    """Examples of a lookup for each of its users."""
    users = examples = 0
    for thin_rows, _ in read_thin_rows(rows, examples=REQUEST_EXAMPLES):
        examples += len(thin_rows)
        users += len(np.unique(np.asarray(thin_rows.pointers.user_ids)))
    return examples / users


def _history_lengths(client: Client, rows: Path) -> tuple[np.ndarray[Any, Any], int]:
    """Events of each row's history, and the oldest one's ``event_ts``."""
    lengths, oldest = [], []
    batches = (thin_rows for thin_rows, _ in read_thin_rows(rows, examples=REQUEST_EXAMPLES))
    for batch in client.stream(batches, Projection(traits=("event_ts",))):
        lengths.append(np.diff(batch.offsets))
        oldest += [int(batch.values["event_ts"].min(initial=np.iinfo(np.int64).max))]
    found = np.concatenate(lengths)
    if not found.any():
        raise InputError(f"None of {rows}'s sample has a history; give other rows.")
    return found, min(oldest)


def _weighed(client: Client, rows: Path, length: int) -> tuple[float, float]:
    """Bytes of an answer and of a fat row, for each row."""
    count = row_count(rows)
    projection = Projection(length)
    batches = (thin_rows for thin_rows, _ in read_thin_rows(rows, examples=REQUEST_EXAMPLES))
    sent = sum(answer.answer_bytes for answer in client.answers(batches, projection))
    fat = rows.with_name("fat.parquet")
    materialize(client, rows, projection, fat)
    return sent / count, fat.stat().st_size / count
