"""Raw events: from Parquet as users write it to one canonical Arrow form.

Canonical columns: ``user_id`` (the user's key), ``event_ts``, ``arrival_ts`` (int64), ``event_id``
(of the schema's kind, null where there is none), FINER_NS, then the traits in schema order as
integers of their size: floats and bools travel as their bits, so that nothing on the way can change
them. Only nullable traits hold nulls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import plain, plain_schema, relisted, trait_type
from thinrow.core.files.nested import field_names, field_type, split_name, with_fields
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.trait_arrays import trait_array
from thinrow.errors import InputError
from thinrow.events.exported import is_export
from thinrow.events.id_columns import id_column
from thinrow.events.user_ids import UserIdReader
from thinrow.schema import Schema, Trait, TraitType

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from thinrow.core.files.paths import AnyFile, DataFile
    from thinrow.events.time_columns import TimeReader

__all__ = [
    "BATCH_ROWS",
    "FINER_NS",
    "ID_COLUMNS",
    "arrow_type",
    "canonical_schema",
    "canonical_table",
    "canonical_type",
    "check_output",
    "from_canonical",
    "ignored_columns",
    "read_events",
    "trait_column",
]

BATCH_ROWS = 1 << 18
ID_COLUMNS = ("user_id", "event_ts", "arrival_ts", "event_id")
FINER_NS = "event_ts:ns"
"""The part of ``event_ts`` finer than a millisecond, int32 ns. It orders the events of one
generation or snapshot among themselves and is not stored. No trait can have this name."""


def canonical_type(trait: Trait) -> pa.DataType:
    """Arrow type of a trait in canonical form."""
    text = trait.type is TraitType.STRING
    scalar = pa.large_string() if text else pa.from_numpy_dtype(trait.type.word_dtype)
    if trait.length_max:
        return pa.large_list(scalar)
    return pa.list_(scalar, trait.size) if trait.size > 1 else scalar


def canonical_schema(schema: Schema) -> pa.Schema:
    """Arrow schema of events in canonical form."""
    ids = [pa.field(name, pa.int64()) for name in ("user_id", "event_ts", "arrival_ts")]
    ids.append(pa.field("event_id", canonical_type(schema.event_id)))
    ids.append(pa.field(FINER_NS, pa.int32()))
    return pa.schema([*ids, *(pa.field(t.name, canonical_type(t)) for t in schema.traits)])


def check_output(out: Path, inputs: Sequence[DataFile]) -> None:
    """Raises InputError where a file to be written is one of those to be read."""
    for file in inputs:
        path = file.local
        if out.exists() and path is not None and path.exists() and out.samefile(path):
            raise InputError(f"--out {out} is also an input, and would be lost; name another file.")


def ignored_columns(columns: pa.Schema, known: Collection[str]) -> list[str]:
    """Columns, and fields of structs, that are none of those known."""
    roots = {name.partition(".")[0] for name in known}
    names = [
        name
        for column in columns
        for name in (
            field_names(column.type, column.name) if column.name in roots else [column.name]
        )
    ]
    return [name for name in names if name not in known]


def read_events(
    path: AnyFile,
    schema: Schema,
    times: TimeReader,
    users: UserIdReader | None = None,
    row_groups: Sequence[int] | None = None,
) -> Iterator[pa.Table]:
    """Reads one file of events in canonical form, in batches of at most BATCH_ROWS rows.

    Args:
        path: The file.
        schema: The schema of the store.
        times: Reads times.
        users: Reads users, and keeps the texts that name them; by default a new one.
        row_groups: Numbers of the row groups to read; None for all.

    Raises:
        InputError: names the file, the column at fault and what would be right.
    """
    file = open_parquet(path)
    if is_export(file):
        times = times.of_exports()
    every = [*ID_COLUMNS, *schema.by_name]
    names = {name for name in every if field_type(file.schema_arrow, name) is not None}
    for required in ("user_id", "event_ts"):
        if required not in names:
            raise InputError(f"{path} has no column {required}; every event needs one.")
    for trait in schema.traits:
        if trait.name not in names and not trait.sparse and trait.default is None:
            raise InputError(
                f"{path} has no column {trait.name}, which the schema lists; add it, or give the "
                f"trait sparse = true or a default."
            )
    wanted = [split_name(file.schema_arrow, name)[0] for name in every if name in names]
    for batch in file.iter_batches(BATCH_ROWS, columns=wanted, row_groups=row_groups):
        yield canonical_table(path, schema, pa.table(batch), times, users)
    times.finish(path)


def canonical_table(
    path: AnyFile,
    schema: Schema,
    table: pa.Table,
    times: TimeReader,
    users: UserIdReader | None = None,
) -> pa.Table:
    """Brings a table with the columns of events, in any layout of Arrow, to canonical form.

    A column of type null is as if it were not there. ``users`` reads the users; by default a new
    reader of the schema's kind. Raises InputError.
    """
    users = users or UserIdReader(schema.user_ids)
    if not table.num_rows:
        return canonical_schema(schema).empty_table()
    table = with_fields(table, [trait.name for trait in schema.traits if "." in trait.name])
    table = pa.table([plain(column) for column in table.columns], plain_schema(table.schema))
    absent = [field.name for field in table.schema if pa.types.is_null(field.type)]
    for name in ("user_id", "event_ts"):
        if name in absent:
            raise InputError(f"{path}: {name} has only nulls; every event needs one.")
    table = table.drop_columns(absent)
    event_ts, finer_ns = times.read(path, table.column("event_ts"), "event_ts")
    arrival_ts = event_ts
    if "arrival_ts" in table.column_names:
        arrived = times.read(path, table.column("arrival_ts"), "arrival_ts", nullable=True).ms
        arrival_ts = pc.coalesce(arrived, event_ts)
    if "event_id" in table.column_names:
        event_id = id_column(path, table.column("event_id"), schema.event_ids, "event")
    else:
        event_id = pa.chunked_array([pa.nulls(table.num_rows, canonical_type(schema.event_id))])
    _refuse_nulls(path, table.column("user_id"), "user_id", "every event needs one")
    user_id = pa.chunked_array([pa.array(users.keys(path, table.column("user_id")))])
    traits = [trait_column(path, table, trait) for trait in schema.traits]
    return pa.Table.from_arrays(
        [user_id, event_ts, arrival_ts, event_id, finer_ns, *traits],
        schema=canonical_schema(schema),
    )


def _refuse_nulls(path: AnyFile, column: pa.ChunkedArray, name: str, advice: str) -> None:
    if column.null_count:
        raise InputError(f"{path}: {name} has {column.null_count} nulls; {advice}.")


def trait_column(path: AnyFile, table: pa.Table, trait: Trait) -> pa.ChunkedArray:
    """A trait of a table in canonical form; where absent, its default. Raises InputError."""
    kind = canonical_type(trait)
    if trait.name not in table.column_names:
        column = pa.chunked_array([pa.nulls(table.num_rows, arrow_type(trait))])
    else:
        column = trait_array(path, trait.name, table.column(trait.name), trait.form)
    if trait.default is not None:
        column = _filled(column, trait)
    if not trait.nullable:
        _refuse_nulls(path, column, trait.name, "mark the trait sparse = true to allow them")
    return pa.chunked_array([_same_bits(chunk, trait, kind) for chunk in column.chunks], type=kind)


def _filled(column: pa.ChunkedArray, trait: Trait) -> pa.ChunkedArray:
    if not column.null_count:
        return column
    if trait.size > 1 or trait.length_max:
        elements = [] if trait.length_max else [trait.default] * trait.size
        return pc.fill_null(column, pa.scalar(elements, type=column.type))
    value = np.array(trait.default, dtype=trait.type.value_dtype)[()]
    return pc.fill_null(column, pa.scalar(value, type=column.type))


def _same_bits(values: pa.Array, trait: Trait, kind: pa.DataType) -> pa.Array:
    """Values as another type of the same size, bits unchanged."""
    if trait.length_max:
        element = replace(trait, length_max=0)
        return relisted(values, _same_bits(values.flatten(), element, kind.value_type), kind)
    if trait.type is TraitType.BOOL:
        return values.cast(kind)
    if trait.size > 1:
        mask = values.is_null() if values.null_count else None
        flat = values.fill_null([0] * trait.size) if values.null_count else values
        return pa.FixedSizeListArray.from_arrays(
            flat.flatten().view(kind.value_type), trait.size, mask=mask
        )
    return values.view(kind) if trait.type.is_float else values


def from_canonical(values: pa.Array, trait: Trait) -> pa.Array:
    """A canonical column as users read and write it."""
    return _same_bits(values, trait, arrow_type(trait))


def arrow_type(trait: Trait) -> pa.DataType:
    """Arrow type of a trait as users read and write it."""
    return trait_type(trait.type, trait.size, trait.length_max)
