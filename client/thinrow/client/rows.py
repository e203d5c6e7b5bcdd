"""Reads files of thin rows."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.client.parquet_sizes import require_bounded_group
from thinrow.client.pointers import MutableColumn, MutableEvents, Pointers, ThinRows
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = [
    "check",
    "complete",
    "load_pyarrow",
    "open_parquet",
    "other_columns",
    "read_thin_rows",
    "row_count",
    "to_thin_rows",
]


def read_thin_rows(path: str | Path, *, examples: int) -> Iterator[tuple[ThinRows, pa.Table]]:
    """Reads a Parquet file of thin rows in file order, `examples` at a time (fewer at the end).

    With each comes a table of the other columns, user_id and request_ts among them. Raises
    InputError, naming file and column, where it is no file of thin rows.
    """
    pa = load_pyarrow()
    with open_parquet(path) as file:
        check(path, file.schema_arrow)
        for group in range(file.metadata.num_row_groups):
            require_bounded_group(path, file.metadata, group)
        for batch in file.iter_batches(batch_size=examples):
            others = batch.select(other_columns(batch.schema))
            yield to_thin_rows(path, batch), pa.Table.from_batches([others])


def row_count(path: str | Path) -> int:
    """Counts the rows of a Parquet file without reading them. Raises InputError."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def to_thin_rows(path: str | Path, batch: pa.RecordBatch) -> ThinRows:
    """Takes the pointers and mutable events of some rows; `path` is named in errors."""
    return ThinRows(to_pointers(path, batch), to_mutable(path, batch.column("mutable")))


def other_columns(schema: pa.Schema) -> list[str]:
    """Names the columns that pass through, user_id and request_ts among them."""
    return [name for name in schema.names if name not in ("uih", "mutable")]


def load_pyarrow() -> ModuleType:
    """Imports pyarrow, which the bare client does without."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "Thin rows in files need pyarrow: pip install 'thinrow[torch]', 'thinrow[logger]' or "
            "'thinrow[server]'."
        ) from error
    module: ModuleType = pa
    return module


@contextmanager
def open_parquet(path: str | Path, filesystem: object = None) -> Iterator[Any]:
    """Opens a Parquet file; what goes wrong while reading it is an InputError, too.

    filesystem: one of fsspec's or pyarrow's, in which `path` lies. None: this machine's.
    """
    pa = load_pyarrow()
    try:
        with pa.parquet.ParquetFile(path, filesystem=filesystem) as file:
            yield file
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; name its files, as in {path}/*.parquet.") from error
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; check the name.") from error
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"{path} cannot be read as Parquet: {reason}; write the file again."
        ) from error


def check(path: str | Path, schema: pa.Schema) -> None:
    """Refuses a file that does not hold thin rows."""
    types = load_pyarrow().types

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
        kind = within.field(place).type
        if not fits(kind):
            raise InputError(f"{path}: column {prefix}{name} is {kind}, but must be {what}.")
        return kind

    def is_list_of_struct(kind: pa.DataType) -> bool:
        is_list = types.is_list(kind) or types.is_large_list(kind)
        return bool(is_list and types.is_struct(kind.value_type))

    need(schema, "", "user_id", types.is_integer, "int64")
    need(schema, "", "request_ts", types.is_integer, "int64")
    pointer = need(schema, "", "uih", types.is_struct, "a struct")
    for name in ("start_ts", "end_ts", "max_length", "digest"):
        need(pointer, "uih.", name, types.is_integer, "int64")
    mutable = need(schema, "", "mutable", is_list_of_struct, "a list of structs")
    need(mutable.value_type, "mutable.", "event_ts", types.is_integer, "int64")
    if mutable.value_type.get_field_index("arrival_ts") >= 0:
        need(mutable.value_type, "mutable.", "arrival_ts", types.is_integer, "int64")


def to_pointers(path: str | Path, batch: pa.RecordBatch) -> Pointers:
    """Takes the pointers of some rows."""
    uih = fields(batch.column("uih"))
    return Pointers(
        user_ids=complete(path, "user_id", batch.column("user_id")),
        start_ts=complete(path, "uih.start_ts", uih["start_ts"]),
        end_ts=complete(path, "uih.end_ts", uih["end_ts"]),
        max_lengths=complete(path, "uih.max_length", uih["max_length"]),
        digests=complete(path, "uih.digest", uih["digest"]),
        request_ts=complete(path, "request_ts", batch.column("request_ts")),
    )


def to_mutable(path: str | Path, snapshots: pa.Array) -> MutableEvents:
    """Takes the mutable events of some rows; a row whose list is null has none."""
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


def complete(path: str | Path, name: str, array: pa.Array) -> NDArray[Any]:
    """Takes a column that every row must have."""
    if array.null_count:
        raise InputError(
            f"{path}: column {name} must not be null, but is in {array.null_count} rows."
        )
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def to_column(path: str | Path, name: str, array: pa.Array) -> MutableColumn:
    """Takes a column that some rows may lack; values there are 0."""
    types = load_pyarrow().types
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    present = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    if types.is_fixed_size_list(array.type):
        # Here, too, `flatten` leaves out what absent vectors hold.
        values = complete(path, name, array.flatten()).reshape(-1, array.type.list_size)
    else:
        values = array.drop_null().to_numpy(zero_copy_only=False)
    if present is None:
        return MutableColumn(values)
    scattered = np.zeros((len(array), *values.shape[1:]), values.dtype)
    scattered[present] = values
    return MutableColumn(scattered, present)
