"""Reads files of thin rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.files.arrow import (
    conformed,
    leaf_count,
    load_pyarrow,
    plain,
    plain_type,
    to_numpy,
)
from thinrow.core.files.parquet import joined_batches, open_parquet
from thinrow.core.files.paths import data_files
from thinrow.core.files.user_columns import holds_users, user_values
from thinrow.core.pointers import MutableColumn, MutableEvents, Pointers, ThinRows
from thinrow.core.runs import offsets_of
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.core.files.parquet import ParquetTable
    from thinrow.core.files.paths import DataFile, Named
    from thinrow.core.pointers import Projection

__all__ = [
    "check",
    "complete",
    "leaves_of",
    "other_columns",
    "read_thin_rows",
    "row_count",
    "snapshots_type",
    "to_pointers",
    "to_thin_rows",
    "traits_named",
    "with_traits",
]

EVENT_TIMES = ("event_ts", "arrival_ts")
"""Fields of mutable events that are read for every projection."""


def read_thin_rows(path: Named, *, examples: int) -> Iterator[tuple[ThinRows, pa.Table]]:
    """Reads thin rows in file order, `examples` at a time, fewer at the end of each file.

    path: of Parquet files, folders or globs, or URLs of either, one or several; files are sorted.

    With each comes a table of the other columns, user_id and request_ts among them. Raises
    InputError, naming file and column, where one is no file of thin rows.
    """
    load_pyarrow()
    _, batches = joined_batches(thin_row_files(path), examples)
    yield from split_thin_rows(batches)


def thin_row_files(path: Named) -> list[DataFile]:
    """Lists the files of thin rows that paths stand for. Raises InputError as `check` does."""
    files = data_files(path)
    for file in files:
        with open_parquet(file) as table:
            check(file, table.schema_arrow)
    return files


def split_thin_rows(
    batches: Iterable[tuple[DataFile, pa.RecordBatch]],
) -> Iterator[tuple[ThinRows, pa.Table]]:
    """Yields the thin rows of batches of files, and the other columns beside them."""
    table = load_pyarrow().Table
    for file, batch in batches:
        others = batch.select(other_columns(batch.schema))
        yield to_thin_rows(file, batch), table.from_batches([others])


def row_count(path: Named) -> int:
    """Counts the rows of Parquet files without reading them. Raises InputError."""
    load_pyarrow()
    count = 0
    for file in data_files(path):
        with open_parquet(file) as table:
            count += table.metadata.num_rows
    return count


def to_thin_rows(path: object, batch: pa.RecordBatch) -> ThinRows:
    """Takes the pointers and mutable events of some rows; `path` is named in errors."""
    return ThinRows(to_pointers(path, batch), to_mutable(path, batch.column("mutable")))


def other_columns(schema: pa.Schema) -> list[str]:
    """Names the columns that pass through, user_id and request_ts among them."""
    return [name for name in schema.names if name not in ("uih", "mutable")]


def check(path: object, schema: pa.Schema) -> None:
    """Refuses a file that does not hold thin rows."""
    types = load_pyarrow().types
    refuse_twins(path, "", schema.names)

    def need(
        within: pa.Schema | pa.StructType,
        prefix: str,
        name: str,
        fits: Callable[[pa.DataType], bool],
        what: str,
    ) -> pa.DataType:
        place = within.get_field_index(name)
        if place < 0:
            raise InputError(
                f"{path} has no column {prefix}{name}, so it is not a file of thin rows; "
                f"`thinrow backfill` writes them."
            )
        stored = within.field(place).type
        kind = plain_type(stored)
        if not fits(kind):
            raise InputError(f"{path}: column {prefix}{name} is {stored}, but must be {what}.")
        return kind

    def is_list_of_struct(kind: pa.DataType) -> bool:
        kind = snapshots_type(kind)
        return bool(types.is_large_list(kind) and types.is_struct(kind.value_type))

    def is_integer_or_null(kind: pa.DataType) -> bool:
        return bool(types.is_integer(kind) or types.is_null(kind))

    need(schema, "", "user_id", holds_users, "integers, texts or UUIDs")
    need(schema, "", "request_ts", types.is_integer, "int64")
    pointer = need(schema, "", "uih", types.is_struct, "a struct")
    for name in ("start_ts", "end_ts", "max_length", "digest"):
        need(pointer, "uih.", name, types.is_integer, "int64")
    mutable = snapshots_type(need(schema, "", "mutable", is_list_of_struct, "a list of structs"))
    refuse_twins(path, "mutable.", mutable.value_type.names)
    need(mutable.value_type, "mutable.", "event_ts", types.is_integer, "int64")
    if mutable.value_type.get_field_index("arrival_ts") >= 0:
        need(mutable.value_type, "mutable.", "arrival_ts", is_integer_or_null, "int64")


def snapshots_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of mutable snapshots, in the one layout.

    Where no row has an event, pandas writes lists of type null, or a column of it.
    """
    pa = load_pyarrow()
    kind = plain_type(kind)
    none_has_events = pa.types.is_null(kind) or (
        pa.types.is_large_list(kind) and pa.types.is_null(kind.value_type)
    )
    return pa.large_list(pa.struct([("event_ts", pa.int64())])) if none_has_events else kind


