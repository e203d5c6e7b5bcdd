"""Compares what training would see with fat rows, event by event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.cli.fat_rows import STATUS_COLUMN, status_name, stream_rows, to_arrow
from thinrow.client import Projection, row_count
from thinrow.errors import InputError
from thinrow.events.canonical import open_parquet, read_batches
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow.parquet as pq
    from numpy.typing import NDArray
    from thinrow.client import Batch, Client

DIFFERENCES_SHOWN = 20
KEYS = ("user_id", "request_ts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One place where the two disagree."""

    row: int
    user_id: int
    request_ts: int
    where: str
    fat: str
    """What the fat row says."""
    thin: str
    """What was materialized."""


@dataclass(slots=True, kw_only=True)
class VerifyReport:
    """What a comparison found."""

    traits: list[str]
    """Compared."""
    not_compared: list[str]
    """List columns of the fat rows that the store does not have."""
    not_in_fat: list[str]
    """Traits of the store that the fat rows do not have."""
    rows: int = 0
    events: int = 0
    values: int = 0
    rows_that_differ: int = 0
    differences: list[Difference] = field(default_factory=list)
    """The first few."""


def verify(
    client: Client,
    rows: Path,
    fat: Path,
    sequence_length: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> VerifyReport:
    """Materializes ``rows`` and compares every event with ``fat``, which has the same row order.

    Raises:
        InputError: the files cannot be compared.
        ThinRowError: the server failed, or cannot be reached.
    """
    file = open_parquet(fat)
    total = row_count(rows)
    if total != file.metadata.num_rows:
        raise InputError(
            f"{rows} has {total} rows and {fat} has {file.metadata.num_rows}; compare files of "
            f"the same requests."
        )
    groups = client.describe_store().feature_groups
    stored = [trait.name for group in groups for trait in group.traits]
    known = {"event_ts", "event_id", "visible_ts", *stored}
    lists = [
        item.name
        for item in file.schema_arrow
        if pa.types.is_list(item.type)
        or pa.types.is_large_list(item.type)
        or pa.types.is_fixed_size_list(item.type)
    ]
    report = VerifyReport(
        traits=[name for name in lists if name in known],
        not_compared=[name for name in lists if name not in known and name != "mutable"],
        not_in_fat=[name for name in stored if name not in lists],
    )
    if not report.traits:
        raise InputError(f"{fat} has no list column named as a trait of the store; check the file.")
    for key in KEYS:
        if key not in file.schema_arrow.names:
            raise InputError(f"{fat} has no column {key}, which tells whose row is whose.")
        kind = file.schema_arrow.field(key).type
        if not pa.types.is_integer(kind):
            raise InputError(f"{fat}: {key} is {kind}; it must be an integer.")
    projection = Projection(sequence_length, traits=tuple(report.traits))
    parts = _Reader(fat, file, [*KEYS, *report.traits])
    for batch, table in stream_rows(client, rows, projection):
        _compare(batch, table, parts.read(len(batch)), report, fat)
        progress("Comparing rows", report.rows, total)
    return report


class _Reader:
    """Reads a Parquet file a chosen number of rows at a time."""

    def __init__(self, path: Path, file: pq.ParquetFile, columns: Sequence[str]) -> None:
        names = [*columns]
        if STATUS_COLUMN in file.schema_arrow.names:
            names.append(STATUS_COLUMN)
        self._batches: Iterator[pa.RecordBatch] = read_batches(path, file, 8192, names)
        self._rest = file.schema_arrow.empty_table().select(names)

    def read(self, rows: int) -> pa.Table:
        while len(self._rest) < rows:
            more = pa.table(next(self._batches))
            self._rest = pa.concat_tables([self._rest, more])
        part = self._rest.slice(0, rows).combine_chunks()
        self._rest = self._rest.slice(rows)
        return part


def _compare(
    batch: Batch, table: pa.Table, fat: pa.Table, report: VerifyReport, path: Path
) -> None:
    keys = {key: table.column(key).to_numpy() for key in KEYS}
    for key, ours in keys.items():
        theirs = fat.column(key).cast(pa.int64()).to_numpy()
        misplaced = np.flatnonzero(ours != theirs)
        if misplaced.size:
            row = int(misplaced[0])
            raise InputError(
                f"Row {report.rows + row} is of {key} {ours[row]} among the thin rows and of "
                f"{theirs[row]} in {path}; sort both files alike."
            )
    differs = np.zeros(len(batch), dtype=np.bool_)

    def note(row: int, where: str, theirs: object, ours: object) -> None:
        differs[row] = True
        if len(report.differences) < DIFFERENCES_SHOWN:
            report.differences.append(
                Difference(
                    row=report.rows + row,
                    user_id=int(keys["user_id"][row]),
                    request_ts=int(keys["request_ts"][row]),
                    where=where,
                    fat=str(theirs),
                    thin=str(ours),
                )
            )

    expected = ["OK"] * len(batch)
    if STATUS_COLUMN in fat.column_names:
        expected = fat.column(STATUS_COLUMN).to_pylist()
    for row, (number, status) in enumerate(zip(batch.statuses.tolist(), expected, strict=True)):
        if status_name(number) != status:
            note(row, "status", status, status_name(number))
    comparable = (batch.statuses == wire.STATUS_OK) & ~differs
    for trait in report.traits:
        column = fat.column(trait).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0)
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        ours = np.diff(batch.offsets)
        for row in np.flatnonzero(comparable & (lengths != ours)).tolist():
            note(row, f"{trait}: length", lengths[row], ours[row])
        same = np.flatnonzero(comparable & (lengths == ours))
        theirs_flat, ours_flat = _aligned(batch, column, trait, same, path)
        unequal = np.flatnonzero(_unequal(theirs_flat, ours_flat))
        owner = np.repeat(same, ours[same])
        starts = np.repeat(np.cumsum(ours[same]) - ours[same], ours[same])
        seen: set[int] = set()
        for place in unequal.tolist():
            row = int(owner[place])
            if row not in seen:
                seen.add(row)
                where = f"{trait}\\[{place - int(starts[place])}]"
                note(row, where, theirs_flat[place], ours_flat[place])
        report.values += len(ours_flat)
    report.rows += len(batch)
    report.events += int(batch.offsets[-1])
    report.rows_that_differ += int(differs.sum())


