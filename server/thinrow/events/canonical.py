"""Raw events: from Parquet as users write it to one canonical Arrow form.

Canonical columns: ``user_id``, ``event_ts``, ``arrival_ts`` (int64), ``event_id`` (int64, null
where there is none), FINER_NS, then the traits in schema order as integers of their size: floats
and bools travel as their bits, so that nothing on the way can change them. Only nullable traits
hold nulls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import (
    one_array,
    plain,
    plain_schema,
    relisted,
    shown_type,
    trait_type,
)
from thinrow.core.files.io_errors import first_line
from thinrow.core.files.parquet import open_parquet
from thinrow.errors import InputError
from thinrow.events.exported import is_export
from thinrow.schema import Schema, Trait, TraitType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.core.files.paths import AnyFile, DataFile
    from thinrow.events.time_columns import TimeReader

__all__ = [
    "BATCH_ROWS",
    "FINER_NS",
    "ID_COLUMNS",
    "SAME_BITS",
    "canonical_schema",
    "canonical_table",
    "canonical_type",
    "check_output",
    "from_canonical",
    "ignored_columns",
    "read_events",
    "user_ids",
]

BATCH_ROWS = 1 << 18
ID_COLUMNS = ("user_id", "event_ts", "arrival_ts", "event_id")
SAME_BITS = (
    "; write the same bits as int64 in every table: Polars "
    "pl.col('{name}').reinterpret(signed=True), DuckDB {name}::BIT::BIGINT, pandas "
    ".astype('int64')"
)
"""Advice for hashes of 64 bits."""
FINER_NS = "event_ts:ns"
"""The part of ``event_ts`` finer than a millisecond, int32 ns. It orders the events of one
generation or snapshot among themselves and is not stored. No trait can have this name."""


def canonical_type(trait: Trait) -> pa.DataType:
    """Arrow type of a trait in canonical form."""
    if trait.type is TraitType.STRING:
        return pa.large_string()
    scalar = pa.from_numpy_dtype(trait.type.word_dtype)
    return pa.list_(scalar, trait.size) if trait.size > 1 else scalar


def canonical_schema(schema: Schema) -> pa.Schema:
    """Arrow schema of events in canonical form."""
    ids = [pa.field(name, pa.int64()) for name in ID_COLUMNS]
    ids.append(pa.field(FINER_NS, pa.int32()))
    return pa.schema([*ids, *(pa.field(t.name, canonical_type(t)) for t in schema.traits)])


def check_output(out: Path, inputs: Sequence[DataFile]) -> None:
    """Raises InputError where a file to be written is one of those to be read."""
    for file in inputs:
        path = file.local
        if out.exists() and path is not None and path.exists() and out.samefile(path):
            raise InputError(f"--out {out} is also an input, and would be lost; name another file.")


def user_ids(path: AnyFile, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of users as int64. Raises InputError where it has nulls or does not fit."""
    _refuse_nulls(path, column, "user_id", "every row needs one")
    return _cast(path, plain(column), "user_id", pa.int64())


def ignored_columns(path: AnyFile, schema: Schema) -> list[str]:
    """Columns of a file that are neither an event's own nor a trait."""
    known = {*ID_COLUMNS, *(trait.name for trait in schema.traits)}
    return [name for name in open_parquet(path).schema_arrow.names if name not in known]


def read_events(path: AnyFile, schema: Schema, times: TimeReader) -> Iterator[pa.Table]:
    """Reads one file of events in canonical form, in batches of at most BATCH_ROWS rows.

    Raises:
        InputError: names the file, the column at fault and what would be right.
    """
    file = open_parquet(path)
    if is_export(file):
        times = times.of_exports()
    names = set(file.schema_arrow.names)
    for required in ("user_id", "event_ts"):
        if required not in names:
            raise InputError(f"{path} has no column {required}; every event needs one.")
    for trait in schema.traits:
        if trait.name not in names and not trait.sparse and trait.default is None:
            raise InputError(
                f"{path} has no column {trait.name}, which the schema lists; add it, or give the "
                f"trait sparse = true or a default."
            )
    wanted = [name for name in dict.fromkeys((*ID_COLUMNS, *schema.by_name)) if name in names]
    for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
        yield canonical_table(path, schema, pa.table(batch), times)
    times.finish(path)


