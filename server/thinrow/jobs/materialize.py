"""Fat rows: thin rows with their histories put back inside, as Parquet."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from thinrow.client import Batch, read_thin_rows, row_count
from thinrow.core.files.paths import data_files
from thinrow.core.runs import offsets_of
from thinrow.core.status import status_name
from thinrow.errors import InputError
from thinrow.events.canonical import check_output
from thinrow.jobs.fat_codes import with_codes_named
from thinrow.store.shard import storage_error
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.client import Client, Projection, ThinRows
    from thinrow.core.files.paths import Named

__all__ = [
    "BATCH_EXAMPLES",
    "ROW_GROUP_BYTES",
    "ROW_GROUP_ROWS",
    "STATUS_COLUMN",
    "TEXT_BYTES_MAX",
    "MaterializeReport",
    "materialize",
    "stream_read",
    "stream_rows",
    "text_bounds",
    "to_arrow",
    "to_fat",
    "to_lists",
]

STATUS_COLUMN = "uih_status"
BATCH_EXAMPLES = 512
TEXT_BYTES_MAX = (1 << 31) - 1
"""Text in one Arrow array of 32-bit offsets."""
ROW_GROUP_ROWS = 8192
ROW_GROUP_BYTES = 64 << 20
"""A row group of a fat file is written once it has one or the other."""


@dataclass(slots=True)
class MaterializeReport:
    """Report of a run."""

    rows: int = 0
    events: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    """Rows by status."""
    filled: tuple[str, ...] = ()
    """Traits whose values may have been filled after the events were served."""


def stream_rows(
    client: Client, rows: Named, projection: Projection | str, examples: int = BATCH_EXAMPLES
) -> Iterator[tuple[Batch, pa.Table]]:
    """The histories of a file of thin rows, batch by batch, and the columns beside them."""
    return stream_read(client, read_thin_rows(rows, examples=examples), projection)


def stream_read(
    client: Client, read: Iterable[tuple[ThinRows, pa.Table]], projection: Projection | str
) -> Iterator[tuple[Batch, pa.Table]]:
    """The histories of thin rows, batch by batch, and the columns that came with them."""
    tables: deque[pa.Table] = deque()

    def thin_rows() -> Iterator[ThinRows]:
        for rows, table in read:
            tables.append(table)
            yield rows

    for batch in client.stream(thin_rows(), projection):
        yield batch, tables.popleft()


def materialize(
    client: Client,
    rows: Named,
    projection: Projection | str,
    fat: Path,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> MaterializeReport:
    """Writes fat rows for a file of thin rows, in its order.

    Raises:
        InputError: ``rows`` is no file of thin rows, or a column of it has a trait's name.
        ThinRowError: the server failed, or cannot be reached.
    """
    check_output(fat, data_files(rows))
    report = MaterializeReport()
    total = row_count(rows)
    temporary = fat.with_name(fat.name + ".new")
    writer = None
    group: list[pa.Table] = []
    try:
        filled: set[str] = set()
        for batch, table in stream_rows(client, rows, projection):
            filled |= batch.filled
            group.append(to_fat(batch, table, rows))
            if writer is None:
                fat.parent.mkdir(parents=True, exist_ok=True)
                fields = with_codes_named(group[0].schema, _coded(client))
                writer = pq.ParquetWriter(temporary, fields, compression="zstd")
            if (
                sum(len(part) for part in group) >= ROW_GROUP_ROWS
                or sum(part.nbytes for part in group) >= ROW_GROUP_BYTES
            ):
                writer.write_table(pa.concat_tables(group))
                group = []
            report.rows += len(batch)
            report.events += int(batch.offsets[-1])
            numbers, counts = np.unique(batch.statuses, return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                name = status_name(number)
                report.statuses[name] = report.statuses.get(name, 0) + count
            progress("Writing fat rows", report.rows, total)
        if writer is None:
            raise InputError(f"{rows} holds no rows, so there is nothing to write.")
        if group:
            writer.write_table(pa.concat_tables(group))
        writer.close()
        temporary.replace(fat)
        report.filled = tuple(sorted(filled))
    except (OSError, pa.ArrowException) as error:
        raise storage_error(error, fat) from error
    finally:
        # The failure has been reported; a full disk fails here once more.
        with suppress(OSError, pa.ArrowException):
            if writer is not None:
                writer.close()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return report


def _coded(client: Client) -> list[str]:
    """Returns the traits of a store that have a vocabulary."""
    groups = client.describe_store().feature_groups
    return [t.name for group in groups for t in group.traits if t.HasField("vocabulary")]


def to_fat(batch: Batch, table: pa.Table, source: Named) -> pa.Table:
    """The columns of ``table``, the status, and a list column per trait.

    A row whose status is not OK has null for every list. Raises InputError where a column of
    ``table`` has the name of a trait.
    """
    for name in (STATUS_COLUMN, *batch.values):
        if name in table.column_names:
            raise InputError(
                f"{source} has a column {name}, and fat rows have a history of that name; rename "
                f"the column (for example label_{name}), or leave the trait out with --traits."
            )
    statuses = pa.array([status_name(number) for number in batch.statuses.tolist()])
    table = table.append_column(STATUS_COLUMN, statuses)
    for name in batch.values:
        table = table.append_column(name, to_lists(batch, name))
    return table


def to_lists(batch: Batch, trait: str) -> pa.ChunkedArray:
    """Makes a list of each row of a batch, in chunks that have room for their text.

    Raises InputError where a single row has none.
    """
    values = to_arrow(batch, trait)
    failed = batch.statuses != wire.STATUS_OK
    bounds = [0, len(batch)]
    kind, flat, ends = values.type, values, batch.offsets
    if trait in batch.list_offsets:
        kind, flat = pa.list_(kind.value_type), values.values
        ends = batch.list_offsets[trait][ends]
    if trait in batch.strings:
        kind = pa.string() if flat is values else pa.list_(pa.string())
        lengths = pc.fill_null(pc.binary_length(flat), 0).to_numpy()
        bounds = text_bounds(trait, offsets_of(lengths)[ends])
    lists = []
    for first, last in pairwise(bounds):
        offsets = batch.offsets[first : last + 1]
        lists.append(
            pa.ListArray.from_arrays(
                pa.array(offsets - offsets[0], pa.int32()),
                values.slice(offsets[0], offsets[-1] - offsets[0]).cast(kind),
                mask=pa.array(failed[first:last]),
            )
        )
    return pa.chunked_array(lists, pa.list_(kind))


def text_bounds(trait: str, ends: NDArray[np.int64]) -> list[int]:
    """Cuts rows so that each part has at most TEXT_BYTES_MAX; `ends[row]` are those before it."""
    bounds = [0]
    while bounds[-1] < len(ends) - 1:
        first = bounds[-1]
        last = int(np.searchsorted(ends, ends[first] + TEXT_BYTES_MAX, side="right")) - 1
        if last == first:
            raise InputError(
                f"A history has {ends[first + 1] - ends[first]} bytes of {trait}, and Parquet's "
                f"readers take {TEXT_BYTES_MAX} in a row; give a --sequence-length."
            )
        bounds.append(last)
    return bounds


def to_arrow(batch: Batch, trait: str) -> pa.Array:
    """One trait of all events of a batch."""
    values = batch.values[trait]
    present = batch.present.get(trait)
    mask = None if present is None else ~present
    if trait in batch.list_offsets:
        elements = pa.array(values)
        if trait in batch.strings:
            elements = pa.array(batch.strings[trait], pa.large_string()).take(elements)
        null = None if mask is None else pa.array(mask)
        return pa.LargeListArray.from_arrays(batch.list_offsets[trait], elements, mask=null)
    if trait in batch.strings:
        codes = pa.array(values, mask=mask)
        return pa.array(batch.strings[trait], pa.large_string()).take(codes)
    if values.ndim == 2:
        flat = pa.array(values.reshape(-1))
        null = None if mask is None else pa.array(mask)
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=null)
    return pa.array(values, mask=mask)