def refuse_twins(path: object, prefix: str, names: Sequence[str]) -> None:
    """Refuses two columns of one name."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has two columns named {prefix + name!r}; rename one.")


def to_pointers(path: object, batch: pa.RecordBatch) -> Pointers:
    """Takes the pointers of some rows."""
    uih = fields(plain(batch.column("uih")))
    return Pointers(
        user_ids=user_values(path, batch.column("user_id")),
        start_ts=complete(path, "uih.start_ts", uih["start_ts"]),
        end_ts=complete(path, "uih.end_ts", uih["end_ts"]),
        max_lengths=complete(path, "uih.max_length", uih["max_length"]),
        digests=complete(path, "uih.digest", uih["digest"]),
        request_ts=complete(path, "request_ts", batch.column("request_ts")),
    )


def to_mutable(path: object, snapshots: pa.Array) -> MutableEvents:
    """Takes the mutable events of some rows; a row whose list is null has none."""
    snapshots = conformed(snapshots, snapshots_type(snapshots.type))
    lengths = snapshots.value_lengths().fill_null(0).to_numpy()
    events = fields(snapshots.flatten())
    event_ts = complete(path, "mutable.event_ts", events["event_ts"])
    arrival_ts = event_ts
    if "arrival_ts" in events:
        arrival = to_column(path, "mutable.arrival_ts", events.pop("arrival_ts"))
        there = arrival.present
        arrival_ts = arrival.values if there is None else np.where(there, arrival.values, event_ts)
    return MutableEvents(
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
        arrival_ts=arrival_ts,
        columns={name: to_column(path, f"mutable.{name}", array) for name, array in events.items()},
    )


def fields(structs: pa.StructArray) -> dict[str, pa.Array]:
    """Takes structs apart; `flatten`, unlike `field`, heeds slices and null structs."""
    return dict(zip((field.name for field in structs.type), structs.flatten(), strict=True))


def complete(path: object, name: str, array: pa.Array) -> NDArray[Any]:
    """Takes a column that every row must have."""
    if array.null_count:
        raise InputError(
            f"{path}: column {name} must not be null, but is in {array.null_count} rows."
        )
    return to_numpy(path, name, plain(array))


def to_column(path: object, name: str, array: pa.Array) -> MutableColumn:
    """Takes a column that some rows may lack; values there are 0."""
    types = load_pyarrow().types
    present = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    if types.is_large_list(array.type):
        lengths = array.value_lengths().fill_null(0).to_numpy()
        values = complete(path, f"{name}[]", array.flatten())
        return MutableColumn(values, present, offsets_of(lengths))
    if types.is_fixed_size_list(array.type):
        # Here, too, `flatten` leaves out what absent vectors hold.
        values = complete(path, name, array.flatten()).reshape(-1, array.type.list_size)
    else:
        values = to_numpy(path, name, array.drop_null())
    if present is None:
        return MutableColumn(values)
    scattered = np.zeros((len(array), *values.shape[1:]), values.dtype)
    scattered[present] = values
    return MutableColumn(scattered, present)


def leaves_of(table: ParquetTable, schema: pa.Schema) -> list[int]:
    """Returns the numbers of Parquet's columns that a schema needs."""
    leaves: list[int] = []
    for name in schema.names:
        if name != "mutable":
            leaves += table.leaves(name)
            continue
        kind = plain_type(table.schema_arrow.field(name).type)
        if snapshots_type(kind) != kind:  # no events, and one leaf of nulls
            leaves += table.leaves(name)
            continue
        traits = set(schema.field(name).type.value_type.names)
        first = table.leaves(name).start
        for field in kind.value_type:
            count = leaf_count(field.type)
            if field.name in traits:
                leaves += range(first, first + count)
            first += count
    return leaves


def with_traits(schema: pa.Schema, traits: Sequence[str]) -> pa.Schema:
    """Returns the schema of thin rows without the other traits of mutable events."""
    arrow = load_pyarrow()
    place = schema.get_field_index("mutable")
    events = snapshots_type(schema.field(place).type).value_type
    kept = [field for field in events if field.name in {*EVENT_TIMES, *traits}]
    return schema.set(place, arrow.field("mutable", arrow.large_list(arrow.struct(kept))))


def traits_named(projection: Projection | str) -> tuple[str, ...] | None:
    """Returns the traits that a projection names; None if only the server knows them all."""
    if isinstance(projection, str) or projection.feature_groups:
        return None
    return projection.traits or None
