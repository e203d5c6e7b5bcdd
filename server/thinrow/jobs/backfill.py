"""Backfill: thin rows for past requests, as if they had been written at request time.

The past is simulated with the watermarks that the store has, each published some time after. The
store computes the digests, which prove that pointers and store belong together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.parquet import joined_batches, open_parquet
from thinrow.core.files.paths import data_files
from thinrow.errors import InputError, UsageError
from thinrow.events.canonical import (
    canonical_type,
    check_output,
    from_canonical,
    user_ids,
)
from thinrow.events.order import ordered, without_duplicates
from thinrow.events.split import Progress, SplitEvents, split_events
from thinrow.events.times import TimeReader, TimeSpan
from thinrow.events.units import PLAUSIBLE_UNTIL_TS
from thinrow.jobs.rows_file import thin_rows_writer
from thinrow.store.generation import Generation
from thinrow.store.hashing import shard_of
from thinrow.store.history import bisect_left, digests_at
from thinrow.store.narrow import ranges, starts_of
from thinrow.store.scratch import scratch_beside
from thinrow.store.shard import storage_error
from thinrow.store.times import DAY_MS, Cadence, readable_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile
    from thinrow.jobs.config import BackfillConfig
    from thinrow.schema import Schema

FAR_MS = 2 * DAY_MS
"""Rows further than this behind a watermark are reported: they carry many events inside."""
MUTABLE_EVENTS_PER_CHUNK = 1 << 20
REQUESTS_PER_CHUNK = 1 << 15
OUTPUT_ROWS = 1 << 14
"""Bounds on what is held at once, beside one shard's events and some 70 bytes a request."""

