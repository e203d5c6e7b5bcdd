"""Backfill: thin rows for past requests, as if they had been written at request time.

The past is simulated with the watermarks that the store has, each published some time after. The
store computes the digests, which prove that pointers and store belong together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import uih_type
from thinrow.core.files.lean import LeanRows
from thinrow.core.files.parquet import joined_batches
from thinrow.core.files.paths import data_files
from thinrow.core.files.user_columns import user_type
from thinrow.errors import UsageError
from thinrow.events.canonical import (
    check_output,
)
from thinrow.events.split import Progress, SplitEvents, split_events
from thinrow.events.time_columns import TimeReader, TimeSpan
from thinrow.events.user_ids import USERS
from thinrow.jobs.served_requests import ServedRequests, read_requests
from thinrow.jobs.shard_events import ShardEvents, cut_by_events
from thinrow.jobs.thin_rows import (
    ThinRowsFile,
    mutable_type_of,
    nullable_traits,
    uih_column,
    with_plain_keys,
)
from thinrow.remote.reading import local_store
from thinrow.store.generation import Generation
from thinrow.store.hashing import shard_of
from thinrow.store.history import digests_at
from thinrow.store.scratch import scratch_beside
from thinrow.store.shard import storage_error
from thinrow.store.times import DAY_MS, readable_time
from thinrow.store.user_texts import check_texts, known_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile
    from thinrow.core.ids import IdKind
    from thinrow.jobs.config import BackfillConfig

__all__ = ["FAR_MS", "OUTPUT_ROWS", "BackfillReport", "backfill"]

FAR_MS = 2 * DAY_MS
"""Rows that follow a watermark by more than this are reported: they carry many events inside."""
OUTPUT_ROWS = 1 << 14
"""Limit on the rows read and written at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillReport:
    """Report of a run."""

    rows: int
    mutable_events: int
    """Events carried inside the rows."""
    before_first_generation: int
    """Rows that carry their whole history."""
    without_digest: int
    """Rows whose digest the store can no longer compute, for retention or erasure."""
    tied_rows: int = 0
    """Rows that leave out events of their user, as these arrived in the millisecond of the request
    and only earlier ones are history."""
    crowded_rows: int = 0
    """Those among them that leave out several events: at most one of these is the label's own."""
    far_rows: int = 0
    """Rows for which the store has no watermark in the FAR_MS before them, though events arrived
    earlier: they carry what arrived since inside."""
    first_watermark_ts: int = 0
    """The store's first watermark, ms."""
    times: dict[str, TimeSpan] = field(default_factory=dict)
    """Range of the times read, by time column."""


def backfill(config: BackfillConfig, progress: Progress = lambda *_: None) -> BackfillReport:
    """Writes a thin row for every request, in the order of the requests.

    Raises:
        UsageError: the store does not reach the requests, or was cut at other watermarks.
        InputError: a file cannot be used as it is.
        StoreError: the store cannot be read, or the disk is full.
    """
    with (
        local_store(config.store, progress, config.mirror) as store,
        Generation.open_current(store) as generation,
    ):
        files = data_files(config.events)
        request_files = data_files(config.requests)
        check_output(config.rows, [*request_files, *files])
        try:
            with scratch_beside(config.rows) as scratch:
                shards = generation.shard_count
                times = TimeReader(config.time_unit)
                requests = read_requests(config, request_files, generation, times)
                split = split_events(
                    files, generation.schema.carried, shards, scratch / "events", times, progress
                )
                _check_belonging(generation, split)
                report = _backfill(
                    config, request_files, generation, split, requests, scratch, progress
                )
                report = replace(report, times=times.spans)
                (scratch / "rows.parquet").replace(config.rows)
        except (OSError, pa.ArrowException) as error:
            raise storage_error(error, config.rows) from error
    return report


def _check_belonging(generation: Generation, split: SplitEvents) -> None:
    """Refuses events that all arrived after the store's last watermark, though it holds some."""
    start_ts = split.arrivals.start_ts
    if not generation.manifest.event_count or start_ts is None:
        return
    if start_ts >= generation.watermark_ts:
        raise UsageError(
            f"The events begin at {readable_time(start_ts)}, after the store's last watermark "
            f"{readable_time(generation.watermark_ts)}; give all events that the store was built "
            f"from, in the same --time-unit."
        )


