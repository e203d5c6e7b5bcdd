"""Thin rows as columns, and as a Parquet file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from thinrow.core.files.arrow import mutable_type, uih_type
from thinrow.core.runs import offsets_of
from thinrow.events.canonical import ID_COLUMNS, canonical_type, from_canonical
from thinrow.events.time_columns import TimeReader
from thinrow.events.user_ids import user_column, written_ids

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl
    from numpy.typing import NDArray
    from thinrow.core.files.paths import AnyFile
    from thinrow.core.ids import IdKind
    from thinrow.events.units import TimeUnit
    from thinrow.schema import Schema
    from thinrow.store.user_texts import UserTexts

__all__ = [
    "ThinRowsFile",
    "ThinRowsWriter",
    "event_table",
    "mutable_column",
    "mutable_type_of",
    "nullable_traits",
    "thin_rows_writer",
    "uih_column",
    "with_finer_times",
    "with_plain_keys",
    "with_thin_columns",
]

NS_PER_MS = 1_000_000
ZSTD_LEVEL = 9


def mutable_type_of(schema: Schema) -> pa.ListType:
    """Returns the Arrow type of the column ``mutable`` for a schema."""
    traits = ((t.name, t.type, t.size, t.length_max) for t in schema.traits)
    return mutable_type(traits, schema.event_id.type)


def nullable_traits(schema: Schema) -> list[str]:
    """Names the traits that events may lack."""
    return [trait.name for trait in schema.traits if trait.nullable]


def event_table(events: pl.DataFrame, schema: Schema, users: UserTexts | None = None) -> pa.Table:
    """Converts events in canonical form to the columns that users read and write.

    Args:
        events: The events.
        schema: Their schema.
        users: The texts of their users; without them users stand by their keys, where ids are
            texts.
    """
    columns = {name: events[name].to_arrow() for name in ID_COLUMNS}
    keys = events["user_id"].to_numpy()
    columns["user_id"] = written_ids(keys, schema.user_ids)
    if users is not None:
        places = np.searchsorted(users.keys.view(np.uint64), keys.view(np.uint64))
        columns["user_id"] = pa.array(users.texts, pa.string()).take(pa.array(places))
    for trait in (schema.event_id, *schema.traits):
        canonical = events[trait.name].to_arrow().cast(canonical_type(trait))
        columns[trait.name] = from_canonical(canonical, trait)
    return pa.table(columns)


def with_finer_times(events: pa.Table, finer_ns: pa.Array, unit: TimeUnit) -> pa.Table:
    """Restores the part of event times finer than a millisecond, which orders events before ids."""
    ns_per_tick = {"us": 1000, "ns": 1}.get(unit)
    if ns_per_tick is None:
        return events
    ms = pc.multiply_checked(events.column("event_ts"), NS_PER_MS // ns_per_tick)
    ticks = pc.add_checked(ms, pc.divide(finer_ns, ns_per_tick))
    times = ticks.cast(pa.timestamp(unit, "UTC"))
    return events.set_column(events.column_names.index("event_ts"), "event_ts", times)


def mutable_column(events: pl.DataFrame, counts: NDArray[np.int64], schema: Schema) -> pa.ListArray:
    """Makes the column ``mutable`` of rows that carry ``counts`` events each, row after row."""
    kind = mutable_type_of(schema)
    fields = list(kind.value_type)
    columns = event_table(events, schema)
    snapshots = pa.StructArray.from_arrays(
        [columns.column(field.name).combine_chunks() for field in fields], fields=fields
    )
    return pa.ListArray.from_arrays(pa.array(offsets_of(counts), pa.int32()), snapshots, type=kind)


def uih_column(
    start_ts: NDArray[np.int64],
    end_ts: NDArray[np.int64],
    max_lengths: NDArray[np.int64],
    digests: NDArray[np.uint64],
) -> pa.StructArray:
    """Makes the column ``uih``; arrays of shape (rows,)."""
    columns = (start_ts, end_ts, max_lengths, digests)
    return pa.StructArray.from_arrays(
        [pa.array(column) for column in columns], fields=list(uih_type())
    )


def with_plain_keys(
    path: AnyFile, table: pa.Table, unit: TimeUnit | None, kind: IdKind
) -> pa.Table:
    """Converts user_id to the one type of its kind, and request_ts to int64 milliseconds.

    Raises:
        InputError: A column has nulls or values that do not fit.
    """
    times = TimeReader(unit).read(path, table.column("request_ts"), "request_ts")
    for name, column in (
        ("user_id", user_column(path, table.column("user_id"), kind)),
        ("request_ts", times.ms),
    ):
        table = table.set_column(table.column_names.index(name), name, column)
    return table


class ThinRowsWriter(Protocol):
    """Writes thin rows somewhere: ThinRowsFile, DividedRows, or ThinRowsFolder."""

    def open(self, schema: pa.Schema) -> object:
        """Sets the columns, which the first rows set otherwise."""

    def write(self, rows: pa.Table, thin: pa.Table) -> None:
        """Writes rows, and ``uih`` and ``mutable`` from ``thin`` beside them."""


class ThinRowsFile:
    """A file of thin rows, with the schema of the first table. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def open(self, schema: pa.Schema) -> pq.ParquetWriter:
        """Returns the file's writer, which the first call opens with ``schema``."""
        if self._writer is None:
            self._writer = thin_rows_writer(self._path, schema)
        return self._writer

    def write(self, rows: pa.Table, thin: pa.Table) -> None:
        """Writes rows, and ``uih`` and ``mutable`` from ``thin`` beside them."""
        table = with_thin_columns(rows, thin)
        self.open(table.schema).write_table(table)


def with_thin_columns(rows: pa.Table, thin: pa.Table) -> pa.Table:
    """Adds ``uih`` and ``mutable`` of ``thin`` to the columns of rows."""
    for name in ("uih", "mutable"):
        rows = rows.append_column(thin.field(name), thin.column(name))
    return rows


def thin_rows_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Opens a file of thin rows to be written; row groups of some ten thousand rows pack best."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        # A user's snapshots repeat one another within a day. Zstd finds whole runs of them only
        # where values keep their bytes, and indexes of a dictionary are packed into bits.
        use_dictionary=[path for path in _leaves(schema) if not _changes(path)],
    )


def _leaves(schema: pa.Schema) -> list[str]:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [leaves.column(index).path for index in range(len(leaves))]


def _changes(path: str) -> bool:
    return path in ("request_ts", "uih.digest") or path.startswith("mutable.")
