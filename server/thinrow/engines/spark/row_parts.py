"""Thin rows in parts on Spark: a task per slice divides its rows, and a task per part writes them.

Messages of rows have numbers, and each slice sends its number of rows to every part, so that a part
with a row too few or too many is never published.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from thinrow.core.files.arrow import rows_at
from thinrow.core.shards import part_folder
from thinrow.engines.spark import shuffled
from thinrow.engines.spark.shuffled import Item, items, message
from thinrow.engines.spark.tasks import (
    RESULT_COLUMNS,
    check_numbers,
    lost_rows,
    result_row,
    task,
)
from thinrow.jobs.row_parts import PART_FILE, write_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from thinrow.engines.spark.outputs import OutputFolder
    from thinrow.engines.spark.session import Spark
    from thinrow.engines.spark.tasks import Software
    from thinrow.jobs.row_parts import DividedRows

__all__ = ["PartPlan", "WrittenParts", "part_items", "part_messages"]

COUNT, SCHEMA, RESULT = "count", "schema", "result"
"""Kinds of rows that come before those of slices, with `sub` -1."""


def _rows_kind(number: int) -> str:
    """Returns the kind of a message of rows; messages of a slice sort by it."""
    return f"rows-{number:09d}"


def part_items(number: int, rows: DividedRows, result: dict[str, Any]) -> Iterator[Item]:
    """Yields the rows of a slice by part.

    Args:
        number: Number of the slice.
        rows: Its rows.
        result: Result of the slice for the driver, which travels with part 0.
    """
    for part in range(rows.parts):
        messages = count = 0
        for table in rows.tables(part):
            count += table.num_rows
            for batch in part_messages(table):
                yield Item(part, number, _rows_kind(messages), message(batch))
                messages += 1
        yield Item(part, -1, COUNT, json.dumps([number, count]).encode())
        if number == 0:
            yield Item(part, -1, SCHEMA, rows.schema.serialize())
    yield Item(0, -1, RESULT, json.dumps([number, result]).encode())


def part_messages(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Cuts rows into messages of MESSAGE_BYTES, about."""
    rows_max = max(1, table.num_rows * shuffled.MESSAGE_BYTES // max(table.nbytes, 1))
    for start in range(0, table.num_rows, rows_max):
        places = np.arange(start, min(start + rows_max, table.num_rows))
        # A copy, since messages of slices of views have all that the views point into.
        yield from rows_at(table, places).combine_chunks().to_batches()


@dataclass(frozen=True, slots=True, kw_only=True)
class _WrittenPart:
    """Result of one task: the rows of a part."""

    part: int
    file: str
    """Name of the file in the scratch place of the output."""
    file_bytes: int
    rows: int
    slices: list[tuple[int, dict[str, Any]]]
    """Numbers and results of all slices; of part 0 only."""


@dataclass(frozen=True, slots=True)
class WrittenParts:
    """All parts, before they are published."""

    output: OutputFolder
    written: list[_WrittenPart]
    """Parts with rows; the last part if no part has any."""
    results: list[dict[str, Any]]
    """Results of slices, by their numbers."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(one.rows for one in self.written)

    @property
    def file_bytes(self) -> int:
        """Bytes of the files."""
        return sum(one.file_bytes for one in self.written)

    def publish(self) -> None:
        """Lets the folder appear."""
        targets = [f"{part_folder(one.part)}/{PART_FILE}" for one in self.written]
        self.output.publish([one.file for one in self.written], targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlan:
    """Input of tasks that write parts; Spark carries it to them."""

    software: Software
    slices: int
    """Number of slices."""
    parts: int
    """Number of parts."""
    output: OutputFolder

    def collect(self, frame: Any, spark: Spark, stage: str) -> WrittenParts:  # noqa: ANN401
        """Shuffles what `part_items` yielded of all slices, and writes the parts, in tasks.

        Args:
            frame: A frame of Spark with COLUMNS.
            spark: The session.
            stage: Name of the work, for progress.

        Raises:
            EngineError: A slice, a row or a part is missing, or came twice.
        """
        written = (
            frame.repartitionById(self.parts, "part")
            .sortWithinPartitions("part", "sub", "kind")
            .mapInArrow(self.write, RESULT_COLUMNS)
        )
        found = [
            _WrittenPart(part=number, **json.loads(text))
            for number, text in sorted(spark.rows(written, stage))
        ]
        check_numbers("parts", [one.part for one in found], self.parts)
        slices = sorted(found[0].slices, key=lambda one: one[0])
        check_numbers("slices", [number for number, _ in slices], self.slices)
        kept = [one for one in found if one.rows] or found[-1:]
        return WrittenParts(self.output, kept, [result for _, result in slices])

    def write(self, found: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Writes the parts whose rows these are, sorted by slice and kind; see `_WrittenPart`."""
        with task(self.software) as folder:
            for part, rows in groupby(items(found), key=lambda item: item.part):
                one = asdict(self._written(part, rows, folder / f"{part}.parquet"))
                yield result_row(one.pop("part"), one)

    def _written(self, part: int, rows: Iterator[Item], path: Path) -> _WrittenPart:
        slices = groupby(rows, key=lambda item: item.sub)
        _, heads = next(slices)
        bodies: dict[str, list[Any]] = {COUNT: [], SCHEMA: [], RESULT: []}
        for item in heads:
            bodies[item.kind].append(item.body)
        counts = [json.loads(bytes(body)) for body in bodies[COUNT]]
        check_numbers("slices", [number for number, _ in counts], self.slices)
        count = write_part(
            path, pa.ipc.read_schema(bodies[SCHEMA][0]), _tables(slices, dict(counts))
        )
        file_bytes = path.stat().st_size
        return _WrittenPart(
            part=part,
            # Most parts of a small run may be empty, and need no file.
            file=self.output.put(path) if count or part == self.parts - 1 else "",
            file_bytes=file_bytes,
            rows=count,
            slices=[json.loads(bytes(body)) for body in bodies[RESULT]],
        )


def _tables(
    slices: Iterable[tuple[int, Iterator[Item]]], counts: dict[int, int]
) -> Iterator[pa.Table]:
    """Yields the rows of a part, message after message.

    Args:
        slices: Messages by slice, ascending.
        counts: Number of rows of each slice.

    Raises:
        EngineError: A row is missing, or came twice.
    """
    missing = dict(counts)
    for number, messages in slices:
        for place, item in enumerate(messages):
            if item.kind != _rows_kind(place):
                raise lost_rows()
            table = pa.ipc.open_stream(item.body).read_all()
            missing[number] -= table.num_rows
            yield table
    if any(missing.values()):
        raise lost_rows()
