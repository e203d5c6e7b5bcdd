"""Tasks of slim: they read pieces of fat rows, stitch partitions of users, and write both outputs.

Two shuffles: rows and events go to the partition of their users, and thin rows go back to the piece
of the fat rows that they belong to.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.core.files.lean import LeanRows
from thinrow.core.files.parquet import open_parquet
from thinrow.core.ids import is_text_kind
from thinrow.core.runs import offsets_of
from thinrow.engines.spark.row_parts import part_items
from thinrow.engines.spark.shuffled import Item, Scatter, batches, items, message, read_table
from thinrow.engines.spark.tasks import check_numbers, numbers_in, result_row, task
from thinrow.events.time_columns import TimeReader, TimeSpan, add_spans, read_spans
from thinrow.events.user_ids import USERS
from thinrow.jobs.fat import event_schema
from thinrow.jobs.row_parts import DividedRows
from thinrow.jobs.slim_plan import (
    ROWS,
    facts_of,
    frame_of,
    last_request_ts,
    thin_schema,
    write_thin_rows,
)
from thinrow.jobs.thin_rows import ThinRowsFile, nullable_traits
from thinrow.store.user_texts import unique_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Any

    from thinrow.core.files.parquet import JointColumns
    from thinrow.engines.spark.outputs import OutputFolder
    from thinrow.engines.spark.tasks import Software
    from thinrow.jobs.facts import Facts
    from thinrow.jobs.slim_plan import SlimPlan, StitchedRows
    from thinrow.jobs.thin_rows import ThinRowsWriter

__all__ = [
    "EventFile",
    "ReadPieces",
    "StitchPlan",
    "StitchedPartition",
    "WrittenPiece",
]

ROW, EVENT, TEXT, TIMES, HEAD = "row", "event", "text", "times", "head"
THIN, LEAN, EVENTS_FILE = "thin", "lean", "file"
"""Kinds of rows, of the first shuffle and of the second."""
_NO_BOUNDS = np.empty(0, np.uint64)


def _spans(times: dict[str, TimeSpan]) -> dict[str, Any]:
    return {name: asdict(span) for name, span in times.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchedPartition:
    """Findings in a partition of the users."""

    partition: int
    facts: Facts
    pieces: list[int]
    """Pieces whose times are counted here."""
    times: dict[str, TimeSpan]

    @classmethod
    def decode(cls, number: int, text: str) -> StitchedPartition:
        """Reads the row of a task."""
        body = json.loads(text)
        return cls(
            partition=number,
            facts=facts_of(body["facts"]),
            pieces=body["pieces"],
            times=read_spans(body["times"]),
        )


class EventFile(NamedTuple):
    """A file of the events of a partition, in the scratch place of their output."""

    partition: int
    file: str
    file_bytes: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPiece:
    """Result of a task: the thin rows of a piece, and of piece 0 the files of all events, too."""

    piece: int
    file: str
    """Name of the file in the scratch place of the output; none of rows that go to parts."""
    file_bytes: int
    rows: int
    events: list[EventFile]
    """Files of events; nothing for other pieces."""

    @classmethod
    def decode(cls, body: dict[str, Any]) -> WrittenPiece:
        """Reads what `asdict` returned."""
        events = [EventFile(*one) for one in body["events"]]
        return cls(**{**body, "events": events})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPieces:
    """Input of tasks that read fat rows; Spark carries it to them."""

    software: Software
    slim: SlimPlan

    def survey(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads the times of the requests of pieces, and yields a row for each.

        Args:
            found: Numbers of pieces, in a column `id`.
        """
        with task(self.software):
            for number in numbers_in(found):
                piece = self.slim.pieces[number]
                with open_parquet(piece.path) as file:
                    column = file.read(["request_ts"], piece.row_groups).column("request_ts")
                times = TimeReader(self.slim.config.time_unit)
                times.read(piece.path, column, "request_ts")
                times.finish(piece.path)
                yield result_row(number, _spans(times.spans))

    def scatter(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads pieces, and yields rows and events by partition of the users.

        Args:
            found: Numbers of pieces, in a column `id`.
        """
        with task(self.software):
            yield from batches(self._items(found))

    def _items(self, found: Iterable[pa.RecordBatch]) -> Iterator[Item]:
        partitions = self.slim.partitions
        for number in numbers_in(found):
            if number == 0:
                yield from (Item(partition, 0, HEAD, b"") for partition in range(partitions))
            rows = self.slim.read(self.slim.pieces[number])
            yield Item(
                number % partitions,
                0,
                TIMES,
                json.dumps({"piece": number, "times": _spans(rows.times)}).encode(),
            )
            count, lengths = len(rows.user_ids), rows.lengths
            keys = pa.LargeListArray.from_arrays(offsets_of(lengths), pa.array(rows.keys))
            columns = [np.arange(count), rows.user_ids, rows.request_ts, lengths]
            table = pa.Table.from_arrays(
                [*map(pa.array, columns), pa.array(np.full(count, number)), keys],
                schema=_ROW_SCHEMA,
            )
            yield from self._scattered(ROW, table)
            events = rows.events.to_arrow().cast(event_schema(self.slim.schema))
            numbered = [
                pa.array(np.full(events.num_rows, number)),
                pa.array(np.arange(events.num_rows)),
            ]
            yield from self._scattered(
                EVENT,
                pa.Table.from_arrays([*numbered, *events.columns], schema=self.events),
            )
            if is_text_kind(self.slim.schema.user_ids):
                yield from self._scattered(TEXT, rows.users.take_users())

    def _scattered(self, kind: str, table: pa.Table) -> Iterator[Item]:
        scatter = Scatter(self.slim.partitions, _NO_BOUNDS, kind)
        yield from scatter.add(table)
        yield from scatter.flush()

    @property
    def events(self) -> pa.Schema:
        """Columns of the events that are shuffled."""
        places = [("piece", pa.int64()), ("place", pa.int64())]
        return pa.schema([*places, *event_schema(self.slim.schema)])


_ROW_SCHEMA = pa.schema(
    [*ROWS, ("piece", pa.int64()), ("keys", pa.large_list(pa.field("item", pa.uint64())))]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchPlan:
    """Input of tasks that stitch and write; Spark carries it to them."""

    read: ReadPieces
    requests: TimeSpan
    """Times of all requests."""
    first: int
    """Number of the earliest generation of all users; -1 where it is not known yet."""
    again: frozenset[int]
    """Partitions with something before that generation, which it changes."""
    passing: JointColumns
    """Columns that thin rows take over."""
    events: OutputFolder
    rows: OutputFolder

    def _first(self, partition: int) -> int:
        return self.first if partition in self.again else -1

    def facts(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Stitches partitions, and yields the findings in each; see `StitchedPartition`."""
        with task(self.read.software):
            for partition, rows in groupby(items(found), key=lambda item: item.part):
                received = _Received(self.read, rows)
                facts = received.stitch(self.requests, self._first(partition)).facts
                times = dict[str, TimeSpan]()
                for one in received.times:
                    add_spans(times, read_spans(one["times"]))
                yield result_row(
                    partition,
                    {
                        "facts": json.dumps(asdict(facts)),
                        "pieces": [one["piece"] for one in received.times],
                        "times": _spans(times),
                    },
                )

    def thin(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Stitches partitions, writes their events, and yields their thin rows by piece."""
        with task(self.read.software) as folder:
            for partition, rows in groupby(items(found), key=lambda item: item.part):
                yield from batches(self._thin_items(partition, rows, folder))

    def _thin_items(self, partition: int, rows: Iterator[Item], folder: Path) -> Iterator[Item]:
        received = _Received(self.read, rows)
        stitched = received.stitch(self.requests, self._first(partition))
        lean = LeanRows(nullable_traits(self.read.slim.schema))
        for piece, low, high in received.pieces():
            batch = stitched.thin(low, high)
            lean.add(pa.table(batch))
            yield Item(piece, 0, THIN, message(batch))
        path = folder / f"{partition}.parquet"
        pq.write_table(stitched.events, path, compression="zstd")
        file_bytes = path.stat().st_size
        shown = [partition, self.events.put(path), file_bytes, stitched.events.num_rows]
        yield Item(0, -1, EVENTS_FILE, json.dumps(shown).encode())
        found = json.dumps({"partition": partition, "lean": lean.found()}).encode()
        yield from (Item(piece, -1, LEAN, found) for piece in range(len(self.read.slim.pieces)))

    def write(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Writes the thin rows of pieces; see `WrittenPiece`."""
        with task(self.read.software) as folder:
            for piece, rows in groupby(items(found), key=lambda item: item.part):
                path = folder / f"{piece}.parquet"
                with ThinRowsFile(path) as out:
                    written = self._written(piece, rows, out)
                file_bytes = path.stat().st_size
                written = replace(written, file=self.rows.put(path), file_bytes=file_bytes)
                yield result_row(piece, asdict(written))

    def divide(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Divides the thin rows of pieces among parts."""
        slim = self.read.slim
        with task(self.read.software) as folder:
            for piece, rows in groupby(items(found), key=lambda item: item.part):
                out = DividedRows(folder, slim.config.row_parts, slim.schema.user_ids)
                written = self._written(piece, rows, out)
                yield from batches(part_items(piece, out, asdict(written)))
                out.close()

    def _written(self, number: int, rows: Iterator[Item], out: ThinRowsWriter) -> WrittenPiece:
        slim = self.read.slim
        lean, partitions = LeanRows(nullable_traits(slim.schema)), []
        events: list[EventFile] = []
        bodies = []
        for item in rows:
            if item.kind == THIN:
                bodies.append(item.body)
                continue
            shown = json.loads(bytes(item.body))
            if item.kind == LEAN:
                partitions.append(shown["partition"])
                lean.add_found(shown["lean"])
            else:
                events.append(EventFile(*shown))
        check_numbers("partitions", partitions, slim.partitions)
        added = read_table(bodies, thin_schema(slim.schema)).sort_by("row")
        places = added.column("row").to_pylist()
        check_numbers("rows", places, slim.pieces[number].rows)
        write_thin_rows(out, slim, self.passing, slim.pieces[number], lean.convert(added))
        return WrittenPiece(piece=number, file="", file_bytes=0, rows=len(places), events=events)


class _Received:
    """Rows and events of a partition of the users, as a task received them."""

    def __init__(self, read: ReadPieces, rows: Iterator[Item]) -> None:
        self._slim = read.slim
        bodies: dict[str, list[Any]] = {ROW: [], EVENT: [], TEXT: [], TIMES: [], HEAD: []}
        for item in rows:
            bodies[item.kind].append(item.body)
        order = [("piece", "ascending"), ("row", "ascending")]
        self._rows = read_table(bodies[ROW], _ROW_SCHEMA).sort_by(order)
        order = [("piece", "ascending"), ("place", "ascending")]
        events = read_table(bodies[EVENT], read.events).sort_by(order)
        self._events = frame_of(events.drop_columns(["piece", "place"]))
        self._users = None
        if is_text_kind(self._slim.schema.user_ids):
            self._users = unique_texts(read_table(bodies[TEXT], USERS))
        self.times = [json.loads(bytes(body)) for body in bodies[TIMES]]
        """Numbers of pieces, and ranges of their times: those that are counted here."""

    def stitch(self, requests: TimeSpan, first: int) -> StitchedRows:
        """Stitches the rows; see `SlimPlan.stitch`."""
        keys = self._rows.column("keys").combine_chunks().flatten()
        return self._slim.stitch(
            self._rows.select(ROWS.names),
            keys.to_numpy(),
            self._events,
            self._users,
            last_request_ts(requests),
            first,
        )

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """Yields each piece that has rows here, and the range of these."""
        numbers = self._rows.column("piece").to_numpy()
        found, starts = np.unique(numbers, return_index=True)
        ends = np.append(starts, len(numbers))[1:]
        yield from zip(found.tolist(), starts.tolist(), ends.tolist(), strict=True)
