"""Slim: a dataset of fat rows becomes events and thin rows that show the very same histories.

Three phases, so that memory holds one part: the fat rows are read piece by piece and split by
user, each event once and its rows by key; every partition of users is stitched; the outputs are
put together from the parts. Finished parts lie in a scratch folder beside the rows, and are not
made again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.core.files.lean import LeanRows
from thinrow.core.runs import offsets_of, ranges
from thinrow.core.shards import shard_of
from thinrow.errors import UsageError
from thinrow.events.canonical import (
    check_output,
)
from thinrow.events.time_columns import TimeSpan, add_spans, read_spans
from thinrow.jobs.batch_files import LZ4, open_batches, read_batch, write_batches
from thinrow.jobs.facts import Facts, first_generation, total
from thinrow.jobs.fat import (
    Piece,
    event_schema,
)
from thinrow.jobs.fat_users import read_users, write_users
from thinrow.jobs.finished_parts import IDENTITY, Scratch, locked_folder
from thinrow.jobs.row_parts import (
    ThinRowsFolder,
    byte_count,
    check_no_part_column,
    check_unused,
    publish_folder,
)
from thinrow.jobs.slim_plan import (
    KEYS,
    ROWS,
    SlimPlan,
    SlimReport,
    facts_of,
    frame_of,
    is_stitched_again,
    last_request_ts,
    thin_schema,
    write_thin_rows,
)
from thinrow.jobs.thin_rows import (
    ThinRowsFile,
    nullable_traits,
)
from thinrow.schema import to_stored
from thinrow.store.hashing import file_fingerprint
from thinrow.store.place import is_url
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from thinrow.events.split import Progress
    from thinrow.jobs.config import SlimConfig
    from thinrow.jobs.thin_rows import ThinRowsWriter

__all__ = ["VERSION", "slim"]

VERSION = 3
"""Format of the scratch folder."""


def slim(config: SlimConfig, progress: Progress = lambda *_: None) -> SlimReport:
    """Writes events, and a thin row for every fat row.

    Killed at any point it leaves what was at the outputs, and the next run goes on.

    Raises:
        InputError: a file cannot be used as it is.
        UsageError: another run is at work on the same outputs.
        StoreError: the disk is full, or fails.
    """
    for option, place in (("--out-events", config.events), ("--out-rows", config.rows)):
        if is_url(place):
            raise UsageError(
                f"{option} is {place}; without --engine spark it is the path of a file."
            )
    events, rows, schema = (
        Path(each) for each in (config.events, config.rows, config.written_schema)
    )
    folder = rows.with_name(f".{rows.name}-slim")
    if config.row_parts and not (folder / IDENTITY).exists():
        check_unused(rows)
    plan, text = SlimPlan.of(config)
    for out in (events, rows, schema):
        check_output(out, plan.files)
    if config.row_parts:
        check_no_part_column(plan.files)
    try:
        events.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(folder):
            report = _Run(plan, events, rows, folder, progress).report()
            if report.written and config.schema is None:
                schema.write_text(text, encoding="utf-8")
            shutil.rmtree(folder)
        return report
    except (OSError, pa.ArrowException) as error:
        raise storage_error(error, rows) from error


class _Run:
    """One run, and where its parts are."""

    def __init__(
        self, plan: SlimPlan, events: Path, rows: Path, folder: Path, progress: Progress
    ) -> None:
        self.plan, self.progress = plan, progress
        self.events, self.rows = events, rows
        config = plan.config
        self.times: dict[str, TimeSpan] = {}
        self.scratch = Scratch(
            folder,
            {
                "version": VERSION,
                "files": [
                    file_fingerprint(file, str(file.local.absolute()) if file.local else file.name)
                    for file in plan.files
                ],
                "pieces": [[str(piece.path), str(piece.row_groups)] for piece in plan.pieces],
                "schema": to_stored(plan.schema),
                "cadence": asdict(config.cadence),
                "time_unit": config.time_unit,
                "layout": asdict(config.layout),
                "partitions": plan.partitions,
                "row_parts": config.row_parts,
            },
        )
        # A folder of rows that is there is whole, and of this run before it was killed.
        self.has_rows = bool(config.row_parts) and rows.exists()
        if not self.scratch.is_resumed:
            self.has_rows = False
            if config.row_parts:
                check_unused(rows)

    def report(self) -> SlimReport:
        """Does the phases."""
        self._split()
        facts = self._stitch()
        event_bytes = row_bytes = 0
        if self.plan.writes(facts):
            self._write()
            event_bytes, row_bytes = byte_count(self.events), byte_count(self.rows)
        return self.plan.report(facts, self.times, event_bytes, row_bytes)

    def _split(self) -> None:
        """Reads every piece; its rows, their keys, and its events, by partition."""
        total, done = sum(piece.events for piece in self.plan.pieces), 0
        for number, piece in enumerate(self.plan.pieces):
            self.progress("Reading fat events", done, total)
            folder = self.scratch.part(_piece(number), partial(self._read, piece))
            spans = json.loads((folder / "times.json").read_text(encoding="utf-8"))
            add_spans(self.times, read_spans(spans))
            done += piece.events
            self.progress("Reading fat events", done, total)

    def _read(self, piece: Piece, folder: Path) -> None:
        found = self.plan.read(piece)
        write_users(folder, found.users)
        spans = {name: asdict(span) for name, span in found.times.items()}
        (folder / "times.json").write_text(json.dumps(spans), encoding="utf-8")
        partitions, lengths = self.plan.partitions, found.lengths
        owners = shard_of(found.user_ids, partitions)
        order = np.argsort(owners, kind="stable")
        row_bounds = offsets_of(np.bincount(owners, minlength=partitions))
        columns = [order, found.user_ids[order], found.request_ts[order], lengths[order]]
        rows = pa.table(columns, schema=ROWS)
        key_bounds = offsets_of(lengths[order])[row_bounds]
        keys = found.keys[ranges(offsets_of(lengths)[:-1][order], lengths[order])]
        owners = shard_of(found.events["user_id"].to_numpy(), partitions)
        events = found.events[np.argsort(owners, kind="stable")]
        event_bounds = offsets_of(np.bincount(owners, minlength=partitions))
        write_batches(folder / "rows.arrow", rows, row_bounds)
        write_batches(folder / "keys.arrow", pa.table([keys], schema=KEYS), key_bounds)
        write_batches(
            folder / "events.arrow",
            events.to_arrow().cast(event_schema(self.plan.schema)),
            event_bounds,
        )

    def _stitch(self) -> Facts:
        """Stitches every partition; some again, once the earliest generation is known."""
        found, partitions = [], self.plan.partitions
        for number in range(partitions):
            self.progress("Stitching histories", number, partitions)
            found.append(self._stitched(number, -1))
        first = first_generation(found)
        for number, facts in enumerate(found):
            if is_stitched_again(facts, first):
                found[number] = self._stitched(number, first)
        self.progress("Stitching histories", partitions, partitions)
        return total(found)

    def _partition(self, number: int, first: int) -> str:
        return f"partition-{number:04d}" + ("" if first < 0 else "-first")

    def _stitched(self, number: int, first: int) -> Facts:
        name = self._partition(number, first)
        folder = self.scratch.part(name, partial(self._stitch_one, number, first))
        return facts_of((folder / "facts.json").read_text(encoding="utf-8"))

    def _stitch_one(self, number: int, first: int, folder: Path) -> None:
        parts = [self.scratch.folder / _piece(n) for n in range(len(self.plan.pieces))]
        tables = [read_batch(part / "rows.arrow", number) for part in parts]
        keys = [read_batch(part / "keys.arrow", number).column("key") for part in parts]
        stitched = self.plan.stitch(
            pa.concat_tables(tables),
            np.concatenate([column.to_numpy() for column in keys]),
            pl.concat([frame_of(read_batch(part / "events.arrow", number)) for part in parts]),
            read_users(parts, self.plan.schema.user_ids),
            last_request_ts(self.times["request_ts"]),
            first,
        )
        with (
            pa.OSFile(str(folder / "events.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, stitched.events.schema, options=LZ4) as writer,
        ):
            writer.write_table(stitched.events)
        bounds = offsets_of(np.array([len(table) for table in tables]))
        with (
            pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, thin_schema(self.plan.schema), options=LZ4) as writer,
        ):
            for low, high in pairwise(bounds.tolist()):
                writer.write_batch(stitched.thin(low, high))
        facts = json.dumps(asdict(stitched.facts))
        (folder / "facts.json").write_text(facts, encoding="utf-8")

    def _parts(self) -> list[Path]:
        """The folder of each partition, as it was stitched last."""
        found = []
        for number in range(self.plan.partitions):
            again = self.scratch.folder / self._partition(number, 0)
            once = self.scratch.folder / self._partition(number, -1)
            found.append(again if again.exists() else once)
        return found

    def _write(self) -> None:
        """Puts the outputs together, and in place."""
        parts = self._parts()
        new_events, new_rows = (
            path.with_name(path.name + ".new") for path in (self.events, self.rows)
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
        lean = LeanRows(nullable_traits(self.plan.schema))
        for file in thin:
            for number in range(file.num_record_batches):
                lean.add(pa.table(file.get_batch(number)))
        parts_of_rows, kind = self.plan.config.row_parts, self.plan.schema.user_ids
        if parts_of_rows and not self.has_rows:
            shutil.rmtree(new_rows, ignore_errors=True)
            with ThinRowsFolder(new_rows, self.scratch.folder, parts_of_rows, kind) as folder:
                self._write_rows(folder, thin, lean)
        elif not parts_of_rows:
            with ThinRowsFile(new_rows) as file:
                self._write_rows(file, thin, lean)
        new_events.replace(self.events)
        if not parts_of_rows:
            new_rows.replace(self.rows)
        elif not self.has_rows:
            publish_folder(new_rows, self.rows)

    def _write_rows(
        self, out: ThinRowsWriter, thin: list[pa.ipc.RecordBatchFileReader], lean: LeanRows
    ) -> None:
        total, done = sum(piece.rows for piece in self.plan.pieces), 0
        passing = self.plan.passing()
        for number, piece in enumerate(self.plan.pieces):
            self.progress("Writing thin rows", done, total)
            added = pa.concat_tables(pa.table(file.get_batch(number)) for file in thin)
            order = np.argsort(added.column("row").to_numpy())
            write_thin_rows(
                out, self.plan, passing, piece, lean.convert(added).take(pa.array(order))
            )
            done += piece.rows
        self.progress("Writing thin rows", done, total)


def _piece(number: int) -> str:
    return f"piece-{number:06d}"
