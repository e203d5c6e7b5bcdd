"""Arrow types of thin rows, and one layout of equal values: large text and lists, no dictionaries.

Offsets of 64 bits hold any amount of text, so that a table always fits into one record batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from thinrow.core.files.io_errors import first_line
from thinrow.core.traits import TraitType
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import ModuleType

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = [
    "conformed",
    "conformed_batch",
    "joint_schema",
    "leaf_count",
    "load_pyarrow",
    "mutable_type",
    "one_array",
    "one_batch",
    "plain",
    "plain_schema",
    "plain_type",
    "refuse_bad_utf8",
    "relisted",
    "rows_at",
    "shown_type",
    "to_numpy",
    "to_pylist",
    "trait_type",
    "uih_type",
]

RowsT = TypeVar("RowsT", "pa.Table", "pa.RecordBatch")


def load_pyarrow() -> ModuleType:
    """Imports pyarrow, which the bare client does without."""
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "Thin rows in files need pyarrow: pip install 'thinrow[torch]', 'thinrow[logger]' or "
            "'thinrow[server]'."
        ) from error
    module: ModuleType = pa
    return module


def trait_type(kind: int, size: int = 1, length_max: int = 0) -> pa.DataType:
    """Returns the Arrow type of a trait's values.

    Args:
        kind: A TraitType, or its number in the protos.
        size: Elements of a vector; 1 for a scalar.
        length_max: Limit on the elements of a list; 0 for no list.
    """
    pa = load_pyarrow()
    text = kind == TraitType.STRING
    scalar = pa.large_string() if text else pa.from_numpy_dtype(TraitType(kind).value_dtype)
    if length_max:
        return pa.large_list(scalar)
    return pa.list_(scalar, size) if size > 1 else scalar


def uih_type() -> pa.StructType:
    """Returns the Arrow type of the column ``uih``: the pointers of thin rows."""
    pa = load_pyarrow()
    times = [(name, pa.int64()) for name in ("start_ts", "end_ts", "max_length")]
    return pa.struct([*times, ("digest", pa.uint64())])


def mutable_type(
    traits: Iterable[tuple[str, int, int, int]], event_id: int = TraitType.INT64
) -> pa.ListType:
    """Returns the Arrow type of the column ``mutable``: snapshots, oldest event first.

    Args:
        traits: Name, type, vector size and limit of lists of each trait, in schema order.
        event_id: Type of the events' ids.
    """
    pa = load_pyarrow()
    ids = [(name, pa.int64()) for name in ("event_ts", "arrival_ts")]
    ids.append(("event_id", trait_type(event_id, 1)))
    return pa.list_(pa.struct(ids + [(name, trait_type(*kind)) for name, *kind in traits]))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the one layout of a type's values."""
    pa = load_pyarrow()
    types = pa.types
    if types.is_primitive(kind):
        return kind
    if types.is_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary(kind) or types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if is_list_of_any_length(kind):
        return pa.large_list(plain_type(kind.value_type))
    return kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Returns a schema of the one layout, without metadata."""
    return load_pyarrow().schema([(field.name, plain_type(field.type)) for field in schema])


def plain(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Converts an array to the one layout; values and nulls stay.

    Arrow's own cast of list views loses values, and it has none from run-end encoding or from
    dictionaries of string views.
    """
    pa = load_pyarrow()
    types, kind = pa.types, plain_type(array.type)
    if array.type == kind:
        return array
    if isinstance(array, pa.ChunkedArray):
        return pa.chunked_array([plain(chunk) for chunk in array.chunks], kind)
    null = array.is_null() if array.null_count else None
    if types.is_run_end_encoded(array.type):
        return plain(pa.compute.run_end_decode(array))
    if types.is_dictionary(array.type):
        return plain(array.dictionary).take(array.indices)
    if types.is_struct(kind):
        children = [plain(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=null)
    if types.is_fixed_size_list(kind):
        size = kind.list_size
        values = plain(array.values.slice(array.offset * size, len(array) * size))
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=null)
    if is_list_of_any_length(array.type):
        return relisted(array, plain(array.flatten()), kind)
    return array.cast(kind)


def refuse_bad_utf8(path: object, name: str, array: pa.Array | pa.ChunkedArray) -> None:
    """Raises InputError if texts have other bytes, which Arrow keeps as it reads them.

    Reads every text: call it where texts leave for an engine that trusts them. Conversions to
    Python's texts find such bytes themselves: see `to_numpy` and `to_pylist`.
    """
    try:
        array.validate(full=True)
    except load_pyarrow().ArrowInvalid as error:
        raise InputError(
            f"{path}: {name} has bytes that are no UTF-8 ({first_line(error)}); write texts."
        ) from error


def to_numpy(path: object, name: str, array: pa.Array) -> NDArray[Any]:
    """Converts an array without nulls to NumPy's; texts to an object array of str.

    Raises:
        InputError: A text has bytes that are no UTF-8.
    """
    try:
        values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    except load_pyarrow().ArrowException:
        refuse_bad_utf8(path, name, array)  # names the text
        raise
    return values


