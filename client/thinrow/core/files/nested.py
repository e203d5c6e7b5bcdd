"""Fields of structs, and of lists of structs, as columns of their own: `item.category`.

A column of the whole name hides such a field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.core.files.arrow import (
    is_list_of_any_length,
    load_pyarrow,
    plain,
    plain_type,
    relisted,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["field_array", "field_names", "field_type", "split_name", "with_fields"]

DEPTH_MAX = 16
"""Limit on structs within structs."""


def split_name(schema: pa.Schema, name: str) -> tuple[str, str]:
    """Splits a name into that of a column and that of a field in it, which may be empty."""
    if name in schema.names:
        return name, ""
    column, _, field = name.partition(".")
    return column, field


def field_names(kind: pa.DataType, name: str, depth: int = 0) -> list[str]:
    """Names the fields of a struct with dots, and of structs in it; any other type is one field."""
    if not load_pyarrow().types.is_struct(kind) or depth == DEPTH_MAX:
        return [name]
    fields = [field_names(field.type, f"{name}.{field.name}", depth + 1) for field in kind]
    return [each for names in fields for each in names]


def field_type(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Returns the type of a column or of a field; None where there is none.

    A field of a list of structs is a list of its values.
    """
    column, field = split_name(schema, name)
    if column not in schema.names:
        return None
    kind = schema.field(column).type
    return _type(kind, field) if field else kind


def _type(kind: pa.DataType, name: str) -> pa.DataType | None:
    arrow = load_pyarrow()
    if is_list_of_any_length(kind):
        inner = _type(kind.value_type, name)
        return None if inner is None else arrow.large_list(plain_type(inner))
    if not arrow.types.is_struct(kind):
        return None
    for field in kind:
        if field.name == name:
            return field.type
        if name.startswith(f"{field.name}."):
            return _type(field.type, name.removeprefix(f"{field.name}."))
    return None


def field_array(array: pa.Array, name: str) -> pa.Array:
    """Returns a field that `field_type` finds; null where its struct is."""
    pa = load_pyarrow()
    if is_list_of_any_length(array.type):
        lists = plain(array)
        values = field_array(lists.flatten(), name)
        return relisted(lists, values, pa.large_list(values.type))
    for field, values in zip(array.type, array.flatten(), strict=True):
        if field.name == name:
            return values
        if name.startswith(f"{field.name}."):
            return field_array(values, name.removeprefix(f"{field.name}."))
    raise KeyError(name)


def with_fields(table: pa.Table, names: list[str]) -> pa.Table:
    """Adds the fields among some names to a table as columns."""
    pa = load_pyarrow()
    for name in names:
        kind = field_type(table.schema, name)
        column, field = split_name(table.schema, name)
        if kind is not None and field:
            chunks = [field_array(chunk, field) for chunk in table.column(column).chunks]
            table = table.append_column(name, pa.chunked_array(chunks, kind))
    return table