def canonical_table(path: AnyFile, schema: Schema, table: pa.Table, times: TimeReader) -> pa.Table:
    """Brings a table with the columns of events, in any layout of Arrow, to canonical form.

    A column of type null is as if it were not there. Raises InputError.
    """
    if not table.num_rows:
        return canonical_schema(schema).empty_table()
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
        event_id = _cast(path, table.column("event_id"), "event_id", pa.int64())
    else:
        event_id = pa.chunked_array([pa.nulls(table.num_rows, pa.int64())])
    user_id = _cast(path, table.column("user_id"), "user_id", pa.int64())
    _refuse_nulls(path, user_id, "user_id", "every event needs one")
    traits = [_trait_column(path, table, trait) for trait in schema.traits]
    return pa.Table.from_arrays(
        [user_id, event_ts, arrival_ts, event_id, finer_ns, *traits],
        schema=canonical_schema(schema),
    )


def _refuse_nulls(path: AnyFile, column: pa.ChunkedArray, name: str, advice: str) -> None:
    if column.null_count:
        raise InputError(f"{path}: {name} has {column.null_count} nulls; {advice}.")


def _cast(path: AnyFile, column: pa.ChunkedArray, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    if not len(column):
        return pa.chunked_array([], kind)
    if not (pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)):
        raise InputError(f"{path}: {name} is {shown_type(column.type)}; it must be an integer.")
    return _fitted(path, column, name, kind)


def _fitted(
    path: AnyFile, column: pa.ChunkedArray, name: str, kind: pa.DataType
) -> pa.ChunkedArray:
    try:
        if pa.types.is_decimal(column.type) and pa.types.is_floating(kind):
            fitted = column.cast(pa.float64()).cast(kind)
        else:
            fitted = column.cast(kind)
    except pa.ArrowInvalid as error:
        reason = first_line(error)
        remedy = ""
        if pa.types.is_uint64(column.type) and pa.types.is_int64(kind):
            remedy = SAME_BITS.format(name=name)
        raise InputError(f"{path}: {name} does not fit into {kind}: {reason}{remedy}.") from error
    if pa.types.is_floating(kind):
        _refuse_overflow(path, column, fitted, name)
        if pa.types.is_integer(column.type):
            _refuse_other_integers(path, column, fitted, name)
    return fitted


def _refuse_overflow(
    path: AnyFile, column: pa.ChunkedArray, fitted: pa.ChunkedArray, name: str
) -> None:
    """Refuses finite numbers that a narrower float makes infinite, which Arrow casts silently."""
    if pa.types.is_floating(column.type) and column.type.bit_width <= fitted.type.bit_width:
        return
    wide = column.cast(pa.float64())
    overflowed = pc.and_(pc.is_finite(wide), pc.is_inf(fitted.cast(pa.float64())))
    if pc.any(overflowed).as_py():
        value = wide.filter(overflowed)[0]
        raise InputError(
            f"{path}: {name} does not fit into {fitted.type}: {value} is too large; give the trait "
            f"a wider type, or clip its values."
        )


def _refuse_other_integers(
    path: AnyFile, column: pa.ChunkedArray, fitted: pa.ChunkedArray, name: str
) -> None:
    """Refuses integers that a float rounds, which Arrow casts silently to float16."""
    changed = pc.not_equal(fitted.cast(pa.float64()), column.cast(pa.float64()))
    if pc.any(changed).as_py():
        value = column.filter(changed)[0]
        raise InputError(
            f"{path}: {name} does not fit into {fitted.type}: {value} would be rounded; give the "
            f"trait a wider type."
        )


def _trait_column(path: AnyFile, table: pa.Table, trait: Trait) -> pa.ChunkedArray:
    kind = canonical_type(trait)
    if trait.name not in table.column_names:
        column = pa.chunked_array([pa.nulls(table.num_rows, trait_type(trait.type, trait.size))])
    else:
        column = _typed(path, table.column(trait.name), trait)
    if trait.default is not None:
        column = _filled(column, trait)
    if not trait.nullable:
        _refuse_nulls(path, column, trait.name, "mark the trait sparse = true to allow them")
    return pa.chunked_array([_same_bits(chunk, trait, kind) for chunk in column.chunks], type=kind)


