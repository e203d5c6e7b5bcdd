"""Backfill: thin rows for past requests, as if they had been written at request time.

The past is simulated with the watermarks that the store has, each published some time after. The
store computes the digests, which prove that pointers and store belong together.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
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
from thinrow.core.shards import check_parts, shard_of
from thinrow.errors import UsageError
from thinrow.events.canonical import check_output
from thinrow.events.split import Progress, SplitEvents, split_events
from thinrow.events.time_columns import TimeReader, TimeSpan
from thinrow.events.user_ids import USERS
from thinrow.jobs.row_parts import (
    ThinRowsFolder,
    byte_count,
    check_no_part_column,
    check_unused,
    publish_folder,
)
from thinrow.jobs.served_requests import ServedRequests, read_requests
from thinrow.jobs.shard_events import ShardEvents, cut_by_events
from thinrow.jobs.thin_rows import (
    ThinRowsFile,
    ThinRowsWriter,
    mutable_type_of,
    nullable_traits,
    uih_column,
    with_plain_keys,
)
from thinrow.remote.reading import local_store
from thinrow.store.generation import Generation
from thinrow.store.history import digests_at
from thinrow.store.place import is_url
from thinrow.store.scratch import scratch_beside
from thinrow.store.shard import storage_error
from thinrow.store.times import DAY_MS, readable_time
from thinrow.store.user_texts import check_texts, known_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile
    from thinrow.core.ids import IdKind
    from thinrow.jobs.config import BackfillConfig
    from thinrow.schema import Schema
    from thinrow.store.manifest import Manifest

__all__ = [
    "FAR_MS",
    "OUTPUT_ROWS",
    "TIES",
    "BackfillReport",
    "RowCounts",
    "backfill",
    "check_belonging",
    "thin_columns",
    "thin_schema",
    "write_rows",
    "written_schema",
]

TIES = "ties"
"""Column of the events of a user that arrived in the millisecond of the request."""

FAR_MS = 2 * DAY_MS
"""Rows that follow a watermark by more than this are reported: they carry many events inside."""
OUTPUT_ROWS = 1 << 14
"""Limit on the rows read and written at once."""
_ROWS = "rows"
"""Name of the output in the scratch folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Counts of some thin rows."""

    rows: int = 0
    mutable_events: int = 0
    """Events carried inside the rows."""
    before_first_generation: int = 0
    """Rows that carry their whole history."""
    without_digest: int = 0
    """Rows whose digest the store can no longer compute, for retention or erasure."""
    tied_rows: int = 0
    """Rows that leave out events of their user, as these arrived in the millisecond of the request
    and only earlier ones are history."""
    crowded_rows: int = 0
    """Those among them that leave out several events: at most one of these is the label's own."""
    far_rows: int = 0
    """Rows for which the store has no watermark in the FAR_MS before them, though events arrived
    earlier: they carry what arrived since inside."""

    @staticmethod
    def of(requests: ServedRequests, thin: pa.Table, start_ts: int | None) -> RowCounts:
        """Counts rows.

        Args:
            requests: The requests of the rows.
            thin: Their columns of `thin_schema`.
            start_ts: Time at which the events begin, ms; None without events.
        """
        carried = pc.list_value_length(thin.column("mutable")).to_numpy()
        digests = pc.struct_field(thin.column("uih"), "digest").to_numpy()
        ties = thin.column(TIES).to_numpy()
        far = 0
        if start_ts is not None:
            since_ts = np.maximum(requests.mutable_from_ts, start_ts)
            far = int((requests.request_ts - since_ts > FAR_MS).sum())
        return RowCounts(
            rows=thin.num_rows,
            mutable_events=int(carried.sum()),
            before_first_generation=int((~requests.pointing).sum()),
            without_digest=int((requests.pointing & (digests == 0)).sum()),
            tied_rows=int((ties > 0).sum()),
            crowded_rows=int((ties > 1).sum()),
            far_rows=far,
        )

    @staticmethod
    def total(counts: Iterable[RowCounts]) -> RowCounts:
        """Returns the counts of all rows."""
        names = [item.name for item in fields(RowCounts)]
        every = list(counts)
        return RowCounts(**{name: sum(getattr(one, name) for one in every) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillReport(RowCounts):
    """Report of a run."""

    first_watermark_ts: int = 0
    """The store's first watermark, ms."""
    row_bytes: int = 0
    """Bytes that were written."""
    times: dict[str, TimeSpan] = field(default_factory=dict)
    """Range of the times read, by time column."""


def backfill(config: BackfillConfig, progress: Progress = lambda *_: None) -> BackfillReport:
    """Writes a thin row for every request, in the order of the requests, or of those of its part.

    Raises:
        UsageError: the store does not reach the requests, or was cut at other watermarks.
        InputError: a file cannot be used as it is.
        StoreError: the store cannot be read, or the disk is full.
    """
    if is_url(config.rows):
        raise UsageError(
            f"--out is {config.rows}; without --engine spark it is the path of a file."
        )
    rows = Path(config.rows)
    if config.row_parts:
        check_unused(rows)
    with (
        local_store(config.store, progress, config.mirror) as store,
        Generation.open_current(store) as generation,
    ):
        files = data_files(config.events)
        request_files = data_files(config.requests)
        check_output(rows, [*request_files, *files])
        if config.row_parts:
            check_parts(config.row_parts, "--row-parts", generation.shard_count)
            check_no_part_column(request_files)
        try:
            with scratch_beside(rows) as scratch:
                shards = generation.shard_count
                times = TimeReader(config.time_unit)
                requests = read_requests(config, request_files, generation, times)
                split = split_events(
                    files, generation.schema.carried, shards, scratch / "events", times, progress
                )
                check_belonging(generation.manifest, split.arrivals)
                counts = _backfill(
                    config, request_files, generation, split, requests, scratch, progress
                )
                if config.row_parts:
                    publish_folder(scratch / _ROWS, rows)
                else:
                    (scratch / _ROWS).replace(rows)
                return BackfillReport(
                    **asdict(counts),
                    first_watermark_ts=int(generation.watermarks[0]),
                    row_bytes=byte_count(rows),
                    times=times.spans,
                )
        except (OSError, pa.ArrowException) as error:
            raise storage_error(error, rows) from error


def check_belonging(manifest: Manifest, arrivals: TimeSpan) -> None:
    """Refuses events that all arrived after a store's last watermark, though it holds some.

    Raises:
        UsageError: They did.
    """
    start_ts = arrivals.start_ts
    if not manifest.event_count or start_ts is None:
        return
    if start_ts >= manifest.watermark_ts:
        raise UsageError(
            f"The events begin at {readable_time(start_ts)}, after the store's last watermark "
            f"{readable_time(manifest.watermark_ts)}; give all events that the store was built "
            f"from, in the same --time-unit."
        )


def thin_schema(schema: Schema) -> pa.Schema:
    """Returns the columns that backfill computes for the rows of a store of a schema."""
    return pa.schema(
        [("uih", uih_type()), ("mutable", mutable_type_of(schema.carried)), (TIES, pa.int64())]
    )


def thin_columns(
    config: BackfillConfig,
    generation: Generation,
    events: ShardEvents,
    requests: ServedRequests,
    chosen: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]:
    """Computes pointers and mutable events of requests.

    Args:
        config: The run.
        generation: The store, with the shards of these requests open.
        events: Raw events of the requests' users.
        requests: Requests.
        chosen: Places of those to compute.

    Yields:
        Places, in the order of `chosen`, and their columns of `thin_schema`; few events at once.
    """
    kind = thin_schema(generation.schema)
    for rows in events.chunks(requests, chosen):
        mutable = events.snapshots(requests, rows)
        uih = _pointers(config, generation, requests, rows)
        ties = pa.array(events.ties(requests, rows))
        yield rows, pa.record_batch([uih, mutable, ties], schema=kind)


def written_schema(requests: pa.Schema, thin: pa.Schema, kind: IdKind) -> pa.Schema:
    """Returns the columns of thin rows: those of requests, and `thin` beside them."""
    for name, kind_of in (("user_id", user_type(kind)), ("request_ts", pa.int64())):
        requests = requests.set(requests.get_field_index(name), pa.field(name, kind_of))
    return pa.schema([*requests, *thin])


def write_rows(
    file: ThinRowsWriter,
    requests: pa.Table,
    carried: NDArray[np.int64],
    take: Callable[[int, int], pa.Table],
) -> None:
    """Writes requests and thin columns side by side, few events at once.

    Args:
        file: Writes them.
        requests: The requests' columns, with plain keys.
        carried: Events that each row carries; shape (rows,).
        take: Returns the thin columns of a range of these rows.
    """
    for first, last in cut_by_events(np.cumsum(carried), 0, requests.num_rows):
        file.write(requests.slice(first, last - first), take(first, last))


def _backfill(
    config: BackfillConfig,
    files: Sequence[DataFile],
    generation: Generation,
    split: SplitEvents,
    requests: ServedRequests,
    scratch: Path,
    progress: Progress,
) -> RowCounts:
    """Writes all rows into the scratch folder."""
    owners = shard_of(requests.user_ids, generation.shard_count)
    parts, places, counts = [], [np.empty(0, dtype=np.int64)], []
    done, total = 0, len(requests.user_ids)
    for shard in range(generation.shard_count):
        chosen = np.flatnonzero(owners == shard)
        path = scratch / f"rows-{shard:04d}.arrow"
        with (
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, thin_schema(generation.schema)) as writer,
        ):
            texts = split.read_texts(shard, USERS.empty_table())
            if texts is not None:
                stored = known_texts(generation, texts.keys)
                check_texts(texts, stored, generation.schema.user_ids)
            events = ShardEvents(split.read(shard), requests.user_ids[chosen], generation)
            for rows, batch in thin_columns(config, generation, events, requests, chosen):
                writer.write_batch(batch)
                places.append(rows)
                start_ts = split.arrivals.start_ts
                counts.append(RowCounts.of(requests.take(rows), pa.table(batch), start_ts))
                done += len(rows)
                progress("Writing thin rows", done, total)
        parts.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    thin = pa.concat_tables(parts)
    lean = LeanRows(nullable_traits(generation.schema.carried))
    lean.add(thin)
    thin = lean.convert(thin)
    order = np.argsort(np.concatenate(places), kind="stable")
    kind, path = generation.schema.user_ids, scratch / _ROWS
    if config.row_parts:
        with ThinRowsFolder(path, scratch, config.row_parts, kind) as folder:
            _write_rows(config, files, thin, order, folder, kind)
    else:
        with ThinRowsFile(path) as file:
            _write_rows(config, files, thin, order, file, kind)
    return RowCounts.total(counts)


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
    file: ThinRowsWriter,
    kind: IdKind,
) -> None:
    """Writes all rows, in the order of the requests."""
    schema, batches = joined_batches(files, OUTPUT_ROWS)
    carried = pc.list_value_length(thin.column("mutable")).to_numpy()
    start = 0
    for origin, batch in batches:
        table = with_plain_keys(origin, pa.table(batch), config.time_unit, kind)
        places = order[start : start + len(batch)]

        def take(first: int, last: int, places: NDArray[np.int64] = places) -> pa.Table:
            return thin.take(pa.array(places[first:last]))

        write_rows(file, table, carried[places], take)
        start += len(batch)
    file.open(written_schema(schema, thin.schema, kind))
