"""Widening of the wire's narrow columns to numpy arrays."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from thinrow.core.runs import offsets_of
from thinrow.core.traits import (
    BATCH_DTYPES,
    LIST_LENGTH_MAX,
    VECTOR_SIZE_MAX,
    TraitType,
    length_bytes,
)
from thinrow.core.wire import widen_jobs
from thinrow.core.wire.malformed import MalformedError, require
from thinrow.core.wire.widen_jobs import Job, Views, run_jobs
from thinrow.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.wire.response import Column
    from thinrow.core.wire.widen_jobs import Run

__all__ = ["ColumnKind", "NarrowColumn", "cast_integers"]

WORD_BYTES = 8
RUN_EVENTS_MAX = 1 << 31
"""Limit on the events of one response; no honest one comes close."""
CHECKED_AT_ONCE = (TraitType.STRING, TraitType.BOOL)
"""Types whose words are checked before any is written; the native loop checks other indices."""


class ColumnKind(NamedTuple):
    """The kind of a trait's values."""

    dtype: np.dtype[Any]
    """Integers, floats and bools in their own dtype, categorical traits int64, text int32."""

    shape: tuple[int, ...]
    """() for scalars, (size,) for vectors."""

    text: bool
    """True if values are codes of strings."""

    nullable: bool
    """True if events may lack the trait."""

    listed: bool = False
    """True if every event has a list of values of the kind."""

    filled: bool = False
    """True if the store got some values after it served the events."""

    def is_like(self, other: ColumnKind) -> bool:
        """Returns True if the kinds differ at most in their nullability, and in being filled."""
        return self._replace(nullable=other.nullable, filled=other.filled) == other