def _aligned(
    batch: Batch, column: pa.Array, trait: str, rows: NDArray[np.int64], path: Path
) -> tuple[pa.Array, pa.Array]:
    """The events of some rows, as one side has them and as the other, of one type."""
    ours = to_arrow(batch, trait)
    whole = pa.ListArray.from_arrays(pa.array(batch.offsets, pa.int32()), ours)
    theirs_flat = pc.list_flatten(column.take(pa.array(rows)))
    ours_flat = pc.list_flatten(whole.take(pa.array(rows)))
    if pa.types.is_dictionary(theirs_flat.type):
        theirs_flat = theirs_flat.cast(theirs_flat.type.value_type)
    try:
        return theirs_flat.cast(ours_flat.type), ours_flat
    except pa.ArrowException as error:
        raise InputError(
            f"{path}: {trait} is {theirs_flat.type} and the store's is {ours_flat.type}; they "
            f"cannot be compared ({str(error).splitlines()[0].rstrip('.')})."
        ) from error


def _unequal(theirs: pa.Array, ours: pa.Array) -> NDArray[np.bool_]:
    """Where two arrays of one type differ; floats are compared by their bits."""
    null = theirs.is_null().to_numpy(zero_copy_only=False)
    differs: NDArray[np.bool_] = null != ours.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(ours.type):
        size = ours.type.list_size
        both = np.flatnonzero(~null & ~differs)
        chosen = pa.array(both)
        inner = _unequal(theirs.take(chosen).flatten(), ours.take(chosen).flatten())
        differs[both] = inner.reshape(-1, size).any(axis=1)
        return differs
    if pa.types.is_floating(ours.type):
        bits = pa.from_numpy_dtype(f"uint{ours.type.bit_width}")
        theirs, ours = theirs.view(bits), ours.view(bits)
    unequal = pc.fill_null(pc.not_equal(theirs, ours), False)
    differs |= unequal.to_numpy(zero_copy_only=False)
    return differs


def difference_fields(difference: Difference) -> list[Any]:
    """A difference as the cells of a table's row."""
    return [
        str(difference.row),
        str(difference.user_id),
        str(difference.request_ts),
        difference.where,
        difference.fat,
        difference.thin,
    ]