def _backfill(
    config: BackfillConfig,
    files: Sequence[DataFile],
    generation: Generation,
    split: SplitEvents,
    requests: ServedRequests,
    scratch: Path,
    progress: Progress,
) -> BackfillReport:
    owners = shard_of(requests.user_ids, generation.shard_count)
    parts, places = [], [np.empty(0, dtype=np.int64)]
    done = mutable_events = tied_rows = crowded_rows = 0
    total = len(requests.user_ids)
    for shard in range(generation.shard_count):
        chosen = np.flatnonzero(owners == shard)
        path = scratch / f"rows-{shard:04d}.arrow"
        kind = pa.schema(
            [("uih", uih_type()), ("mutable", mutable_type_of(generation.schema.carried))]
        )
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, kind) as writer:
            texts = split.read_texts(shard, USERS.empty_table())
            if texts is not None:
                stored = known_texts(generation, texts.keys)
                check_texts(texts, stored, generation.schema.user_ids)
            events = ShardEvents(split.read(shard), requests.user_ids[chosen], generation)
            for rows in events.chunks(requests, chosen):
                mutable = events.snapshots(requests, rows)
                uih = _pointers(config, generation, requests, rows)
                writer.write_batch(pa.record_batch([uih, mutable], schema=kind))
                places.append(rows)
                done += len(rows)
                mutable_events += len(mutable.values)
                ties = events.ties(requests, rows)
                tied_rows += int((ties > 0).sum())
                crowded_rows += int((ties > 1).sum())
                progress("Writing thin rows", done, total)
        parts.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    thin = pa.concat_tables(parts)
    lean = LeanRows(nullable_traits(generation.schema.carried))
    lean.add(thin)
    thin = lean.convert(thin)
    order = np.argsort(np.concatenate(places), kind="stable")
    kind_of_users = generation.schema.user_ids
    digests = _write_rows(config, files, thin, order, scratch / "rows.parquet", kind_of_users)
    pointing = requests.pointing
    return BackfillReport(
        rows=total,
        mutable_events=mutable_events,
        before_first_generation=int((~pointing).sum()),
        without_digest=int((pointing & (digests == 0)).sum()),
        tied_rows=tied_rows,
        crowded_rows=crowded_rows,
        far_rows=_far_rows(requests, split.arrivals.start_ts),
        first_watermark_ts=int(generation.watermarks[0]),
    )


def _far_rows(requests: ServedRequests, start_ts: int | None) -> int:
    if start_ts is None:
        return 0
    since_ts = np.maximum(requests.mutable_from_ts, start_ts)
    return int((requests.request_ts - since_ts > FAR_MS).sum())


def _pointers(
    config: BackfillConfig,
    generation: Generation,
    requests: ServedRequests,
    rows: NDArray[np.int64],
) -> pa.StructArray:
    digests = np.zeros(len(rows), dtype=np.uint64)
    pointing = requests.pointing[rows]
    digests[pointing] = digests_at(
        generation, requests.user_ids[rows[pointing]], requests.end_ts[rows[pointing]]
    )
    max_lengths = np.full(len(rows), config.max_length, dtype=np.int64)
    return uih_column(requests.start_ts[rows], requests.end_ts[rows], max_lengths, digests)


def _write_rows(
    config: BackfillConfig,
    files: Sequence[DataFile],
    thin: pa.Table,
    order: NDArray[np.int64],
    path: Path,
    kind: IdKind,
) -> NDArray[np.uint64]:
    """Writes requests and thin columns side by side; returns the digests, in row order."""
    schema, batches = joined_batches(files, OUTPUT_ROWS)
    digests = [np.empty(0, dtype=np.uint64)]
    carried = np.cumsum(pc.list_value_length(thin.column("mutable")).to_numpy()[order])
    start = 0
    with ThinRowsFile(path) as file:
        for origin, batch in batches:
            table = with_plain_keys(origin, pa.table(batch), config.time_unit, kind)
            end = start + len(batch)
            for first, last in cut_by_events(carried, start, end):
                part = thin.take(pa.array(order[first:last]))
                file.write(table.slice(first - start, last - first), part)
                digests.append(pc.struct_field(part.column("uih"), "digest").to_numpy())
            start = end
        for name, kind_of in (("user_id", user_type(kind)), ("request_ts", pa.int64())):
            schema = schema.set(schema.get_field_index(name), pa.field(name, kind_of))
        file.open(pa.schema([*schema, *thin.schema]))
    return np.concatenate(digests)