class NarrowColumn:
    """One trait of every event of a run, checked and still narrow.

    Raises:
        MalformedError: The column's parts do not fit together.
    """

    def __init__(self, column: Column, block_lengths: NDArray[np.int64]) -> None:
        name, size = column.trait, column.vector_size
        require(column.type in BATCH_DTYPES, f"{name} has the unknown type {column.type}")
        size_max = 1 if TraitType(column.type).is_indexed else VECTOR_SIZE_MAX
        listed = column.list_length_max > 0
        require(
            size == 0 if listed else 1 <= size <= size_max, f"{name} has the vector size {size}"
        )
        require(
            listed or not column.list_lengths.size, f"{name} has lengths of lists, but no limit"
        )
        self._size, self._events = size or 1, int(block_lengths.sum())
        require(self._events <= RUN_EVENTS_MAX, f"{name} has more events than any answer")
        require(
            column.nullable or not column.present.size,
            f"{name} has present bits, but is not nullable",
        )
        self.message = column
        self.kind = ColumnKind(
            BATCH_DTYPES[column.type],
            () if size <= 1 else (size,),
            column.type == TraitType.STRING,
            column.nullable,
            listed,
            column.filled,
        )
        counts = block_lengths
        if column.nullable:
            require(
                len(column.present) == (self._events + 7) // 8,
                f"{name} has too few or many present bits",
            )
            counts = widen_jobs.present_counts(column.present, block_lengths)
        if listed:
            self._check_lists()
            ends = np.cumsum(block_lengths)
            counts = self.element_offsets[ends] - self.element_offsets[ends - block_lengths]
        counts = counts * self._size
        self._words = int(counts.sum())
        entries = column.dictionary if self._indexes else None
        try:
            self._run = widen_jobs.Run(column.data, column.widths, column.bases, counts, entries)
        except ValueError as error:
            raise MalformedError(f"{name}: {error}") from error

    def _check_lists(self) -> None:
        """Checks the lengths of lists, before memory is taken for their elements."""
        column, name = self.message, self.message.trait
        require(column.list_length_max <= LIST_LENGTH_MAX, f"{name} has lists without a limit")
        width = length_bytes(column.list_length_max)
        require(
            len(column.list_lengths) == width * self._events,
            f"{name} has too few or many lengths of lists",
        )
        lengths = self.lengths
        require(
            lengths.max(initial=0) <= column.list_length_max,
            f"{name} has a list that is longer than its limit",
        )
        if column.nullable:
            require(
                not lengths[~self._present].any(), f"{name} has elements of an event without a list"
            )

    @cached_property
    def lengths(self) -> NDArray[Any]:
        """Elements of each event's list, unsigned, shape (events,); 0 where absent."""
        width = length_bytes(self.message.list_length_max)
        return self.message.list_lengths.view(f"<u{width}")

    @cached_property
    def element_offsets(self) -> NDArray[np.int64]:
        """Place of each event's first element, and the end of the last; shape (events + 1,)."""
        return offsets_of(self.lengths)

    @property
    def travelled_bytes(self) -> int:
        """Size of the column in the response."""
        message = self.message
        entries = 8 * len(message.dictionary) + sum(map(len, message.strings))
        lists = len(message.list_lengths)
        return len(message.data) + 9 * len(message.widths) + len(message.present) + entries + lists

    @property
    def _value_bytes(self) -> int:
        """Size of a value once widened, or of its words while they are widened."""
        return self._size * (WORD_BYTES if self.kind.text else self.kind.dtype.itemsize)

    @property
    def widened_bytes(self) -> int:
        """Size of all values once widened."""
        if self.kind.listed:
            return self._words * self._value_bytes + self._events * WORD_BYTES
        return self._events * self._value_bytes

    def view_bytes(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
        """Size of the values of views, slices of the run, once widened."""
        events = int(lengths.sum())
        if not self.kind.listed:
            return events * self._value_bytes
        offsets = self.element_offsets
        elements = int((offsets[starts + lengths] - offsets[starts]).sum())
        return elements * self._value_bytes + events * WORD_BYTES

    @property
    def _indexes(self) -> bool:
        """True if words index a dictionary of numbers; without one they are the categories."""
        return self.message.type == TraitType.CATEGORICAL and len(self.message.dictionary) > 0

    @cached_property
    def _present(self) -> NDArray[np.bool_]:
        """Shape (events,): False where the event lacks the trait."""
        if not self.message.nullable:
            return np.ones(self._events, np.bool_)
        bits = np.unpackbits(self.message.present, count=self._events, bitorder="little")
        return bits.view(np.bool_)

    def write(self, values: NDArray[Any], present: NDArray[np.bool_] | None = None) -> None:
        """Widens every event.

        Args:
            values: Shape (events, *shape), contiguous, of the kind's dtype; 0 where absent. Of
                lists, the elements, shape (elements,).
            present: Shape (events,): False where absent.
        """
        every = one_view(self._events)
        trait = self.message.trait
        jobs = [Job(trait, [self.run], self.kind.dtype, one_view(len(values)), values)]
        if present is not None:
            jobs.append(Job(trait, [self.presence_run], present.dtype, every, present))
        run_jobs(jobs)

    @cached_property
    def run(self) -> Run:
        """Every event, with words that mean `kind.dtype`; 0 where absent. Of lists, the elements.

        Raises:
            MalformedError: A word indexes no entry.
        """
        is_sparse = self.message.nullable and not self.kind.listed
        if not is_sparse and self.message.type not in CHECKED_AT_ONCE:
            return self._run
        return widen_jobs.run_of_items(self._every_event)

    @cached_property
    def presence_run(self) -> Run:
        """A bool for every event: False where it lacks the trait."""
        return widen_jobs.run_of_items(self._present)

    def fits(self, dtype: np.dtype[Any]) -> bool:
        """Returns True if bases and widths, or the dictionary, show that every value fits."""
        if dtype == self.kind.dtype or np.can_cast(self.kind.dtype, dtype):
            return True
        bounds, message = np.iinfo(dtype), self.message
        if self._indexes:
            entries = message.dictionary
            return bool(((entries >= bounds.min) & (entries <= bounds.max)).all())
        most = message.bases.astype(object) + (1 << 8 * message.widths.astype(object)) - 1
        return bool((message.bases >= max(bounds.min, 0)).all() and (most <= bounds.max).all())

    @cached_property
    def _every_event(self) -> NDArray[Any]:
        """Every event of the run, widened: nullable columns, and words that need a check."""
        # Arithmetic modulo 2^64 is exact modulo 2^8 too: narrow traits never need wide words.
        # Only an index keeps all its bits, because it is compared with the number of texts.
        message = self.message
        dtype = np.dtype(np.uint64) if self.kind.text else self.kind.dtype
        values = np.empty(self._words, dtype)
        run_jobs([Job(message.trait, [self._run], dtype, one_view(len(values)), values)])
        if message.type == TraitType.STRING:
            self._require_below(values, len(message.strings))
            values = values.astype(np.int32)
        elif message.type == TraitType.BOOL:
            self._require_below(values.view(np.uint8), 2)
        if self._size > 1:
            values = values.reshape(-1, self._size)
        if self.kind.listed or len(values) == self._events:
            return values
        scattered = np.zeros((self._events, *values.shape[1:]), values.dtype)
        scattered[self._present] = values
        return scattered

    def _require_below(self, words: NDArray[Any], bound: int) -> None:
        bad = len(words) and words.max() >= bound
        require(not bad, f"{self.message.trait} has a value that does not exist")


def one_view(events: int) -> Views:
    """Returns a view of the first `events` events of a run, at the start of the output."""
    zero = np.zeros(1, np.int64)
    return Views(zero, zero, zero + events, zero)


def cast_integers(trait: str, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Casts integers.

    Raises:
        InputError: A value does not fit `dtype`.
    """
    if not np.can_cast(values.dtype, dtype) and values.size:
        bounds = np.iinfo(dtype)
        if values.min() < bounds.min or values.max() > bounds.max:
            raise InputError(
                f"The trait {trait!r} has values that do not fit {dtype}; request wider integers, "
                f"or leave it out."
            )
    return values.astype(dtype)
