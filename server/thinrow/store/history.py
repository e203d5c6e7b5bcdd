"""Resolution of pointers to events: the choice of stripes to read, and the cuts in them.

The work on a batch is two batched reads, with native code (native/plan.h) between them::

    plan = HistoryPlan(generation, pointers, ...)   # reads directories, chooses stripes
    plan.read()                                     # reads the stripes
    selection = plan.resolve()                      # cuts, checks, gives each its status
    message = plan.answer(traits, ...)              # what travels

An ordinal is an event's place in its user's whole history, from 0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from thinrow import _native
from thinrow.store.directory import NEVER_TS
from thinrow.store.keys import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from thinrow.schema import Schema, Trait
    from thinrow.store.generation import Generation

__all__ = [
    "PORTION_BYTES_MAX",
    "PORTION_KEYS_MAX",
    "READ_COPIES",
    "HistoryPlan",
    "PointerBatch",
    "Selection",
    "Truncation",
    "bisect_left",
    "digests_at",
]

READ_COPIES = 3
"""Copies of a value while it is read: RocksDB's block, the value in it, and the one kept."""
PORTION_KEYS_MAX = 64
PORTION_BYTES_MAX = 4 * 1024 * 1024
"""Limits on stripes with text or lists read at once; one stripe may exceed the latter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerBatch:
    """A batch of pointers as the native plan takes it; int64 arrays of shape (examples,)."""

    user_ids: NDArray[np.int64]
    start_ts: NDArray[np.int64]
    end_ts: NDArray[np.int64]
    max_lengths: NDArray[np.int64]
    digests: NDArray[np.uint64]
    """uint64; 0 where none was recorded."""
    request_ts: NDArray[np.int64]
    mutable_lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """The part of each history that is wanted."""

    sequence_length: int
    """Most events of immutable ++ mutable; 0 for no limit."""
    head: bool = False
    """Keeps the oldest instead of the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Events that a batch of pointers names, after truncation."""

    statuses: NDArray[np.uint8]
    """One Status per example."""
    first: NDArray[np.int64]
    """Ordinal of each example's first event."""
    counts: NDArray[np.int64]
    """Events of each example; 0 where the status is not OK."""
    available_counts: NDArray[np.int64]
    """Events in each pointer's window that the store still has; where the window is longer than
    what is wanted of it, at least that many."""
    digests: NDArray[np.uint64]
    """Digest of each history up to end_ts; 0 where it was not requested or is unknown."""


