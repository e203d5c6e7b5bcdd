"""From the wire's narrow columns to numpy arrays."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from thinrow.client import kernel
from thinrow.client.kernel import Views
from thinrow.errors import InputError, ThinRowError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from thinrow.client.response import Column

__all__ = ["VALUE_DTYPES", "ColumnKind", "NarrowColumn", "cast_integers", "require"]

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
"""What a trait's values are, by its type, unless other integers are asked for."""

VECTOR_SIZE_MAX = 1 << 16
RUN_EVENTS_MAX = 1 << 31
"""More than any honest answer has."""
INDEX_TYPES = (wire.TRAIT_TYPE_CATEGORICAL, wire.TRAIT_TYPE_STRING)
CHECKED_TYPES = (*INDEX_TYPES, wire.TRAIT_TYPE_BOOL)


class ColumnKind(NamedTuple):
    """What the values of a trait are."""

    dtype: np.dtype[Any]
    """Integers, floats and bools in their own dtype, categorical traits int64, text int32."""

    shape: tuple[int, ...]
    """() for scalars, (size,) for vectors."""

    text: bool
    """True where values are codes of strings."""

    nullable: bool
    """True where events may lack it."""


class Blocks(NamedTuple):
    """The narrow words of a column that are there, by block of its run."""

    data: NDArray[np.uint8]
    """Offsets of all blocks of width 1 in block order, then of width 2, 4 and 8."""
    widths: NDArray[np.uint8]
    """Bytes per offset."""
    bases: NDArray[np.int64]
    counts: NDArray[np.int64]
    """Words."""


def require(condition: bool | np.bool_, what: str) -> None:
    """Refuses an answer that contradicts itself, rather than return wrong values."""
    if not condition:
        raise ThinRowError(f"The server's answer is malformed: {what}.")


