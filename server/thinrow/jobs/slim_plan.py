"""One run of `slim`, as every engine does it: what it reads, stitches and writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from thinrow.core.files.arrow import uih_type
from thinrow.core.files.parquet import JointColumns, open_parquet
from thinrow.core.files.paths import DataFile, data_files
from thinrow.errors import InputError
from thinrow.events.canonical import (
    FINER_NS,
)
from thinrow.events.time_columns import TimeReader, TimeSpan
from thinrow.events.user_ids import UserIdReader
from thinrow.jobs.facts import Disagreement, Facts, first_generation
from thinrow.jobs.fat import (
    Piece,
    check_keys,
    derived_schema,
    fat_batches,
    finest_unit,
    has_event_ids,
    passing_columns,
    pieces,
)
from thinrow.jobs.fat_codes import codes_of
from thinrow.jobs.fat_users import with_names
from thinrow.jobs.layout import FatLayout, LayoutTally
from thinrow.jobs.stitch import FatRows, Stitched
from thinrow.jobs.thin_rows import (
    event_table,
    mutable_column,
    mutable_type_of,
    uih_column,
    with_finer_times,
    with_plain_keys,
)
from thinrow.schema import parse_schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from thinrow.events.units import TimeUnit
    from thinrow.jobs.config import SlimConfig
    from thinrow.jobs.thin_rows import ThinRowsWriter
    from thinrow.schema import Schema
    from thinrow.store.user_texts import UserTexts

__all__ = [
    "KEYS",
    "OUTPUT_ROWS",
    "PARTITIONS_MAX",
    "PARTITION_EVENTS",
    "ROWS",
    "PieceRows",
    "SlimPlan",
    "SlimReport",
    "StitchedRows",
    "facts_of",
    "frame_of",
    "is_stitched_again",
    "last_request_ts",
    "thin_schema",
    "write_thin_rows",
]

PARTITION_EVENTS = 1 << 23
"""Fat events that are stitched at once, about; one user's always stay together."""
PARTITIONS_MAX = 512
OUTPUT_ROWS = 1 << 14
"""Rows in a row group of thin rows."""
ROWS = pa.schema([(name, pa.int64()) for name in ("row", "user_id", "request_ts", "length")])
"""Rows of a piece: their place in it, and the number of their events."""
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