UIH_TYPE = pa.struct(
    [
        ("start_ts", pa.int64()),
        ("end_ts", pa.int64()),
        ("max_length", pa.int64()),
        ("digest", pa.uint64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillReport:
    """What a run did."""

    rows: int
    mutable_events: int
    """Events carried inside the rows."""
    before_first_generation: int
    """Rows that carry their whole history."""
    without_digest: int
    """Rows whose digest the store cannot tell any more, for retention or erasure."""
    far_rows: int = 0
    """Rows for which the store has no watermark in the FAR_MS before them, though events arrived
    earlier: they carry what arrived since inside."""
    first_watermark_ts: int = 0
    """The store's first watermark, ms."""
    times: dict[str, TimeSpan] = field(default_factory=dict)
    """Range of the times read, by time column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requests:
    """What each request was served from; int64 arrays of shape (requests,)."""

    user_ids: NDArray[np.int64]
    request_ts: NDArray[np.int64]
    start_ts: NDArray[np.int64]
    end_ts: NDArray[np.int64]
    mutable_from_ts: NDArray[np.int64]
    """Events that arrived since then are mutable."""


def backfill(config: BackfillConfig, progress: Progress = lambda *_: None) -> BackfillReport:
    """Writes a thin row for every request, in the order of the requests.

    Raises:
        UsageError: the store does not reach the requests, or was cut at other watermarks.
        InputError: a file cannot be used as it is.
        StoreError: the store cannot be read, or the disk is full.
    """
    with Generation.open_current(config.store) as generation:
        files = data_files(config.events)
        asked = data_files(config.requests)
        check_output(config.rows, [*asked, *files])
        try:
            with scratch_beside(config.rows) as scratch:
                shards = len(generation.shards)
                times = TimeReader(config.time_unit)
                requests = _read_requests(config, asked, generation, times)
                split = split_events(
                    files, generation.schema, shards, scratch / "events", times, progress
                )
                _check_belonging(generation, split)
                report = _backfill(config, asked, generation, split, requests, scratch, progress)
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


def _read_requests(
    config: BackfillConfig, files: Sequence[DataFile], generation: Generation, times: TimeReader
) -> _Requests:
    users_read, times_read = [], []
    for path in files:
        file = open_parquet(path)
        names = file.schema_arrow.names
        for required in ("user_id", "request_ts"):
            if required not in names:
                raise InputError(f"{path} has no column {required}; every request needs one.")
        for reserved in ("uih", "mutable"):
            if reserved in names:
                raise InputError(
                    f"{path} already has a column {reserved}, which backfill writes; rename it."
                )
        table = file.read(["user_id", "request_ts"])
        users_read.append(user_ids(path, table.column("user_id")).to_numpy())
        read = times.read(path, table.column("request_ts"), "request_ts")
        times_read.append(read.ms.to_numpy())
        times.finish(path)
    request_ts = np.concatenate(times_read)
    served_from = _watermarks(config, generation, request_ts)
    start_ts = np.zeros_like(request_ts)
    if config.lookback_ms is not None:
        start_ts = request_ts - config.lookback_ms
    before_first = served_from < generation.watermarks[0]
    end_ts = np.where(before_first, start_ts, served_from)
    return _Requests(
        user_ids=np.concatenate(users_read),
        request_ts=request_ts,
        # A lookback shorter than the generation is old leaves nothing of it: an empty window.
        start_ts=np.minimum(start_ts, end_ts),
        end_ts=end_ts,
        mutable_from_ts=np.where(before_first, np.iinfo(np.int64).min, served_from),
    )


def _watermarks(
    config: BackfillConfig, generation: Generation, request_ts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The newest watermark published by each request; below the first where there was none."""
    stored = generation.watermarks
    published_ts = request_ts - config.publish_delay_ms
    newest = np.searchsorted(stored, published_ts, side="right") - 1
    if config.cadence is not None:
        _check_cut(config.cadence, stored[: int(newest.max(initial=-1)) + 1])
    cadence = config.cadence
    run = generation.manifest.run
    if cadence is None and run.cadence_ms is not None:
        cadence = Cadence(run.cadence_ms, run.cadence_offset_ms)
    plausible = published_ts[request_ts < PLAUSIBLE_UNTIL_TS]
    if cadence is not None and len(plausible):
        wanted = cadence.at_or_before(int(plausible.max()))
        if wanted > stored[-1]:
            raise UsageError(
                f"The last requests were served from watermark {wanted}, and the store only "
                f"reaches {stored[-1]}; compact up to --watermark {wanted} first."
            )
    return np.where(newest < 0, stored[0] - 1, stored[newest])


def _check_cut(cadence: Cadence, cut: NDArray[np.int64]) -> None:
    """Refuses watermarks that are not every point of a grid; the last may lie off it."""
    if not len(cut):
        return
    first, last = int(cut[0]), int(cut[-1])
    begin = cadence.at_or_before(first - 1) + cadence.length_ms
    count = (cadence.at_or_before(last) - begin) // cadence.length_ms + 1
    # Counted first: a cadence of a millisecond would fill the memory.
    on_grid = cut[: -1 if cadence.at_or_before(last) != last else None]
    if count != len(on_grid) or (on_grid != begin + cadence.length_ms * np.arange(count)).any():
        raise UsageError(
            f"The store was not cut at every multiple of {cadence.length_ms} ms (and an offset of "
            f"{cadence.offset_ms} ms) from {first} to {last}; leave --cadence out to take the "
            f"store's watermarks as they are, or give the --cadence that compact was given and its "
            f"--cadence-offset."
        )


def _backfill(
    config: BackfillConfig,
    files: Sequence[DataFile],
    generation: Generation,
    split: SplitEvents,
    requests: _Requests,
    scratch: Path,
    progress: Progress,
) -> BackfillReport:
    owners = shard_of(requests.user_ids, len(generation.shards))
    parts, places = [], [np.empty(0, dtype=np.int64)]
    done = mutable_events = 0
    total = len(requests.user_ids)
    for shard in range(len(generation.shards)):
        chosen = np.flatnonzero(owners == shard)
        path = scratch / f"rows-{shard:04d}.arrow"
        kind = pa.schema([("uih", UIH_TYPE), ("mutable", mutable_type(generation.schema))])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, kind) as writer:
            events = _Mutable(split.read(shard), requests.user_ids[chosen], generation)
            for rows in events.chunks(requests, chosen):
                mutable = events.snapshots(requests, rows)
                uih = _pointers(config, generation, requests, rows)
                writer.write_batch(pa.record_batch([uih, mutable], schema=kind))
                places.append(rows)
                done += len(rows)
                mutable_events += len(mutable.values)
                progress("Writing thin rows", done, total)
        parts.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    thin = pa.concat_tables(parts)
    order = np.argsort(np.concatenate(places), kind="stable")
    digests = _write_rows(config, files, thin, order, scratch / "rows.parquet")
    pointing = requests.mutable_from_ts != np.iinfo(np.int64).min
    return BackfillReport(
        rows=total,
        mutable_events=mutable_events,
        before_first_generation=int((~pointing).sum()),
        without_digest=int((pointing & (digests == 0)).sum()),
        far_rows=_far_rows(requests, split.arrivals.start_ts),
        first_watermark_ts=int(generation.watermarks[0]),
    )


def _far_rows(requests: _Requests, start_ts: int | None) -> int:
    if start_ts is None:
        return 0
    since_ts = np.maximum(requests.mutable_from_ts, start_ts)
    return int((requests.request_ts - since_ts > FAR_MS).sum())


def mutable_type(schema: Schema) -> pa.DataType:
    """Arrow type of the column ``mutable``: the snapshot, oldest event first."""
    traits = [
        pa.field(trait.name, from_canonical(pa.array([], canonical_type(trait)), trait).type)
        for trait in schema.traits
    ]
    ids = [pa.field(name, pa.int64()) for name in ("event_ts", "arrival_ts", "event_id")]
    return pa.list_(pa.struct([*ids, *traits]))


class _Mutable:
    """One shard's events, ready to be cut into snapshots."""

    def __init__(
        self, events: pa.Table, user_ids: NDArray[np.int64], generation: Generation
    ) -> None:
        schema = generation.schema
        frame = pl.from_arrow(events)
        assert isinstance(frame, pl.DataFrame)
        # The raw events may still hold what the store was told to erase.
        asking = np.unique(user_ids)
        erased_ts = generation.directories(asking).erased_ts
        frame = frame.join(pl.DataFrame({"user_id": asking, "erased_ts": erased_ts}), on="user_id")
        frame = frame.filter(pl.col("arrival_ts") >= pl.col("erased_ts")).drop("erased_ts")
        frame = without_duplicates(frame, schema)
        # In a snapshot events stand by event_ts; a row's number in this order is its rank. Sorted
        # by arrival first: events that agree in all else then stand alike on every machine.
        frame = frame.sort("arrival_ts").with_columns(visible_ts="event_ts")
        frame = ordered(frame, schema).drop("visible_ts")
        self._schema = schema
        self._frame = frame
        users = frame["user_id"].to_numpy()
        arrival = frame["arrival_ts"].to_numpy()
        self._by_arrival = np.lexsort([arrival, users])
        self._users = users[self._by_arrival]
        self._arrival_ts = arrival[self._by_arrival]

    def _bounds(
        self, requests: _Requests, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        user_ids = requests.user_ids[rows]
        low = np.searchsorted(self._users, user_ids, side="left")
        high = np.searchsorted(self._users, user_ids, side="right")
        first = bisect_left(self._arrival_ts, low, high, requests.mutable_from_ts[rows])
        last = bisect_left(self._arrival_ts, low, high, requests.request_ts[rows])
        return first, np.maximum(last - first, 0)

    def chunks(self, requests: _Requests, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Cuts rows so that each part carries a bounded number of events."""
        _, counts = self._bounds(requests, rows)
        for first, last in cut_by_events(np.cumsum(counts), 0, len(rows)):
            yield rows[first:last]

    def snapshots(self, requests: _Requests, rows: NDArray[np.int64]) -> pa.ListArray:
        """The column ``mutable`` of some requests."""
        first, counts = self._bounds(requests, rows)
        owner = np.repeat(np.arange(len(rows)), counts)
        picked = self._by_arrival[ranges(first, counts)]
        picked = picked[np.lexsort([picked, owner])]
        frame = self._frame[picked]
        columns = [frame[name].to_arrow() for name in ("event_ts", "arrival_ts", "event_id")]
        for trait in self._schema.traits:
            canonical = frame[trait.name].to_arrow().cast(canonical_type(trait))
            columns.append(from_canonical(canonical, trait))
        kind = mutable_type(self._schema)
        fields = [kind.value_type.field(index) for index in range(kind.value_type.num_fields)]
        events = pa.StructArray.from_arrays(columns, fields=fields)
        return pa.ListArray.from_arrays(pa.array(starts_of(counts), pa.int32()), events, type=kind)


def cut_by_events(carried: NDArray[np.int64], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cuts rows ``[start, end)`` so that each part carries a bounded number of events.

    ``carried`` are the events of all rows up to each, that row included.
    """
    while start < end:
        before = int(carried[start - 1]) if start else 0
        stop = int(np.searchsorted(carried, before + MUTABLE_EVENTS_PER_CHUNK, side="right"))
        stop = min(max(stop, start + 1), start + REQUESTS_PER_CHUNK, end)
        yield start, stop
        start = stop


def _pointers(
    config: BackfillConfig, generation: Generation, requests: _Requests, rows: NDArray[np.int64]
) -> pa.StructArray:
    digests = np.zeros(len(rows), dtype=np.uint64)
    pointing = requests.mutable_from_ts[rows] != np.iinfo(np.int64).min
    digests[pointing] = digests_at(
        generation, requests.user_ids[rows[pointing]], requests.end_ts[rows[pointing]]
    )
    return pa.StructArray.from_arrays(
        [
            pa.array(requests.start_ts[rows]),
            pa.array(requests.end_ts[rows]),
            pa.array(np.full(len(rows), config.max_length, dtype=np.int64)),
            pa.array(digests),
        ],
        fields=[UIH_TYPE.field(index) for index in range(UIH_TYPE.num_fields)],
    )


def _write_rows(
    config: BackfillConfig,
    files: Sequence[DataFile],
    thin: pa.Table,
    order: NDArray[np.int64],
    path: Path,
) -> NDArray[np.uint64]:
    """Writes requests and thin columns side by side; returns the digests, in row order."""
    schema, batches = joined_batches(files, OUTPUT_ROWS)
    digests = [np.empty(0, dtype=np.uint64)]
    carried = np.cumsum(pc.list_value_length(thin.column("mutable")).to_numpy()[order])
    start = 0
    writer = None
    try:
        for file, batch in batches:
            table = pa.table(batch)
            reader = TimeReader(config.time_unit)
            times = reader.read(file, table.column("request_ts"), "request_ts")
            for name, column in (
                ("user_id", user_ids(file, table.column("user_id"))),
                ("request_ts", times.ms),
            ):
                table = table.set_column(table.column_names.index(name), name, column)
            end = start + len(batch)
            for first, last in cut_by_events(carried, start, end):
                rows = table.slice(first - start, last - first)
                part = thin.take(pa.array(order[first:last]))
                for name in ("uih", "mutable"):
                    rows = rows.append_column(name, part.column(name))
                digests.append(pc.struct_field(part.column("uih"), "digest").to_numpy())
                if writer is None:
                    writer = thin_rows_writer(path, rows.schema)
                writer.write_table(rows)
            start = end
        if writer is None:
            for name in ("user_id", "request_ts"):
                schema = schema.set(schema.get_field_index(name), pa.field(name, pa.int64()))
            writer = thin_rows_writer(path, pa.schema([*schema, *thin.schema]))
    finally:
        if writer is not None:
            writer.close()
    return np.concatenate(digests)
