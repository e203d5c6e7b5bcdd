"""Python values as Arrow columns, without a change that Arrow would make silently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["UNFIT", "exact", "integers", "no_floats", "refuse_overflow"]

UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError, InputError)
"""Errors that values of a wrong type, size or name raise."""


def exact(values: Sequence[object], field: pa.Field) -> pa.Array:
    """Converts a column whose values must not change; floats may round to the column's width."""
    for kind, leaf in leaves(values, field.type):
        if pa.types.is_integer(kind) or pa.types.is_temporal(kind):
            no_floats(kinds_of(leaf), field.name)
    array = pa.array([plain(value) for value in values], field.type)
    refuse_overflow(array, values, field.name)
    return array


def integers(values: Sequence[int], kind: pa.DataType | None = None) -> pa.Array:
    return exact(values, pa.field("pointer", kind or pa.int64()))


def leaves(values: Iterable[Any], kind: pa.DataType) -> Iterator[tuple[pa.DataType, Iterable[Any]]]:
    """Yields the scalars inside lists and structs, with the type that they are to have."""
    if pa.types.is_struct(kind):
        structs = [value for value in values if isinstance(value, Mapping)]
        for field in kind:
            yield from leaves([value.get(field.name) for value in structs], field.type)
    elif hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        for value in values:
            if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
                yield from leaves(value, kind.value_type)
    else:
        yield kind, values


def kinds_of(values: Iterable[object]) -> set[type]:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return {values.dtype.type}
    return set(map(type, values))


def no_floats(kinds: set[type], name: str) -> None:
    if any(issubclass(kind, float | np.floating) for kind in kinds):
        raise InputError(f"{name} has a float where an integer must be")


def refuse_overflow(array: pa.Array, values: Sequence[object], name: str) -> None:
    """Refuses finite floats that became infinite in a narrower type."""
    if not has_infinity(array):
        return
    for kind, leaf in leaves(values, array.type):
        if pa.types.is_floating(kind):
            for value in leaf:
                narrow = pa.scalar(value, kind).as_py()
                if narrow is not None and np.isinf(narrow) and not np.isinf(value):
                    raise InputError(f"{name} has {value}, which is too large for {kind}")


def has_infinity(array: pa.Array) -> bool:
    """Tells whether some float at any depth is infinite."""
    kind = array.type
    if pa.types.is_floating(kind):
        return bool(pc.any(pc.is_inf(array)).as_py())
    if pa.types.is_struct(kind):
        return any(has_infinity(child) for child in array.flatten())
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        return has_infinity(array.flatten())
    return False


def plain(value: object) -> object:
    """Returns arrays as Arrow reads them: in this machine's byte order, None where masked."""
    if np.ma.isMaskedArray(value):
        return value.tolist()
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        return value.astype(value.dtype.newbyteorder("="))
    return value
