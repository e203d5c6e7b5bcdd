"""From the wire's narrow columns to numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.errors import ThinRowError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["VALUE_DTYPES", "WideColumn", "require", "widen"]

VALUE_DTYPES: dict[int, np.dtype[Any]] = {
    wire.TRAIT_TYPE_INT8: np.dtype(np.int8),
    wire.TRAIT_TYPE_INT16: np.dtype(np.int16),
    wire.TRAIT_TYPE_INT32: np.dtype(np.int32),
    wire.TRAIT_TYPE_INT64: np.dtype(np.int64),
    wire.TRAIT_TYPE_UINT8: np.dtype(np.uint8),
    wire.TRAIT_TYPE_UINT16: np.dtype(np.uint16),
    wire.TRAIT_TYPE_UINT32: np.dtype(np.uint32),
    wire.TRAIT_TYPE_UINT64: np.dtype(np.uint64),
    wire.TRAIT_TYPE_FLOAT16: np.dtype(np.float16),
    wire.TRAIT_TYPE_FLOAT32: np.dtype(np.float32),
    wire.TRAIT_TYPE_FLOAT64: np.dtype(np.float64),
    wire.TRAIT_TYPE_BOOL: np.dtype(np.bool_),
    wire.TRAIT_TYPE_CATEGORICAL: np.dtype(np.int64),
    wire.TRAIT_TYPE_STRING: np.dtype(np.int32),
}
"""What a trait's values are in a Batch, by its type."""

WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, eq=False)
class WideColumn:
    """One trait of every event of a run.

    values: shape (events,) or (events, size), 0 where absent; dtypes as in VALUE_DTYPES.
    present: bool, shape (events,). None: not nullable.
    strings: the texts that a text trait's values index. None: no text.
    """

    values: NDArray[Any]
    present: NDArray[np.bool_] | None
    strings: list[str] | None


def require(condition: bool | np.bool_, what: str) -> None:
    """Refuses an answer that contradicts itself, rather than return wrong values."""
    if not condition:
        raise ThinRowError(f"The server's answer is malformed: {what}.")


def widen(column: wire.Column, block_lengths: NDArray[np.int64]) -> WideColumn:
    """Widens a column of a run whose blocks have `block_lengths` events, int64, shape (blocks,).

    Raises ThinRowError where the column's parts do not fit together.
    """
    name, size = column.trait, column.vector_size
    require(column.type in VALUE_DTYPES, f"{name} has the unknown type {column.type}")
    require(size >= 1, f"{name} has no vector size")
    require(column.nullable or not column.present, f"{name} has present bits, but is not nullable")
    events = int(block_lengths.sum())
    present = None
    counts = block_lengths
    if column.nullable:
        require(
            len(column.present) == (events + 7) // 8, f"{name} has too few or many present bits"
        )
        bits = np.frombuffer(column.present, np.uint8)
        present = np.unpackbits(bits, count=events, bitorder="little").view(np.bool_)
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(present)])
        ends = np.cumsum(block_lengths)
        counts = running[ends] - running[ends - block_lengths]
    values = to_values(column, to_words(column, counts * size))
    if size > 1:
        values = values.reshape(-1, size)
    if present is not None and len(values) < events:
        scattered = np.zeros((events, *values.shape[1:]), values.dtype)
        scattered[present] = values
        values = scattered
    strings = list(column.strings) if column.type == wire.TRAIT_TYPE_STRING else None
    return WideColumn(values, present, strings)


def to_words(column: wire.Column, counts: NDArray[np.int64]) -> NDArray[Any]:
    """Adds each block's base to its offsets: words, unsigned, as wide as the trait needs."""
    name = column.trait
    widths = np.frombuffer(column.widths, np.uint8)
    bases = np.array(column.bases, np.int64)
    require(
        len(bases) == len(widths) == len(counts), f"{name} has not one base and width per block"
    )
    require(np.isin(widths, (0, *WIDTHS)).all(), f"{name} has an unknown width")
    require(int(widths @ counts) == len(column.data), f"{name} has too few or many bytes")
    indexes = column.type in (wire.TRAIT_TYPE_CATEGORICAL, wire.TRAIT_TYPE_STRING)
    # Arithmetic modulo 2^64 is exact modulo 2^8 too: narrow traits never need wide words. Only
    # an index keeps all its bits, to be checked against the bounds of its dictionary.
    itemsize = 8 if indexes else VALUE_DTYPES[column.type].itemsize
    dtype = np.dtype(f"u{itemsize}")
    words = np.repeat(bases.astype(dtype), counts)
    start = 0
    for width in WIDTHS:
        blocks = widths == width
        count = int(counts[blocks].sum())
        if not count:
            continue
        offsets = np.frombuffer(column.data, f"<u{width}", count, start).astype(dtype, copy=False)
        start += count * width
        if count == len(words):
            words += offsets
        else:
            words[np.repeat(blocks, counts)] += offsets
    return words


def to_values(column: wire.Column, words: NDArray[Any]) -> NDArray[Any]:
    """Reads words as the trait's type says."""
    if column.type == wire.TRAIT_TYPE_CATEGORICAL:
        dictionary = np.array(column.dictionary, np.int64)
        require_below(words, len(dictionary), column.trait)
        return dictionary[words.view(np.int64)]
    if column.type == wire.TRAIT_TYPE_STRING:
        require_below(words, len(column.strings), column.trait)
        return words.astype(np.int32)
    if column.type == wire.TRAIT_TYPE_BOOL:
        require_below(words, 2, column.trait)
    return words.view(VALUE_DTYPES[column.type])


def require_below(words: NDArray[Any], bound: int, name: str) -> None:
    """Refuses words that index past what is there."""
    require(not len(words) or words.max() < bound, f"{name} has a value that does not exist")
