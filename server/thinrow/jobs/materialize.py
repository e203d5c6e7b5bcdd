"""Fat rows: thin rows with their histories put back inside, as Parquet."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.client import Batch, read_thin_rows, row_count
from thinrow.core.files.history_columns import with_histories
from thinrow.core.files.paths import data_files
from thinrow.core.status import status_name
from thinrow.errors import InputError
from thinrow.events.canonical import check_output
from thinrow.jobs.fat_codes import with_codes_named
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from thinrow.client import Client, Projection, ThinRows
    from thinrow.core.files.paths import Named

__all__ = [
    "BATCH_EXAMPLES",
    "ROW_GROUP_BYTES",
    "ROW_GROUP_ROWS",
    "MaterializeReport",
    "materialize",
    "stream_read",
    "stream_rows",
]

BATCH_EXAMPLES = 512
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
            group.append(with_histories(batch, table, rows))
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
