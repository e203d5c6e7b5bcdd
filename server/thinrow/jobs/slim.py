"""Slim: a dataset of fat rows becomes events and thin rows that show the very same histories.

Three phases, so that memory holds one part: the fat rows are read piece by piece and split by
user, each event once and its rows by key; every partition of users is stitched; the outputs are
put together from the parts. Finished parts lie in a scratch folder beside the rows, and are not
made again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.core.files.arrow import conformed_batch, joint_schema, uih_type
from thinrow.core.files.lean import LeanRows
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import data_files
from thinrow.core.runs import offsets_of, ranges
from thinrow.errors import InputError
from thinrow.events.canonical import (
    FINER_NS,
    check_output,
)
from thinrow.events.time_columns import TimeReader, TimeSpan
from thinrow.events.user_ids import UserIdReader
from thinrow.jobs.batch_files import LZ4, open_batches, read_batch, write_batches
from thinrow.jobs.facts import Disagreement, Facts, first_generation, total
from thinrow.jobs.fat import (
    Piece,
    check_keys,
    derived_schema,
    event_schema,
    fat_batches,
    finest_unit,
    has_event_ids,
    passing_columns,
    pieces,
)
from thinrow.jobs.fat_codes import codes_of
from thinrow.jobs.fat_users import read_users, with_names, write_users
from thinrow.jobs.finished_parts import Scratch, locked_folder
from thinrow.jobs.layout import FatLayout, LayoutTally
from thinrow.jobs.stitch import FatRows, Stitched
from thinrow.jobs.thin_rows import (
    ThinRowsFile,
    event_table,
    mutable_column,
    mutable_type_of,
    nullable_traits,
    uih_column,
    with_finer_times,
    with_plain_keys,
)
from thinrow.schema import parse_schema, to_stored
from thinrow.store.hashing import file_fingerprint, shard_of
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile
    from thinrow.events.split import Progress
    from thinrow.jobs.config import SlimConfig
    from thinrow.schema import Schema

__all__ = [
    "KEYS",
    "OUTPUT_ROWS",
    "PARTITIONS_MAX",
    "PARTITION_EVENTS",
    "ROWS",
    "VERSION",
    "SlimReport",
    "slim",
]

PARTITION_EVENTS = 1 << 23
"""Fat events that are stitched at once, about; one user's always stay together."""
PARTITIONS_MAX = 512
OUTPUT_ROWS = 1 << 14
"""Rows in a row group of thin rows."""
VERSION = 3
"""Format of the scratch folder."""

ROWS = pa.schema([(name, pa.int64()) for name in ("row", "user_id", "request_ts", "length")])
KEYS = pa.schema([("key", pa.uint64())])


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimReport:
    """Report of a run."""

    facts: Facts
    fat_bytes: int
    event_bytes: int
    row_bytes: int
    """Bytes of the files; 0 if nothing was written."""
    watermark_ts: int
    """Watermark to compact the events to: the rows point at nothing later."""
    written: bool
    times: dict[str, TimeSpan]
    """Range of the times read, by time column."""


def slim(config: SlimConfig, progress: Progress = lambda *_: None) -> SlimReport:
    """Writes events, and a thin row for every fat row.

    Killed at any point it leaves what was at the outputs, and the next run goes on.

    Raises:
        InputError: a file cannot be used as it is.
        UsageError: another run is at work on the same outputs.
        StoreError: the disk is full, or fails.
    """
    files = data_files(config.fat)
    for out in (config.events, config.rows, config.written_schema):
        check_output(out, files)
    if config.schema is None:
        text = derived_schema(files)
    else:
        text = config.schema.read_text(encoding="utf-8")
    parsed = parse_schema(text)
    _refuse_codes(files, parsed)
    schema = parsed.carried
    if not any(
        passing_columns(file, schema) and open_parquet(file).metadata.num_rows for file in files
    ):
        raise InputError(f"There are no fat rows in {files[0]}; name the right files.")
    try:
        config.events.parent.mkdir(parents=True, exist_ok=True)
        folder = config.rows.with_name(f".{config.rows.name}-slim")
        with locked_folder(folder):
            report = _Run(config, files, schema, folder, progress).report()
            if report.written and config.schema is None:
                config.written_schema.write_text(text, encoding="utf-8")
            shutil.rmtree(folder)
        return report
    except (OSError, pa.ArrowException) as error:
        raise storage_error(error, config.rows) from error