def bisect_left(
    values: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    targets: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each target the leftmost place in the sorted ``values[first:last]`` to insert it."""
    low, high = first.copy(), last.copy()
    while (searching := low < high).any():
        middle = (low + high) >> 1
        less = searching & (values[np.where(searching, middle, 0)] < targets)
        low = np.where(less, middle + 1, low)
        high = np.where(searching & ~less, middle, high)
    return low


class HistoryPlan:
    """A batch between its two reads."""

    def __init__(
        self,
        generation: Generation,
        pointers: PointerBatch | _native.MaterializeRequest,
        truncation: Truncation,
        groups: Iterable[int],
        *,
        record_digests: bool = False,
    ) -> None:
        """Reads the directories and chooses the stripes that the batch needs.

        Args:
            generation: The generation to read.
            pointers: The histories to read; a request whose columns differ in length is an error.
            truncation: The part of each history to return.
            groups: Numbers of the stored groups whose stripes are wanted.
            record_digests: Compute every example's digest, not only those to be checked.

        Raises:
            StoreCorruptError: A directory contradicts itself, or a file failed its checksum.
        """
        self._generation = generation
        how = (
            generation.watermarks,
            truncation.sequence_length,
            truncation.head,
            record_digests,
        )
        if isinstance(pointers, PointerBatch):
            self._plan = _native.Plan(
                pointers.user_ids,
                pointers.start_ts,
                pointers.end_ts,
                pointers.max_lengths,
                pointers.digests,
                pointers.request_ts,
                pointers.mutable_lengths,
                *how,
            )
        else:
            self._plan = _native.Plan(pointers, *how)
        chosen = _groups(generation.schema, frozenset(groups))
        self._is_varying = any(generation.schema.has_varying[number] for number, *_ in chosen)
        self.stripe_memory_bytes = 0
        """Bytes that the stripes take once read, with what their texts and lists add to them."""
        with generation.naming_damage():
            directories = generation.values(self._plan.directory_keys())
            self._plan.choose_stripes(directories, chosen)

    @property
    def events_at_most(self) -> int:
        """Bound on the events that an answer can hold, known before stripes are read."""
        return self._plan.events_at_most

    @property
    def stripe_bytes_at_most(self) -> int:
        """Bound on the bytes of the stripes to read, text and lists aside, known before."""
        return self._plan.stripe_bytes_at_most

    @property
    def portion_bytes(self) -> int:
        """Bytes that reading takes for a moment, beside those of the stripes that are kept."""
        if not self._is_varying:
            return 0
        keys = len(self._plan.stripe_keys()) // KEY_BYTES
        return READ_COPIES * min(keys, self._portion_keys) * self._generation.value_bytes_max

    @property
    def _portion_keys(self) -> int:
        fitting = PORTION_BYTES_MAX // self._generation.value_bytes_max
        return min(PORTION_KEYS_MAX, max(1, fitting))

    def read(
        self,
        kept_bytes_max: int = sys.maxsize,
        counted_bytes_max: int = sys.maxsize,
        extend: Callable[[int], bool] = lambda _: False,
    ) -> int | None:
        """Reads the chosen stripes, and sets `stripe_memory_bytes`.

        The sizes of texts and lists are known only once they are read.

        Args:
            kept_bytes_max: Bytes that the stripes may take; if they take more, none is kept.
            counted_bytes_max: Bytes beyond which reading ends early.
            extend: Adds to `kept_bytes_max`, or returns False.

        Returns:
            Bytes of the stripes; None if they are to be read again with a larger `kept_bytes_max`.

        Raises:
            StoreCorruptError: a file failed its checksum, or stripes and directories disagree.
        """
        keys = self._plan.stripe_keys()
        portion = self._portion_keys * KEY_BYTES if self._is_varying else max(1, len(keys))
        kept: list[bytes | None] | None = []
        self.stripe_memory_bytes = 0
        with self._generation.naming_damage():
            for at in range(0, len(keys), portion):
                values = self._generation.values(keys[at : at + portion])
                self.stripe_memory_bytes += _native.stripe_memory_bytes(values)
                if self.stripe_memory_bytes > counted_bytes_max:
                    return None
                if kept is None:  # only counted from here on
                    continue
                missing_bytes = self.stripe_memory_bytes - kept_bytes_max
                if missing_bytes <= 0:
                    kept += values
                elif extend(missing_bytes):
                    kept_bytes_max += missing_bytes
                    kept += values
                else:
                    kept = None
            return None if kept is None else self._plan.set_stripes(kept)

    def resolve(self) -> Selection:
        """Finds where each window starts and ends, checks it, and truncates it.

        Raises:
            StoreCorruptError: stripes and directories disagree.
        """
        schema = self._generation.schema
        with self._generation.naming_damage():
            self._plan.resolve(
                _native_traits(schema, schema.digest_traits),
                _text_hash,
                self._generation.digest_memory,
            )
        statuses, first, counts, available_counts, digests = self._plan.selection()
        return Selection(
            statuses=statuses,
            first=first,
            counts=counts,
            available_counts=available_counts,
            digests=digests,
        )

    def answer(
        self,
        traits: tuple[Trait, ...],
        response_bytes_max: int,
        *,
        cursor: int | None = None,
        elapsed_us: int = 0,
        map_version: int = 0,
    ) -> tuple[bytes, int]:
        """Encodes the selected events as a MaterializeResponse.

        Args:
            traits: of the groups that were read, in the order of the answer's columns.
            response_bytes_max: the most bytes it may have.
            cursor: given, the answer is wrapped into a MaterializeStreamResponse.
            elapsed_us: time already spent on it; `server_us` is this and what is spent here.
            map_version: version of the cluster's map; 0 outside a cluster.

        Returns:
            The message, and the events of its examples.

        Raises:
            AnswerTooLargeError: it would have more bytes.
            StoreCorruptError: a stripe contradicts itself.
        """
        generation = self._generation
        with generation.naming_damage():
            return self._plan.answer(
                _native_traits(generation.schema, traits),
                generation.number,
                generation.watermark_ts,
                response_bytes_max,
                cursor,
                elapsed_us,
                map_version,
            )


def _text_hash(text: bytes) -> int:
    return xxhash.xxh3_64_intdigest(text)


def _groups(schema: Schema, wanted: frozenset[int]) -> list[tuple[int, bool, bool, int]]:
    """Returns for each group to read: number, wanted, in the digest, bytes of an event."""
    keys = {schema.group_of[trait.name] for trait in schema.digest_traits}
    return [
        (number, number in wanted, number in keys, schema.event_bytes[number])
        for number in sorted(keys | wanted)
    ]


def _native_traits(schema: Schema, traits: Iterable[Trait]) -> list[_native.Trait]:
    return [schema.native_traits[trait.name] for trait in traits]


def digests_at(
    generation: Generation, user_ids: NDArray[np.int64], end_ts: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Returns the digests of the histories up to `end_ts`; 0 if events needed for one are dropped.

    Args:
        generation: The generation to read.
        user_ids: Users of the histories; int64, shape (examples,).
        end_ts: End of each history, exclusive, ms; none may lie past the watermark.
    """
    zeros = np.zeros(len(user_ids), dtype=np.int64)
    pointers = PointerBatch(
        user_ids=user_ids,
        start_ts=np.full(len(user_ids), NEVER_TS),
        end_ts=end_ts,
        max_lengths=zeros,
        digests=zeros.view(np.uint64),
        request_ts=np.full(len(user_ids), np.iinfo(np.int64).max),
        mutable_lengths=zeros + 1,
    )
    only_digests = Truncation(sequence_length=1)
    plan = HistoryPlan(generation, pointers, only_digests, groups=(), record_digests=True)
    plan.read()
    return plan.resolve().digests
