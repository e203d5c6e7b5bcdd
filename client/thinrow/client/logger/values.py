"""Conversion of Python values to Arrow columns, without changes that Arrow makes silently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.column_arrays import column_array, fits_exactly, joined_columns
from thinrow.core.wire.columns import as_column
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray
    from thinrow.core.pointers import MutableColumn
    from thinrow.core.thin_row import EventView
    from thinrow.core.traits import TraitForm

__all__ = [
    "UNFIT",
    "exact",
    "integers",
    "mappings_array",
    "require_fields",
    "snapshots_array",
]

UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError, InputError)
"""Errors that values of a wrong type, size or name raise."""


def exact(values: Sequence[object], field: pa.Field) -> pa.Array:
    """Converts a column whose values must not change; floats may round to the column's width."""
    for kind, leaf in leaves(values, field.type):
        if pa.types.is_integer(kind) or pa.types.is_temporal(kind):
            kinds = kinds_of(leaf)
            no_floats(kinds, field.name)
            if np.bool_ in kinds:  # which Arrow takes, unlike a bool
                raise InputError(f"{field.name} has a bool, where integers must be")
    array = pa.array([plain(value) for value in values], field.type)
    refuse_overflow(array, values, field.name)
    return array


def snapshots_array(snapshots: Sequence[EventView], kind: pa.ListType) -> pa.ListArray:
    """Converts the mutable events of several rows to a column `mutable`, field by field."""
    events = kind.value_type
    ends = np.cumsum([len(snapshot) for snapshot in snapshots])
    filled = [snapshot for snapshot in snapshots if len(snapshot)]
    require_fields((snapshot.names for snapshot in filled), events)
    children = [_joined([one.column(field.name) for one in filled], field) for field in events]
    return _listed(children, ends, kind)


def mappings_array(
    snapshots: Sequence[Sequence[Mapping[str, Any]]],
    kind: pa.ListType,
    forms: Mapping[str, TraitForm],
) -> pa.ListArray:
    """Converts mutable events that are mappings to a column `mutable`, field by field.

    Args:
        snapshots: The mutable events of several rows.
        kind: Type of the column.
        forms: Forms of fields whose integers count times, decimals or codes of texts.
    """
    ends = np.cumsum([len(snapshot) for snapshot in snapshots])
    events = list(chain.from_iterable(snapshots))
    require_fields((event.keys() for event in events), kind.value_type)
    children = []
    for field in kind.value_type:
        values, form = [event[field.name] for event in events], forms.get(field.name)
        if form is None:
            children.append(exact(values, field))
            continue
        no_floats(kinds_of(values), field.name)
        try:
            column = as_column(form, values)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"mutable.{field.name} does not fit: {error}") from error
        children.append(column_array(column, pa.from_numpy_dtype(column.values.dtype)))
    children = [
        array if array.type == field.type else array.cast(field.type)
        for array, field in zip(children, kind.value_type, strict=True)
    ]
    return _listed(children, ends, kind)


def _listed(children: list[pa.Array], ends: NDArray[np.int64], kind: pa.ListType) -> pa.ListArray:
    """Returns lists of structs that end where `ends` says, of these fields."""
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]), pa.int32()),
        pa.StructArray.from_arrays(children, fields=list(kind.value_type)),
        type=kind,
    )


def _joined(columns: Sequence[MutableColumn], field: pa.Field) -> pa.Array:
    """Concatenates columns as an array of the field's type."""
    if not columns:
        return pa.array([], field.type)
    first = columns[0]
    alike = {(one.values.dtype, one.values.shape[1:], one.offsets is None) for one in columns}
    if len(alike) == 1 and fits_exactly(first, field.type):
        return column_array(joined_columns(columns), field.type)
    return exact([value for column in columns for value in column.to_list()], field)


def require_fields(events: Iterable[AbstractSet[str]], kind: pa.StructType) -> None:
    """Rejects events with other fields than the column's.

    Raises:
        InputError: The names of an event differ.
    """
    names = frozenset(kind.names)
    if any(event != names for event in events):
        raise InputError(
            f"its mutable events must have the fields {', '.join(kind.names)}, and no others"
        )


def integers(values: Sequence[int], kind: pa.DataType | None = None) -> pa.Array:
    """Converts the integers of a pointer's field; default int64."""
    return exact(values, pa.field("pointer", kind or pa.int64()))


def leaves(values: Iterable[Any], kind: pa.DataType) -> Iterator[tuple[pa.DataType, Iterable[Any]]]:
    """Yields the scalars inside lists and structs, with their target type."""
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
    """Returns the types of some values."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return {values.dtype.type}
    return set(map(type, values))


def no_floats(kinds: set[type], name: str) -> None:
    """Rejects floats in a column of integers, because Arrow would cut them."""
    if any(issubclass(kind, float | np.floating) for kind in kinds):
        raise InputError(f"{name} has a float where an integer must be")


def refuse_overflow(array: pa.Array, values: Sequence[object], name: str) -> None:
    """Rejects finite floats that became infinite in a narrower type."""
    if not has_infinity(array):
        return
    for kind, leaf in leaves(values, array.type):
        if pa.types.is_floating(kind):
            for value in leaf:
                narrow = pa.scalar(value, kind).as_py()
                if narrow is not None and np.isinf(narrow) and not np.isinf(value):
                    raise InputError(f"{name} has {value}, which is too large for {kind}")


def has_infinity(array: pa.Array) -> bool:
    """Returns True if some float at any depth is infinite."""
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