def _refuse_codes(files: Sequence[DataFile], schema: Schema) -> None:
    """Refuses files of `thinrow materialize`, which have codes where events have values."""
    coded = {trait.name for trait in schema.coded_traits}
    for file in files:
        for name in codes_of(open_parquet(file).schema_arrow):
            if name in coded:
                raise InputError(
                    f"{file} has codes of {name} and no values; slim the fat rows that it was "
                    f"made from, or leave the column out."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimPlan:
    """Work of one run, which engines share."""

    config: SlimConfig
    files: list[DataFile]
    schema: Schema
    """Schema of the events."""
    pieces: list[Piece]
    partitions: int
    """Partitions of the users."""
    ids_given: bool
    """True if the rows have each event's id, or that it has none."""
    unit: TimeUnit
    """Finest unit of the events' times."""

    @staticmethod
    def of(config: SlimConfig) -> tuple[SlimPlan, str]:
        """Finds the work, and the schema file that fits the events.

        Raises:
            InputError: A file cannot be used as it is.
        """
        files = data_files(config.fat)
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
        found = pieces(files)
        events = sum(piece.events for piece in found)
        ids_given = any(map(has_event_ids, files))
        plan = SlimPlan(
            config=config,
            files=files,
            schema=schema,
            pieces=found,
            partitions=min(events // PARTITION_EVENTS + 1, PARTITIONS_MAX),
            ids_given=ids_given,
            unit=finest_unit(files, config.time_unit) if ids_given else "ms",
        )
        return plan, text

    def read(self, piece: Piece) -> PieceRows:
        """Reads a piece. Raises InputError."""
        layout = FatLayout.of(self.config.layout)
        tally = LayoutTally(layout)
        times = TimeReader(self.config.time_unit)
        users = UserIdReader(self.schema.user_ids)
        batches = list(fat_batches(piece, self.schema, times, layout, tally, users))
        tally.check_padding(piece.path)
        tally.check_order(piece.path)
        events = pl.concat([batch.events for batch in batches])
        check_keys(events)
        return PieceRows(
            user_ids=np.concatenate([batch.user_ids for batch in batches]),
            request_ts=np.concatenate([batch.request_ts for batch in batches]),
            lengths=np.concatenate([batch.lengths for batch in batches]),
            keys=np.concatenate([batch.keys for batch in batches]),
            events=events.unique("key", keep="first", maintain_order=True),
            users=users,
            times=times.spans,
        )

    def stitch(
        self,
        rows: pa.Table,
        keys: NDArray[np.uint64],
        events: pl.DataFrame,
        users: UserTexts | None,
        last_request_ts: int,
        first: int,
    ) -> StitchedRows:
        """Stitches the rows of some users, all that there are of them.

        Args:
            rows: The rows, of ROWS, piece after piece.
            keys: Keys of their events, row after row.
            events: The events by key, piece after piece, some of them repeatedly.
            users: Texts of the users, where ids are texts.
            last_request_ts: The last request of all users: see `last_request_ts`.
            first: Number of the earliest generation; -1 where it is not known yet.

        Raises:
            InputError: Two events have one key.
        """
        check_keys(events)
        fat = FatRows(
            user_ids=rows.column("user_id").to_numpy(),
            request_ts=rows.column("request_ts").to_numpy(),
            lengths=rows.column("length").to_numpy(),
            keys=keys,
            events=events.unique("key", keep="first", maintain_order=True),
            ids_given=self.ids_given,
        )
        fat, order = fat.sorted()
        stitched = Stitched(fat, self.schema, self.config.cadence, last_request_ts, first)
        history = stitched.history.drop("key", "code", "visible_ts", "generation", "seen_ts")
        written = event_table(history, self.schema, users)
        if self.ids_given:
            written = with_finer_times(written, history[FINER_NS].to_arrow(), self.unit)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return StitchedRows(
            self.schema,
            stitched,
            place,
            rows.column("row").to_numpy(),
            events=written,
            facts=with_names(stitched.facts(), users),
        )

    @property
    def absolute(self) -> SlimPlan:
        """The same work on files by paths that hold in every folder."""
        absolute = {file: file.absolute for file in self.files}
        found = [replace(piece, path=absolute[_data_file(piece)]) for piece in self.pieces]
        return replace(self, files=[*absolute.values()], pieces=found)

    def passing(self) -> JointColumns:
        """Finds the columns that thin rows take over.

        Raises:
            InputError: Files have others, or other types.
        """
        every = dict.fromkeys(
            name for file in self.files for name in passing_columns(file, self.schema)
        )
        return JointColumns.of(self.files, [*every])

    def report(
        self, facts: Facts, times: dict[str, TimeSpan], event_bytes: int, row_bytes: int
    ) -> SlimReport:
        """Returns the report of a run; bytes of the files that were written."""
        cadence = self.config.cadence
        last = max(int(cadence.number(last_request_ts(times["request_ts"]))), 1)
        if facts.events:
            last = max(last, first_generation([facts]) + 1)
        return SlimReport(
            facts=facts,
            fat_bytes=sum(file.end(0)[0] for file in self.files),
            event_bytes=event_bytes,
            row_bytes=row_bytes,
            watermark_ts=cadence.start_of(last),
            written=self.writes(facts),
            times=times,
        )

    def writes(self, facts: Facts) -> bool:
        """Returns False where rows disagree and nothing is to be written then."""
        return not (self.config.on_disagreement == "fail" and facts.rows_disagreeing)


def last_request_ts(requests: TimeSpan) -> int:
    """Returns the last plausible request, ms, or the last one where none is plausible."""
    last_ts = requests.latest_plausible_ts
    return requests.latest_ts if last_ts is None else last_ts


def is_stitched_again(facts: Facts, first: int) -> bool:
    """Returns True for users who have something before the earliest generation of all users."""
    return facts.earliest_below == first or facts.lowest_generation < first


def facts_of(text: str) -> Facts:
    """Reads facts from the JSON of their fields."""
    found = json.loads(text)
    found["examples"] = [Disagreement(**example) for example in found["examples"]]
    return Facts(**found)


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceRows:
    """The rows of a piece, in their order."""

    user_ids: NDArray[np.int64]
    request_ts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    keys: NDArray[np.uint64]
    """Keys of every event, row after row."""
    events: pl.DataFrame
    """Each key once, with the event in canonical form."""
    users: UserIdReader
    """Has the texts of the users, where ids are texts."""
    times: dict[str, TimeSpan]


class StitchedRows:
    """The rows of some users, stitched.

    Attributes:
        events: The events of their histories, as they are written.
        facts: Findings.
    """

    def __init__(
        self,
        schema: Schema,
        stitched: Stitched,
        place: NDArray[np.int64],
        rows: NDArray[np.int64],
        *,
        events: pa.Table,
        facts: Facts,
    ) -> None:
        self._schema, self._stitched, self._place, self._rows = schema, stitched, place, rows
        self.events, self.facts = events, facts

    def thin(self, low: int, high: int) -> pa.RecordBatch:
        """Makes the pointers and snapshots of rows `[low, high)`, with their places in a piece."""
        stitched, chosen = self._stitched, self._place[low:high]
        counts, carried = stitched.carried(chosen)
        uih = uih_column(
            stitched.start_ts[chosen],
            stitched.end_ts[chosen],
            stitched.named[chosen],
            stitched.digests[chosen],
        )
        mutable = mutable_column(carried, counts, self._schema)
        rows = pa.array(self._rows[low:high])
        return pa.record_batch([rows, uih, mutable], schema=thin_schema(self._schema))


def thin_schema(schema: Schema) -> pa.Schema:
    """Returns the columns of `StitchedRows.thin`."""
    return pa.schema(
        [("row", pa.int64()), ("uih", uih_type()), ("mutable", mutable_type_of(schema))]
    )


def write_thin_rows(
    out: ThinRowsWriter, plan: SlimPlan, columns: JointColumns, piece: Piece, added: pa.Table
) -> None:
    """Writes the thin rows of a piece.

    Args:
        out: Writes them.
        plan: The run.
        columns: The columns that thin rows take over.
        piece: The piece.
        added: What they have besides, in the order of the rows.
    """
    file = _data_file(piece)
    batches = columns.batches(file, OUTPUT_ROWS, list(piece.row_groups))
    joined = [batch.cast(columns.schema) for batch in batches]
    table = pa.Table.from_batches(joined, columns.schema)
    table = with_plain_keys(file, table, plan.config.time_unit, plan.schema.user_ids)
    for low in range(0, table.num_rows, OUTPUT_ROWS):
        out.write(table.slice(low, OUTPUT_ROWS), added.slice(low, OUTPUT_ROWS))


def _data_file(piece: Piece) -> DataFile:
    assert isinstance(piece.path, DataFile)
    return piece.path


def frame_of(table: pa.Table) -> pl.DataFrame:
    """Returns a table as Polars has it."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