def to_pylist(path: object, name: str, array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Converts an array to Python's values.

    Raises:
        InputError: A text has bytes that are no UTF-8.
    """
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        refuse_bad_utf8(path, name, array)
        raise
    return values


def conformed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Converts an array to a type of the one layout; fields of structs that it lacks are null.

    Raises pyarrow's errors where a value does not fit.
    """
    pa = load_pyarrow()
    array = plain(array)
    if array.type == kind:
        return array
    if pa.types.is_struct(kind) and pa.types.is_struct(array.type):
        has = dict(zip(array.type.names, array.flatten(), strict=True))
        children = [
            conformed(has[field.name], field.type)
            if field.name in has
            else pa.nulls(len(array), field.type)
            for field in kind
        ]
        null = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=null)
    if pa.types.is_large_list(kind) and pa.types.is_large_list(array.type):
        return relisted(array, conformed(array.flatten(), kind.value_type), kind)
    return array.cast(kind)


def relisted(lists: pa.Array, values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Makes lists as long as others, of other values."""
    pa = load_pyarrow()
    null = lists.is_null() if lists.null_count else None
    lengths = lists.value_lengths().fill_null(0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pa.compute.cumulative_sum(lengths)])
    return pa.LargeListArray.from_arrays(offsets, values, type=kind, mask=null)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Joins all chunks of a column, in the one layout."""
    pa = load_pyarrow()
    column = plain(column)
    if column.num_chunks == 1:  # concatenating would copy it
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """Joins all rows of a table, in the one layout."""
    columns = [one_array(column) for column in table.columns]
    return load_pyarrow().RecordBatch.from_arrays(columns, schema=plain_schema(table.schema))


def rows_at(table: RowsT, places: NDArray[np.int64]) -> RowsT:
    """Returns a copy of the rows at some places, in the table's own types."""
    pa = load_pyarrow()
    columns = [_taken(column, pa.array(places)) for column in table.columns]
    return type(table).from_arrays(columns, schema=table.schema)


def _taken(column: pa.Array | pa.ChunkedArray, places: pa.Array) -> pa.Array | pa.ChunkedArray:
    try:
        return column.take(places)
    except load_pyarrow().ArrowNotImplementedError:  # Arrow takes nothing from views
        return plain(column).take(places).cast(column.type)


def is_list_of_any_length(kind: pa.DataType) -> bool:
    """Returns True for lists of any layout but a fixed size."""
    pa = load_pyarrow()
    lists = (pa.ListType, pa.LargeListType, pa.ListViewType, pa.LargeListViewType)
    return isinstance(kind, lists)


def leaf_count(kind: pa.DataType) -> int:
    """Counts the columns in which Parquet stores a type."""
    types = load_pyarrow().types
    if types.is_map(kind):
        return leaf_count(kind.key_type) + leaf_count(kind.item_type)
    if types.is_struct(kind):
        return sum(leaf_count(field.type) for field in kind)
    if is_list_of_any_length(kind) or types.is_fixed_size_list(kind):
        return leaf_count(kind.value_type)
    return 1


def joint_schema(
    files: Sequence[object], schemas: Sequence[pa.Schema], names: Sequence[str]
) -> pa.Schema:
    """Finds types of the one layout that columns of several files have in common.

    Raises:
        InputError: A file lacks one of the columns, or has another type.
    """
    pa = load_pyarrow()
    joint = None
    for file, schema in zip(files, schemas, strict=True):
        for name in names:
            if name not in schema.names:
                has = next(f for f, s in zip(files, schemas, strict=True) if name in s.names)
                raise InputError(
                    f"{file} lacks the column {name!r}, which {has} has; write both alike, or "
                    f"read without that column."
                )
        own = plain_schema(pa.schema([schema.field(name) for name in names]))
        try:
            joint = (
                own
                if joint is None
                else pa.unify_schemas([joint, own], promote_options="permissive")
            )
        except pa.ArrowException as error:
            reason = first_line(error)
            raise InputError(
                f"{file} has a column of another type than {files[0]}: {reason}; write both alike."
            ) from error
    assert joint is not None
    return joint


def conformed_batch(file: object, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Takes the columns of a schema that `joint_schema` made.

    Raises:
        InputError: A value does not fit the type that other files have; names file and column.
    """
    pa = load_pyarrow()
    columns = []
    for field in schema:
        try:
            columns.append(conformed(batch.column(field.name), field.type))
        except pa.ArrowException as error:
            reason = first_line(error)
            raise InputError(
                f"{file}: column {field.name} does not fit into {field.type}, which other files "
                f"have: {reason}."
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def shown_type(kind: pa.DataType) -> str:
    """Names a type of the one layout as most files have it."""
    return str(kind).replace("large_", "")