def _refuse_codes(files: list[DataFile], schema: Schema) -> None:
    """Refuses files of `thinrow materialize`, which have codes where events have values."""
    coded = {trait.name for trait in schema.coded_traits}
    for file in files:
        for name in codes_of(open_parquet(file).schema_arrow):
            if name in coded:
                raise InputError(
                    f"{file} has codes of {name} and no values; slim the fat rows that it was "
                    f"made from, or leave the column out."
                )


class _Run:
    """One run, and where its parts are."""

    def __init__(
        self,
        config: SlimConfig,
        files: list[DataFile],
        schema: Schema,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.config, self.files, self.schema, self.progress = config, files, schema, progress
        self.pieces = pieces(files)
        events = sum(piece.events for piece in self.pieces)
        self.partitions = min(events // PARTITION_EVENTS + 1, PARTITIONS_MAX)
        self.ids_given = any(map(has_event_ids, files))
        self.times: dict[str, TimeSpan] = {}
        self.scratch = Scratch(
            folder,
            {
                "version": VERSION,
                "files": [
                    file_fingerprint(file, str(file.local.absolute()) if file.local else file.name)
                    for file in files
                ],
                "pieces": [[str(piece.path), str(piece.row_groups)] for piece in self.pieces],
                "schema": to_stored(schema),
                "cadence": asdict(config.cadence),
                "time_unit": config.time_unit,
                "layout": asdict(config.layout),
                "partitions": self.partitions,
            },
        )

    def report(self) -> SlimReport:
        """Does the phases."""
        self._split()
        facts = self._stitch()
        written = not (self.config.on_disagreement == "fail" and facts.rows_disagreeing)
        if written:
            self._write()
        cadence = self.config.cadence
        last = max(int(cadence.number(self.last_request_ts)), 1)
        if facts.events:
            last = max(last, first_generation([facts]) + 1)
        return SlimReport(
            facts=facts,
            fat_bytes=sum(file.end(0)[0] for file in self.files),
            event_bytes=self.config.events.stat().st_size if written else 0,
            row_bytes=self.config.rows.stat().st_size if written else 0,
            watermark_ts=cadence.start_of(last),
            written=written,
            times=self.times,
        )

    def _split(self) -> None:
        """Reads every piece; its rows, their keys, and its events, by partition."""
        total, done = sum(piece.events for piece in self.pieces), 0
        for number, piece in enumerate(self.pieces):
            self.progress("Reading fat events", done, total)
            folder = self.scratch.part(_piece(number), partial(self._read, piece))
            spans = json.loads((folder / "times.json").read_text(encoding="utf-8"))
            for name, span in spans.items():
                self.times.setdefault(name, TimeSpan()).add(TimeSpan(**span))
            done += piece.events
            self.progress("Reading fat events", done, total)

    @property
    def last_request_ts(self) -> int:
        """The last plausible request, ms, or the last one where none is plausible."""
        span = self.times["request_ts"]
        return span.latest_ts if span.latest_plausible_ts is None else span.latest_plausible_ts

    def _read(self, piece: Piece, folder: Path) -> None:
        layout = FatLayout.of(self.config.layout)
        tally = LayoutTally(layout)
        times = TimeReader(self.config.time_unit)
        users = UserIdReader(self.schema.user_ids)
        batches = list(fat_batches(piece, self.schema, times, layout, tally, users))
        write_users(folder, users)
        tally.check_padding(piece.path)
        tally.check_order(piece.path)
        spans = {name: asdict(span) for name, span in times.spans.items()}
        (folder / "times.json").write_text(json.dumps(spans), encoding="utf-8")
        user_ids = np.concatenate([batch.user_ids for batch in batches])
        request_ts = np.concatenate([batch.request_ts for batch in batches])
        lengths = np.concatenate([batch.lengths for batch in batches])
        keys = np.concatenate([batch.keys for batch in batches])
        events = pl.concat([batch.events for batch in batches])
        check_keys(events)
        events = events.unique("key", keep="first", maintain_order=True)
        del batches
        owners = shard_of(user_ids, self.partitions)
        order = np.argsort(owners, kind="stable")
        row_bounds = offsets_of(np.bincount(owners, minlength=self.partitions))
        rows = pa.table([order, user_ids[order], request_ts[order], lengths[order]], schema=ROWS)
        key_bounds = offsets_of(lengths[order])[row_bounds]
        keys = keys[ranges(offsets_of(lengths)[:-1][order], lengths[order])]
        owners = shard_of(events["user_id"].to_numpy(), self.partitions)
        events = events[np.argsort(owners, kind="stable")]
        event_bounds = offsets_of(np.bincount(owners, minlength=self.partitions))
        write_batches(folder / "rows.arrow", rows, row_bounds)
        write_batches(folder / "keys.arrow", pa.table([keys], schema=KEYS), key_bounds)
        write_batches(
            folder / "events.arrow",
            events.to_arrow().cast(event_schema(self.schema)),
            event_bounds,
        )

    def _stitch(self) -> Facts:
        """Stitches every partition; some again, once the earliest generation is known."""
        found = []
        for number in range(self.partitions):
            self.progress("Stitching histories", number, self.partitions)
            found.append(self._stitched(number, -1))
        first = first_generation(found)
        for number, facts in enumerate(found):
            if facts.earliest_below == first or facts.lowest_generation < first:
                found[number] = self._stitched(number, first)
        self.progress("Stitching histories", self.partitions, self.partitions)
        return total(found)

    def _partition(self, number: int, first: int) -> str:
        return f"partition-{number:04d}" + ("" if first < 0 else "-first")

    def _stitched(self, number: int, first: int) -> Facts:
        name = self._partition(number, first)
        folder = self.scratch.part(name, partial(self._stitch_one, number, first))
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        facts["examples"] = [Disagreement(**example) for example in facts["examples"]]
        return Facts(**facts)

    def _stitch_one(self, number: int, first: int, folder: Path) -> None:
        parts = [self.scratch.folder / _piece(n) for n in range(len(self.pieces))]
        tables = [read_batch(part / "rows.arrow", number) for part in parts]
        piece_of = np.repeat(np.arange(len(parts)), [len(table) for table in tables])
        table = pa.concat_tables(tables)
        events = pl.concat([_frame(read_batch(part / "events.arrow", number)) for part in parts])
        check_keys(events)
        keys = [read_batch(part / "keys.arrow", number).column("key") for part in parts]
        fat = FatRows(
            user_ids=table.column("user_id").to_numpy(),
            request_ts=table.column("request_ts").to_numpy(),
            lengths=table.column("length").to_numpy(),
            keys=np.concatenate([column.to_numpy() for column in keys]),
            events=events.unique("key", keep="first", maintain_order=True),
            ids_given=self.ids_given,
        )
        users = read_users(parts, self.schema.user_ids)
        fat, order = fat.sorted()
        stitched = Stitched(fat, self.schema, self.config.cadence, self.last_request_ts, first)
        history = stitched.history.drop("key", "code", "visible_ts", "generation", "seen_ts")
        with pa.OSFile(str(folder / "events.arrow"), "wb") as sink:
            written = event_table(history, self.schema, users)
            if self.ids_given:
                unit = finest_unit(self.files, self.config.time_unit)
                written = with_finer_times(written, history[FINER_NS].to_arrow(), unit)
            with pa.ipc.new_file(sink, written.schema, options=LZ4) as writer:
                writer.write_table(written)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        bounds = offsets_of(np.bincount(piece_of, minlength=len(parts)))
        with (
            pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, self._thin_schema(), options=LZ4) as writer,
        ):
            for low, high in pairwise(bounds.tolist()):
                rows = table.column("row").slice(low, high - low).combine_chunks()
                writer.write_batch(self._thin(stitched, place[low:high], rows))
        found = with_names(stitched.facts(), users)
        facts = json.dumps(asdict(found))
        (folder / "facts.json").write_text(facts, encoding="utf-8")

    def _thin_schema(self) -> pa.Schema:
        mutable = mutable_type_of(self.schema)
        return pa.schema([("row", pa.int64()), ("uih", uih_type()), ("mutable", mutable)])

    def _thin(
        self, stitched: Stitched, chosen: NDArray[np.int64], rows: pa.Array
    ) -> pa.RecordBatch:
        """Makes the pointers and snapshots of some rows."""
        counts, carried = stitched.carried(chosen)
        uih = uih_column(
            stitched.start_ts[chosen],
            stitched.end_ts[chosen],
            stitched.named[chosen],
            stitched.digests[chosen],
        )
        mutable = mutable_column(carried, counts, self.schema)
        return pa.record_batch([rows, uih, mutable], schema=self._thin_schema())

    def _parts(self) -> list[Path]:
        """The folder of each partition, as it was stitched last."""
        found = []
        for number in range(self.partitions):
            again = self.scratch.folder / self._partition(number, 0)
            once = self.scratch.folder / self._partition(number, -1)
            found.append(again if again.exists() else once)
        return found

    def _write(self) -> None:
        """Puts the outputs together, and in place."""
        parts = self._parts()
        new_events, new_rows = (
            path.with_name(path.name + ".new") for path in (self.config.events, self.config.rows)
        )
        kind = open_batches(parts[0] / "events.arrow").schema
        with pq.ParquetWriter(new_events, kind, compression="zstd") as writer:
            for number, part in enumerate(parts):
                self.progress("Writing events", number, len(parts))
                file = open_batches(part / "events.arrow")
                for place in range(file.num_record_batches):
                    writer.write_batch(file.get_batch(place))
        self.progress("Writing events", len(parts), len(parts))
        thin = [open_batches(part / "rows.arrow") for part in parts]
        lean = LeanRows(nullable_traits(self.schema))
        for file in thin:
            for number in range(file.num_record_batches):
                lean.add(pa.table(file.get_batch(number)))
        total, done = sum(piece.rows for piece in self.pieces), 0
        with ThinRowsFile(new_rows) as out:
            for number, piece in enumerate(self.pieces):
                self.progress("Writing thin rows", done, total)
                table = self._passing(piece)
                added = pa.concat_tables(pa.table(file.get_batch(number)) for file in thin)
                order = np.argsort(added.column("row").to_numpy())
                added = lean.convert(added)
                for low in range(0, table.num_rows, OUTPUT_ROWS):
                    chosen = pa.array(order[low : low + OUTPUT_ROWS])
                    out.write(table.slice(low, OUTPUT_ROWS), added.take(chosen))
                done += piece.rows
            self.progress("Writing thin rows", done, total)
        new_events.replace(self.config.events)
        new_rows.replace(self.config.rows)

    def _passing(self, piece: Piece) -> pa.Table:
        """The columns that thin rows take over."""
        path = piece.path
        names = passing_columns(path, self.schema)
        file = open_parquet(path)
        schemas = [open_parquet(one).schema_arrow for one in self.files]
        joint = joint_schema(self.files, schemas, names)
        batches = file.iter_batches(OUTPUT_ROWS, columns=names, row_groups=list(piece.row_groups))
        if all(schema.equals(schemas[0]) for schema in schemas):
            joint = pa.schema([file.schema_arrow.field(name) for name in names])
            table = pa.Table.from_batches([batch.cast(joint) for batch in batches], joint)
        else:
            conformed = [conformed_batch(path, batch, joint) for batch in batches]
            table = pa.Table.from_batches(conformed, joint)
        return with_plain_keys(path, table, self.config.time_unit, self.schema.user_ids)


def _piece(number: int) -> str:
    return f"piece-{number:06d}"


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
