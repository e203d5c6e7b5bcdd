"""From the wire's narrow columns to numpy arrays."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from thinrow.core.wire import kernel
from thinrow.core.wire.kernel import Job, Views
from thinrow.errors import InputError, ThinRowError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.wire.kernel import Run
    from thinrow.core.wire.response import Column

__all__ = [
    "VALUE_DTYPES",
    "ColumnKind",
    "MalformedError",
    "NarrowColumn",
    "cast_integers",
    "indexes_nothing",
    "require",
]

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

VECTOR_SIZE_MAX = 1 << 12
WORD_BYTES = 8
RUN_EVENTS_MAX = 1 << 31
"""More than any honest answer has."""
INDEX_TYPES = (wire.TRAIT_TYPE_CATEGORICAL, wire.TRAIT_TYPE_STRING)
CHECKED_AT_ONCE = (wire.TRAIT_TYPE_STRING, wire.TRAIT_TYPE_BOOL)
"""Types whose words are checked before they are written; what others index, as they are."""


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


class MalformedError(ThinRowError):
    """An answer that contradicts itself.

    A server that reads a client's columns with the same code says `reason` in a sentence of its
    own.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"The server's answer is malformed: {reason}.")
        self.reason = reason


def require(condition: bool | np.bool_, what: str) -> None:
    """Refuses an answer that contradicts itself, rather than return wrong values."""
    if not condition:
        raise MalformedError(what)


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
        counts = block_lengths
        if column.nullable:
            require(
                len(column.present) == (self._events + 7) // 8,
                f"{name} has too few or many present bits",
            )
            counts = kernel.present_counts(column.present, block_lengths)
        self.blocks = Blocks(column.data, column.widths, column.bases, counts * size)
        try:
            self._run = kernel.Run(*self.blocks, column.dictionary if self._indexes else None)
        except ValueError as error:
            raise MalformedError(f"{name}: {error}") from error

    @property
    def travelled_bytes(self) -> int:
        """Size of the column in the answer."""
        message = self.message
        entries = 8 * len(message.dictionary) + sum(map(len, message.strings))
        bitmap = len(message.present)
        return len(self.blocks.data) + 9 * len(self.blocks.widths) + bitmap + entries

    @property
    def event_bytes(self) -> int:
        """Size of one event's values once they are widened, or of what they take meanwhile."""
        return self._size * (WORD_BYTES if self.kind.text else self.kind.dtype.itemsize)

    @property
    def widened_bytes(self) -> int:
        """Size of all its values once they are widened."""
        return self._events * self.event_bytes

    @cached_property
    def _present(self) -> NDArray[np.bool_] | None:
        """Which events have the trait; None where all do."""
        if not self.message.nullable:
            return None
        bits = np.unpackbits(self.message.present, count=self._events, bitorder="little")
        return bits.view(np.bool_)

    @property
    def is_plain(self) -> bool:
        """Whether each event's word is its value."""
        checked = self.message.type in CHECKED_AT_ONCE
        return not (self.message.nullable or checked or self._indexes)

    @property
    def _indexes(self) -> bool:
        """Whether words index a dictionary of numbers. Without one they are categories."""
        return self.message.type == wire.TRAIT_TYPE_CATEGORICAL and len(self.message.dictionary) > 0

    def write(self, values: NDArray[Any], present: NDArray[np.bool_] | None = None) -> None:
        """Widens every event.

        values: shape (events, *shape), contiguous, of the kind's dtype; 0 where absent.
        present: shape (events,): False where absent.
        """
        zero = np.zeros(1, np.int64)
        every = Views(zero, zero, zero + self._events, zero)
        trait = self.message.trait
        jobs = [Job(trait, [self.run], self.kind.dtype, every, values)]
        if present is not None:
            jobs.append(Job(trait, [self.presence_run], present.dtype, every, present))
        if kernel.write(jobs) is not None:
            raise indexes_nothing(trait)

    @cached_property
    def run(self) -> Run:
        """Every event, its words meaning `kind.dtype`; 0 where absent.

        Raises ThinRowError for a value that does not exist.
        """
        if not self.message.nullable and self.message.type not in CHECKED_AT_ONCE:
            return self._run
        return kernel.run_of_items(self._whole)

    @cached_property
    def presence_run(self) -> Run:
        """Of every event whether it has the trait."""
        present = np.ones(self._events, np.bool_) if self._present is None else self._present
        return kernel.run_of_items(present)

    def fits(self, dtype: np.dtype[Any]) -> bool:
        """Tells from bases and widths, or the dictionary, that every value fits another dtype."""
        if dtype == self.kind.dtype or np.can_cast(self.kind.dtype, dtype):
            return True
        bounds = np.iinfo(dtype)
        if self._indexes:
            entries = self.message.dictionary
            return bool(((entries >= bounds.min) & (entries <= bounds.max)).all())
        bases, widths = self.blocks.bases, self.blocks.widths
        most = bases.astype(object) + (1 << 8 * widths.astype(object)) - 1
        return bool((bases >= max(bounds.min, 0)).all() and (most <= bounds.max).all())

    @cached_property
    def _whole(self) -> NDArray[Any]:
        """Every event of the run, for what cannot be read event by event or must be checked."""
        # Arithmetic modulo 2^64 is exact modulo 2^8 too: narrow traits never need wide words.
        # Only an index keeps all its bits, to be checked against the texts there are.
        dtype = np.dtype(np.uint64) if self.kind.text else self.kind.dtype
        values = np.empty(int(self.blocks.counts.sum()), dtype)
        zero = np.zeros(1, np.int64)
        every = Views(zero, zero, zero + len(values), zero)
        if kernel.write([Job(self.message.trait, [self._run], dtype, every, values)]) is not None:
            raise indexes_nothing(self.message.trait)
        values = self._checked(values)
        if self._size > 1:
            values = values.reshape(-1, self._size)
        if len(values) == self._events:
            return values
        scattered = np.zeros((self._events, *values.shape[1:]), values.dtype)
        scattered[self._present] = values
        return scattered

    def _checked(self, values: NDArray[Any]) -> NDArray[Any]:
        """Refuses values past what is there."""
        message = self.message
        if message.type == wire.TRAIT_TYPE_STRING:
            self._require_below(values, len(message.strings))
            return values.astype(np.int32)
        if message.type == wire.TRAIT_TYPE_BOOL:
            self._require_below(values.view(np.uint8), 2)
        return values

    def _require_below(self, words: NDArray[Any], bound: int) -> None:
        if len(words) and words.max() >= bound:
            raise indexes_nothing(self.message.trait)


def indexes_nothing(trait: str) -> ThinRowError:
    """Says that a word points past its dictionary."""
    return MalformedError(f"{trait} has a value that does not exist")


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
