"""Tasks of backfill: they read requests and events, compute thin rows by shard, and write them.

Two shuffles: events and requests go to the shard and range of their users, and what is computed
there goes to the slice of the requests that it belongs to, block after block of rows. Rows in parts
are shuffled once more: see row_parts.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.lean import LeanRows
from thinrow.core.files.parquet import open_parquet
from thinrow.core.ids import is_text_kind
from thinrow.engines.spark.reading import EVENTS, FACTS, HEAD, TEXTS
from thinrow.engines.spark.row_parts import part_items
from thinrow.engines.spark.shuffled import Item, Scatter, batches, items, message, read_table
from thinrow.engines.spark.tasks import (
    check_numbers,
    lost_rows,
    numbers_in,
    result_row,
    task,
)
from thinrow.engines.spark.thin_facts import EventFacts, WrittenSlice, slice_facts
from thinrow.events.canonical import canonical_schema
from thinrow.events.time_columns import TimeReader, TimeSpan
from thinrow.events.units import PLAUSIBLE_UNTIL_TS
from thinrow.events.user_ids import USERS, UserIdReader, user_column
from thinrow.jobs.backfill import (
    OUTPUT_ROWS,
    RowCounts,
    thin_columns,
    thin_schema,
    write_rows,
    written_schema,
)
from thinrow.jobs.row_parts import DividedRows
from thinrow.jobs.served_requests import (
    PastWatermarks,
    check_request_columns,
    text_user_keys,
)
from thinrow.jobs.shard_events import ShardEvents
from thinrow.jobs.thin_rows import ThinRowsFile, nullable_traits, with_plain_keys
from thinrow.store.user_texts import check_texts, known_texts, unique_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray
    from thinrow.core.files.parquet import JointColumns
    from thinrow.core.ids import IdKind
    from thinrow.engines.spark.generations import ReadGeneration
    from thinrow.engines.spark.outputs import OutputFolder
    from thinrow.engines.spark.reading import ReadPlan
    from thinrow.engines.spark.slices import Slice
    from thinrow.jobs.config import BackfillConfig
    from thinrow.jobs.thin_rows import ThinRowsWriter
    from thinrow.store.generation import Generation

__all__ = ["BLOCK_ROWS", "ThinPlan"]

BLOCK_ROWS = 1 << 14
"""Rows of requests whose thin columns a task that writes has in memory at once, about."""
REQUESTS, THIN, TOTALS = "requests", "thin", "totals"
"""Kinds of rows: requests by user, thin columns by slice, and measures of all events of a shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinPlan:
    """Input of the tasks of one run; Spark carries it to them."""

    read: ReadPlan
    """Reads events; its schema is the store's."""
    config: BackfillConfig
    requests: list[Slice]
    columns: JointColumns
    """Columns of the requests."""
    past: PastWatermarks
    generation: ReadGeneration
    output: OutputFolder

    @property
    def _kind(self) -> IdKind:
        return self.read.schema.user_ids

    def survey(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads the times of slices of the requests, and yields a row for each.

        Args:
            found: Numbers of slices, in a column `id`.
        """
        with task(self.read.software):
            for number in numbers_in(found):
                one = self.requests[number]
                with open_parquet(one.file) as file:
                    check_request_columns(one.file, file.schema_arrow.names)
                    groups = one.row_groups(file.metadata.num_row_groups)
                    column = file.read(["request_ts"], groups).column("request_ts")
                times = TimeReader(self.config.time_unit)
                request_ts = times.read(one.file, column, "request_ts").ms.to_numpy()
                times.finish(one.file)
                plausible = request_ts[request_ts < PLAUSIBLE_UNTIL_TS]
                latest_ts = [int(some.max()) for some in (request_ts, plausible) if len(some)]
                spans = {name: asdict(span) for name, span in times.spans.items()}
                yield result_row(
                    number, {"rows": len(request_ts), "times": spans, "latest_ts": latest_ts}
                )

    def scatter(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Reads slices, and yields events and requests by shard and range of users.

        Args:
            found: Numbers in a column `id`: of slices of events, and then of the requests.
        """
        with task(self.read.software):
            yield from batches(self._items(found))

    def _items(self, found: Iterable[pa.RecordBatch]) -> Iterator[Item]:
        event_slices = len(self.read.slices)
        for number in numbers_in(found):
            if number == 0:
                # Shards without events and requests send their measures, too.
                yield from (Item(shard, -1, HEAD, b"") for shard in range(self.read.shards))
            if number < event_slices:
                yield from self.read.slice_items(number)
            else:
                yield from self._request_items(number - event_slices)

    def _request_items(self, number: int) -> Iterator[Item]:
        one, users = self.requests[number], UserIdReader(self._kind)
        scatter = Scatter(self.read.shards, self.read.bounds, REQUESTS)
        with open_parquet(one.file) as file:
            check_request_columns(one.file, file.schema_arrow.names)
            groups = one.row_groups(file.metadata.num_row_groups)
            table = file.read(["user_id", "request_ts"], groups)
        column = table.column("user_id")
        request_ts = TimeReader(self.config.time_unit).read(
            one.file, table.column("request_ts"), "request_ts"
        )
        rows = table.num_rows
        columns = [
            pa.array(users.keys(one.file, column)),
            request_ts.ms,
            pa.array(np.full(rows, number)),
            pa.array(np.arange(rows)),
        ]
        if is_text_kind(self._kind):
            columns.append(user_column(one.file, column, self._kind))
        yield from scatter.add(pa.Table.from_arrays(columns, schema=_request_schema(self._kind)))
        yield from scatter.flush()

    def thin(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Computes thin columns of the shard whose rows these are, sorted by `sub`."""
        with task(self.read.software) as folder:
            for shard, rows in groupby(items(found), key=lambda item: item.part):
                yield from batches(self._thin_items(shard, rows, folder / str(shard)))

    def _thin_items(self, shard: int, rows: Iterator[Item], folder: Path) -> Iterator[Item]:
        carried = self.read.schema.carried
        lean, facts = LeanRows(nullable_traits(carried)), EventFacts.none()
        with self.generation.opened(shard, folder) as generation:
            for sub, members in groupby(rows, key=lambda item: item.sub):
                bodies: dict[str, list[Any]] = {EVENTS: [], TEXTS: [], REQUESTS: []}
                bodies |= {FACTS: [], HEAD: []}
                for item in members:
                    bodies[item.kind].append(item.body)
                for body in bodies[FACTS]:
                    facts.add(slice_facts(json.loads(bytes(body))))
                if sub < 0:
                    continue
                events = read_table(bodies[EVENTS], canonical_schema(carried))
                facts.rows_received += events.num_rows
                self._check_users(generation, bodies[TEXTS])
                requests = read_table(bodies[REQUESTS], _request_schema(self._kind))
                yield from self._range_items(generation, events, requests, lean)
        shown = {"shard": shard, "lean": lean.found(), "arrivals": asdict(facts.arrivals)}
        for number in range(len(self.requests)):
            yield Item(number, -1, FACTS, json.dumps(shown).encode())
        yield Item(0, -1, TOTALS, json.dumps(asdict(facts)).encode())

    def _check_users(self, generation: Generation, bodies: list[Any]) -> None:
        """Compares the texts of users of events with those that the store has."""
        if is_text_kind(self._kind):
            texts = unique_texts(read_table(bodies, USERS))
            check_texts(texts, known_texts(generation, texts.keys), self._kind)

    def _range_items(
        self, generation: Generation, events: pa.Table, requests: pa.Table, lean: LeanRows
    ) -> Iterator[Item]:
        """Computes the thin columns of a range of users, and yields them by slice and block."""
        requests = requests.sort_by([("slice", "ascending"), ("row", "ascending")])
        user_ids = requests.column("user_id").to_numpy()
        if is_text_kind(self._kind):
            user_ids = text_user_keys(generation, requests.column("text").combine_chunks())
        served = self.past.serve(self.config, user_ids, requests.column("request_ts").to_numpy())
        chosen = np.arange(len(user_ids))
        raw = ShardEvents(events, user_ids, generation)
        slices, places = (requests.column(name).to_numpy() for name in ("slice", "row"))
        for rows, batch in thin_columns(self.config, generation, raw, served, chosen):
            lean.add(pa.table(batch))
            columns = [pa.array(places[rows]), *batch.columns]
            numbered = pa.RecordBatch.from_arrays(columns, schema=self._thin_schema())
            yield from _by_block(slices[rows], places[rows], numbered)

    def _thin_schema(self) -> pa.Schema:
        return pa.schema([("row", pa.int64()), *thin_schema(self.read.schema)])

    def write(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Writes the slice whose thin columns these are, sorted by `sub`."""
        with task(self.read.software) as folder:
            for number, rows in groupby(items(found), key=lambda item: item.part):
                path = folder / f"{number}.parquet"
                with ThinRowsFile(path) as out:
                    written = self._write_slice(number, rows, out)
                file_bytes = path.stat().st_size
                written = replace(written, file=self.output.put(path), file_bytes=file_bytes)
                yield result_row(number, asdict(written))

    def divide(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Divides the slice whose thin columns these are, sorted by `sub`, among parts."""
        with task(self.read.software) as folder:
            for number, rows in groupby(items(found), key=lambda item: item.part):
                out = DividedRows(folder, self.config.row_parts, self._kind)
                written = self._write_slice(number, rows, out)
                yield from batches(part_items(number, out, asdict(written)))
                out.close()

    def _write_slice(self, number: int, rows: Iterator[Item], out: ThinRowsWriter) -> WrittenSlice:
        one = self.requests[number]
        blocks = groupby(rows, key=lambda item: item.sub)
        _, heads = next(blocks)
        lean, arrivals, totals = self._facts([*heads])
        reader = _BlockReader(blocks, self._thin_schema())
        counts, kind = [], self._kind
        with open_parquet(one.file) as file:
            groups = one.row_groups(file.metadata.num_row_groups)
        for batch in self.columns.batches(one.file, OUTPUT_ROWS, groups):
            table = with_plain_keys(one.file, pa.table(batch), self.config.time_unit, kind)
            thin = reader.read(table.num_rows)
            request_ts = table.column("request_ts").to_numpy()
            served = self.past.serve(self.config, np.zeros_like(request_ts), request_ts)
            counts.append(RowCounts.of(served, thin, arrivals.start_ts))
            written = lean.convert(thin)
            carried = pc.list_value_length(written.column("mutable")).to_numpy()

            def take(first: int, last: int, written: pa.Table = written) -> pa.Table:
                return written.slice(first, last - first)

            write_rows(out, table, carried, take)
        reader.finish()
        out.open(written_schema(self.columns.schema, lean.schema(self._thin_schema()), kind))
        return WrittenSlice(
            slice=number,
            file="",
            file_bytes=0,
            counts=RowCounts.total(counts),
            events=totals,
        )

    def _facts(self, heads: Sequence[Item]) -> tuple[LeanRows, TimeSpan, EventFacts | None]:
        """Joins the measures of all shards.

        Raises:
            EngineError: A shard is missing, or came twice.
        """
        found = [json.loads(bytes(item.body)) for item in heads if item.kind == FACTS]
        check_numbers("shards", [one["shard"] for one in found], self.read.shards)
        lean, arrivals = LeanRows(nullable_traits(self.read.schema.carried)), TimeSpan()
        for one in found:
            lean.add_found(one["lean"])
            arrivals.add(TimeSpan(**one["arrivals"]))
        totals = [json.loads(bytes(item.body)) for item in heads if item.kind == TOTALS]
        if not totals:
            return lean, arrivals, None
        facts = EventFacts.none()
        for one in totals:
            facts.add(EventFacts.decode(one))
        return lean, arrivals, facts


class _BlockReader:
    """Reads thin columns in the order of the rows, of which few blocks are in memory.

    Args:
        blocks: Messages by block, ascending.
        schema: Their schema, with the number of each row.
    """

    def __init__(self, blocks: Iterator[tuple[int, Iterator[Item]]], schema: pa.Schema) -> None:
        self._blocks, self._schema = blocks, schema
        self._rest = schema.empty_table()
        self._row = 0

    def read(self, count: int) -> pa.Table:
        """Returns the next rows.

        Raises:
            EngineError: One is missing, or came twice.
        """
        while self._rest.num_rows < count:
            found = next(self._blocks, None)
            if found is None:
                break
            block = read_table([item.body for item in found[1]], self._schema)
            self._rest = pa.concat_tables([self._rest, block.sort_by("row")])
        part = self._rest.slice(0, count).combine_chunks()
        self._rest = self._rest.slice(count)
        if not np.array_equal(
            part.column("row").to_numpy(), np.arange(self._row, self._row + count)
        ):
            raise lost_rows()
        self._row += count
        return part

    def finish(self) -> None:
        """Checks that no row is left. Raises EngineError."""
        if self._rest.num_rows or next(self._blocks, None) is not None:
            raise lost_rows()


def _by_block(
    slices: NDArray[np.int64], places: NDArray[np.int64], batch: pa.RecordBatch
) -> Iterator[Item]:
    """Cuts rows, ascending by slice and place, into messages of one block each."""
    blocks = places // BLOCK_ROWS
    changes = (np.diff(slices) != 0) | (np.diff(blocks) != 0)
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(places)]
    for first, last in pairwise(bounds):
        if first < last:
            body = message(batch.slice(first, last - first))
            yield Item(int(slices[first]), int(blocks[first]), THIN, body)


def _request_schema(kind: IdKind) -> pa.Schema:
    names = ("user_id", "request_ts", "slice", "row")
    texts = [("text", pa.string())] if is_text_kind(kind) else []
    return pa.schema([*((name, pa.int64()) for name in names), *texts])