def _typed(path: AnyFile, column: pa.ChunkedArray, trait: Trait) -> pa.ChunkedArray:
    """The column as the trait's own Arrow type."""
    if isinstance(column.type, pa.BaseExtensionType):  # such as JSON
        stored = [chunk.storage for chunk in column.chunks]
        column = plain(pa.chunked_array(stored, column.type.storage_type))
    kind, types = column.type, pa.types
    if trait.size > 1:
        return _vectors(path, column, trait)
    if trait.type is TraitType.STRING:
        # Writers without logical types, such as Impala, store text as bytes.
        fits = types.is_large_string(kind) or types.is_large_binary(kind)
    elif trait.type is TraitType.BOOL:
        fits = types.is_boolean(kind)
        if types.is_integer(kind) and _is_zero_or_one(column):
            return column.cast(pa.bool_())
    elif trait.type.is_float or types.is_floating(kind):
        # pandas stores integers as floats where some are absent.
        fits = types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind)
        if not trait.type.is_float:
            _refuse_rounded(path, column, trait)
    else:
        return _cast(path, column, trait.name, trait_type(trait.type, trait.size))
    if not fits:
        raise InputError(
            f"{path}: {trait.name} is {shown_type(kind)}; the schema says {trait.type.label}."
        )
    return _fitted(path, column, trait.name, trait_type(trait.type, trait.size))


def _is_zero_or_one(column: pa.ChunkedArray) -> bool:
    chosen = pc.is_in(column.drop_null(), pa.array([0, 1], column.type))
    return bool(pc.all(chosen, min_count=0).as_py())


def _refuse_rounded(path: AnyFile, column: pa.ChunkedArray, trait: Trait) -> None:
    """Refuses floats for integers from where on floats skip some."""
    exact_below = 2.0 ** (np.finfo(column.type.to_pandas_dtype()).nmant + 1)
    if pc.any(pc.greater_equal(pc.abs(column.cast(pa.float64())), exact_below)).as_py():
        raise InputError(
            f"{path}: {trait.name} is {column.type}, which rounds integers from {exact_below:.0f} "
            f"on, and has such values; write it as integers."
        )


def _vectors(path: AnyFile, column: pa.ChunkedArray, trait: Trait) -> pa.ChunkedArray:
    kind, types = column.type, pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    is_number = types.is_floating if trait.type.is_float else types.is_integer
    if not is_list or not (is_number(kind.value_type) or types.is_decimal(kind.value_type)):
        raise InputError(
            f"{path}: {trait.name} is {shown_type(kind)}; the schema says a list of {trait.size} "
            f"{trait.type.label}."
        )
    lengths = pc.unique(pc.drop_null(pc.list_value_length(column))).to_pylist()
    if any(length != trait.size for length in lengths):
        raise InputError(
            f"{path}: {trait.name} has vectors of length {sorted(lengths)}; the schema says "
            f"{trait.size}."
        )
    element, vectors = replace(trait, size=1), trait_type(trait.type, trait.size)
    chunks = []
    for chunk in column.chunks:
        values = chunk.flatten()  # of vectors that are not null
        if values.null_count:
            raise InputError(f"{path}: {trait.name} has nulls inside vectors; fill them.")
        typed = _typed(path, pa.chunked_array([values]), element)
        chunks.append(relisted(chunk, one_array(typed), pa.large_list(typed.type)).cast(vectors))
    return pa.chunked_array(chunks, vectors)


def _filled(column: pa.ChunkedArray, trait: Trait) -> pa.ChunkedArray:
    if not column.null_count:
        return column
    if trait.size > 1:
        return pc.fill_null(column, pa.scalar([trait.default] * trait.size, type=column.type))
    value = np.array(trait.default, dtype=trait.type.value_dtype)[()]
    return pc.fill_null(column, pa.scalar(value, type=column.type))


def _same_bits(values: pa.Array, trait: Trait, kind: pa.DataType) -> pa.Array:
    """Values as another type of the same size, bits unchanged."""
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
    return _same_bits(values, trait, trait_type(trait.type, trait.size))