class NarrowColumn:
    """One trait of every event of a run, checked and still narrow.

    Raises ThinRowError where the column's parts do not fit together.
    """

    def __init__(self, column: Column, block_lengths: NDArray[np.int64]) -> None:
        name, size = column.trait, column.vector_size
        require(column.type in VALUE_DTYPES, f"{name} has the unknown type {column.type}")
        size_max = 1 if column.type in INDEX_TYPES else VECTOR_SIZE_MAX
        require(1 <= size <= size_max, f"{name} has the vector size {size}")
        require(
            int(block_lengths.sum()) <= RUN_EVENTS_MAX, f"{name} has more events than any answer"
        )
        require(
            column.nullable or not column.present.size,
            f"{name} has present bits, but is not nullable",
        )
        self.message = column
        self.kind = ColumnKind(
            VALUE_DTYPES[column.type],
            () if size == 1 else (size,),
            column.type == wire.TRAIT_TYPE_STRING,
            column.nullable,
        )
        self._size = size
        self._events = int(block_lengths.sum())
        self._present: NDArray[np.bool_] | None = None
        counts = block_lengths
        if column.nullable:
            require(
                len(column.present) == (self._events + 7) // 8,
                f"{name} has too few or many present bits",
            )
            unpacked = np.unpackbits(column.present, count=self._events, bitorder="little")
            self._present = unpacked.view(np.bool_)
            running = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._present)])
            ends = np.cumsum(block_lengths)
            counts = running[ends] - running[ends - block_lengths]
        self.blocks = Blocks(column.data, column.widths, column.bases, counts * size)
        try:
            self._run = kernel.Run(*self.blocks)
        except ValueError as error:
            raise ThinRowError(f"The server's answer is malformed: {name}: {error}.") from error

    @property
    def travelled_bytes(self) -> int:
        """Size of the column in the answer."""
        message = self.message
        entries = 8 * len(message.dictionary) + sum(map(len, message.strings))
        bitmap = 0 if self._present is None else (self._events + 7) // 8
        return len(self.blocks.data) + 9 * len(self.blocks.widths) + bitmap + entries

    @staticmethod
    def write(
        columns: Sequence[NarrowColumn],
        views: Views,
        values: NDArray[Any],
        present: NDArray[np.bool_] | None = None,
    ) -> None:
        """Writes events of one trait's columns, `views.runs` saying which, to `values`.

        values: shape (events,) or (events, size), of the kind's dtype or, for integers, of another
            integer dtype; 0 where absent. present: shape (events,).

        Raises InputError for a value that does not fit, ThinRowError for a malformed column.
        """
        if present is not None:
            kernel.copy_views([column._presence for column in columns], views, present)
        if all(column.is_plain and column.fits(values.dtype) for column in columns):
            first = columns[0]
            runs = [column._run for column in columns]
            kernel.widen_views(runs, first.kind.dtype, views.times(first._size), values.reshape(-1))
            return
        if all(column.is_dictionary and column.fits(values.dtype) for column in columns):
            dictionaries = [column.message.dictionary for column in columns]
            try:
                runs = [column._run for column in columns]
                kernel.look_up_views(runs, dictionaries, views, values)
            except IndexError as error:
                trait = columns[0].message.trait
                raise ThinRowError(
                    f"The server's answer is malformed: {trait} has a value that does not exist."
                ) from error
            return
        used = set(np.unique(views.runs).tolist())
        kind = columns[0].kind
        nothing = np.empty((0, *kind.shape), kind.dtype)
        sources = [
            column._whole if number in used else nothing for number, column in enumerate(columns)
        ]
        if values.dtype == kind.dtype:
            kernel.copy_views(sources, views, values)
            return
        # Only what these views show has to fit.
        events = np.cumsum(views.lengths)
        shown = np.empty((int(views.lengths.sum()), *kind.shape), kind.dtype)
        kernel.copy_views(sources, views._replace(places=events - views.lengths), shown)
        index = kernel.ranges(views.places, views.lengths)
        values[index] = cast_integers(columns[0].message.trait, shown, values.dtype)

    @property
    def is_plain(self) -> bool:
        """Whether each event can be read without looking at others."""
        return self._present is None and self.message.type not in CHECKED_TYPES

    @property
    def is_dictionary(self) -> bool:
        """Whether each event has a word that indexes a number."""
        return self._present is None and self.message.type == wire.TRAIT_TYPE_CATEGORICAL

    @property
    def _presence(self) -> NDArray[np.bool_]:
        return np.ones(self._events, np.bool_) if self._present is None else self._present

    def fits(self, dtype: np.dtype[Any]) -> bool:
        """Tells from bases and widths, or the dictionary, that every value fits another dtype."""
        if dtype == self.kind.dtype or np.can_cast(self.kind.dtype, dtype):
            return True
        bounds = np.iinfo(dtype)
        if self.message.type == wire.TRAIT_TYPE_CATEGORICAL:
            entries = self.message.dictionary
            return bool(((entries >= bounds.min) & (entries <= bounds.max)).all())
        bases, widths = self.blocks.bases, self.blocks.widths
        most = bases.astype(object) + (1 << 8 * widths.astype(object)) - 1
        return bool((bases >= max(bounds.min, 0)).all() and (most <= bounds.max).all())

    @cached_property
    def _whole(self) -> NDArray[Any]:
        """Every event of the run, for what cannot be read event by event or must be checked."""
        # Arithmetic modulo 2^64 is exact modulo 2^8 too: narrow traits never need wide words.
        # Only an index keeps all its bits, to be checked against the bounds of its dictionary.
        indexes = self.message.type in INDEX_TYPES
        dtype = np.dtype(np.uint64) if indexes else self.kind.dtype
        values = np.empty(int(self.blocks.counts.sum()), dtype)
        zero = np.zeros(1, np.int64)
        kernel.widen_views([self._run], dtype, Views(zero, zero, zero + len(values), zero), values)
        values = self._checked(values)
        if self._size > 1:
            values = values.reshape(-1, self._size)
        if len(values) == self._events:
            return values
        scattered = np.zeros((self._events, *values.shape[1:]), values.dtype)
        scattered[self._present] = values
        return scattered

    def _checked(self, values: NDArray[Any]) -> NDArray[Any]:
        """Refuses indexes past what is there, and looks the others up."""
        message = self.message
        if message.type == wire.TRAIT_TYPE_CATEGORICAL:
            self._require_below(values, len(message.dictionary))
            return message.dictionary[values.view(np.int64)]
        if message.type == wire.TRAIT_TYPE_STRING:
            self._require_below(values, len(message.strings))
            return values.astype(np.int32)
        if message.type == wire.TRAIT_TYPE_BOOL:
            self._require_below(values.view(np.uint8), 2)
        return values

    def _require_below(self, words: NDArray[Any], bound: int) -> None:
        fits = not len(words) or bool(words.max() < bound)
        require(fits, f"{self.message.trait} has a value that does not exist")


def cast_integers(trait: str, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Casts integers. Raises InputError where one does not fit."""
    if not np.can_cast(values.dtype, dtype) and values.size:
        bounds = np.iinfo(dtype)
        if values.min() < bounds.min or values.max() > bounds.max:
            raise InputError(
                f"The trait {trait!r} has values that do not fit {dtype}; ask for wider integers, "
                f"or leave it out."
            )
    return values.astype(dtype)
