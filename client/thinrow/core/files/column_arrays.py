"""Columns of mutable events as arrays of Arrow, of equal bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.pointers import MutableColumn
from thinrow.core.runs import offsets_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

__all__ = ["column_array", "fits_exactly", "joined_columns"]


def fits_exactly(column: MutableColumn, kind: pa.DataType) -> bool:
    """Returns True if `column_array` can make an array of this type: if no value has another."""
    pa = load_pyarrow()
    try:
        scalar = pa.from_numpy_dtype(column.values.dtype)
    except pa.ArrowNotImplementedError:  # objects
        scalar = pa.large_string()
    if column.offsets is not None:
        return bool(pa.types.is_large_list(kind) and kind.value_type == scalar)
    if pa.types.is_fixed_size_list(kind):
        return column.values.shape[1:] == (kind.list_size,) and bool(kind.value_type == scalar)
    return column.values.ndim == 1 and bool(kind == scalar)


def column_array(column: MutableColumn, kind: pa.DataType) -> pa.Array:
    """Converts a column to an array of a trait's own type, without a change of values."""
    pa = load_pyarrow()
    absent = None if column.present is None else ~column.present
    mask = None if absent is None else pa.array(absent)
    if column.offsets is not None:
        elements = pa.array(column.values, kind.value_type)
        return pa.LargeListArray.from_arrays(column.offsets, elements, type=kind, mask=mask)
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(column.values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)
    return pa.array(column.values, kind, mask=absent)


def joined_columns(columns: Sequence[MutableColumn]) -> MutableColumn:
    """Concatenates columns of one dtype and shape; of lists as well."""
    present = None
    if any(column.present is not None for column in columns):
        present = np.concatenate(
            [
                np.ones(len(column), np.bool_) if column.present is None else column.present
                for column in columns
            ]
        )
    values = np.concatenate([column.values for column in columns])
    lists = [column.offsets for column in columns if column.offsets is not None]
    if not lists:
        return MutableColumn(values, present)
    return MutableColumn(values, present, offsets_of(np.concatenate([*map(np.diff, lists)])))
