"""Events as columns, to and from the wire's messages: one block, whose words need no narrowing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.client.pointers import MutableColumn
from thinrow.client.response import Column
from thinrow.client.widen import VALUE_DTYPES, NarrowColumn, require
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["from_wire", "to_wire"]


def to_wire(trait: str, kind: int, size: int, nullable: bool, column: MutableColumn) -> wire.Column:
    """Says one trait of some events in the wire's terms.

    kind: number of a thinrow.v1.TraitType, whose dtype the values have; text as an object array.
    size: elements of a vector, 1 for a scalar.
    """
    values = column.values
    message = wire.Column(trait=trait, type=kind, vector_size=size, nullable=nullable)  # type: ignore[arg-type]
    if nullable:
        present = column.present
        if present is None:
            present = np.ones(len(values), np.bool_)
        else:
            values = values[present]
        message.present = np.packbits(present, bitorder="little").tobytes()
    base = 0
    if kind == wire.TRAIT_TYPE_STRING:
        codes: dict[str, int] = {}
        numbers = [codes.setdefault(text, len(codes)) for text in values.tolist()]
        message.strings.extend(codes)
        words = narrowest(np.array(numbers, np.int64), len(codes))
    elif values.dtype.kind == "i" and values.itemsize < 8:
        # As distances from the least value of the type they are the words that the wire means.
        base = int(np.iinfo(values.dtype).min)
        unsigned = np.dtype(f"u{values.itemsize}")
        words = values.view(unsigned) ^ unsigned.type(1 << (8 * values.itemsize - 1))
    else:
        words = values
    message.bases.append(base)
    message.widths = bytes([words.itemsize])
    message.data = words.tobytes()
    return message


def narrowest(codes: NDArray[np.int64], bound: int) -> NDArray[Any]:
    """Codes below `bound` in as few bytes as hold them."""
    return codes.astype(np.min_scalar_type(max(bound - 1, 0)))


def from_wire(columns: Iterable[wire.Column], events: int) -> dict[str, MutableColumn]:
    """Reads columns of one block of so many events, by trait; absent values are 0 or "".

    Raises ThinRowError for columns that contradict themselves.
    """
    every = np.array([events], np.int64)
    read: dict[str, MutableColumn] = {}
    for message in columns:
        require(message.trait not in read, f"{message.trait} comes twice")
        narrow = NarrowColumn(Column.of(message), every)
        values = np.empty((events, *narrow.kind.shape), narrow.kind.dtype)
        present = np.empty(events, np.bool_) if message.nullable else None
        narrow.write(values, present)
        if narrow.kind.text:
            texts = np.array([*message.strings, ""], object)
            if present is not None:
                values[~present] = len(message.strings)
            values = texts[values]
        if present is not None and present.all():
            present = None
        read[message.trait] = MutableColumn(values, present)
    return read


def as_column(kind: int, size: int, given: Any) -> MutableColumn:  # noqa: ANN401 - what numpy takes
    """A column from an array, or from a sequence in which None stands for an absent value."""
    if isinstance(given, MutableColumn):
        return given
    text = kind == wire.TRAIT_TYPE_STRING
    dtype = np.dtype(object) if text else VALUE_DTYPES[kind]
    if isinstance(given, np.ndarray) and given.dtype != object:
        return MutableColumn(given)
    values = list(given)
    present = np.array([value is not None for value in values], np.bool_)
    blank: Any = "" if text else [0] * size if size > 1 else 0
    filled = [blank if value is None else value for value in values]
    shape = (len(values), size) if size > 1 else (len(values),)
    array = np.empty(shape, dtype)
    array[...] = np.array(filled, dtype).reshape(shape)
    return MutableColumn(array, None if present.all() else present)
