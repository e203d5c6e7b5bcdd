"""Stripes read with NumPy alone: what the native code must agree with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from thinrow.core.runs import offsets_of, ranges
from thinrow.core.traits import length_bytes
from thinrow.errors import StoreCorruptError
from thinrow.schema import Trait, TraitType
from thinrow.store.narrow import WIDTHS, NarrowBlocks
from thinrow.store.stripe import (
    CATEGORY_BYTES,
    COLUMN,
    EVENTS_MAX,
    HEADER,
    LENGTH_SHIFT,
    PRESENT_ALL,
    PRESENT_NONE,
    PRESENT_SOME,
    TraitValues,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def joined(
    buffer: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> bytes:
    """Slices of ``buffer``, one after the other.

    Raises:
        StoreCorruptError: where a slice would reach past the buffer's end.
    """
    if (starts < 0).any() or (starts + lengths > len(buffer)).any():
        raise StoreCorruptError("A stripe is shorter than its header says.")
    return buffer[ranges(starts, lengths)].tobytes()


def by_width(buffer: NDArray[np.uint8], blocks: NarrowBlocks) -> bytes:
    """Offsets of all blocks of width 1 in block order, then of width 2, 4 and 8."""
    order = np.argsort(blocks.widths, kind="stable")
    return joined(buffer, blocks.starts[order], blocks.byte_lengths[order])


def widened(buffer: NDArray[np.uint8], blocks: NarrowBlocks) -> NDArray[np.uint64]:
    """The words of all blocks, one block after the other."""
    words = np.repeat(blocks.bases.view(np.uint64), blocks.counts)
    lengths = blocks.byte_lengths
    for width in WIDTHS:
        of_width = blocks.widths == width
        if of_width.any():
            data = joined(buffer, blocks.starts[of_width], lengths[of_width])
            words[np.repeat(of_width, blocks.counts)] += np.frombuffer(data, dtype=f"<u{width}")
    return words


@dataclass(frozen=True, slots=True)
class ColumnSlices:
    """One column of several slices of stripes, still encoded."""

    blocks: NarrowBlocks
    """One block a slice; ``counts`` are words of events that have the trait."""
    present: NDArray[np.bool_] | None
    """True for events of the slices that have the trait; None if all have it."""
    lengths: NDArray[np.int64] | None = None
    """Elements of each event's list; None if the trait is no list."""


class StripeSet:
    """Stripes of one feature group, read together.

    Raises StoreCorruptError, from any method, where a stripe contradicts itself.
    """

    def __init__(self, stripes: Sequence[bytes]) -> None:
        self.buffer = np.frombuffer(b"".join(stripes), dtype=np.uint8)
        lengths = np.fromiter(map(len, stripes), dtype=np.int64, count=len(stripes))
        self.starts = offsets_of(lengths)[:-1]
        if len(lengths) and int(lengths.min()) < HEADER.itemsize:
            raise StoreCorruptError("A stripe has no header.")
        header = self._records(self.starts, HEADER, 1)[:, 0]
        self.event_counts = header["events"].astype(np.int64)
        self._column_counts = header["columns"].astype(np.int64)
        if (lengths < HEADER.itemsize + self._column_counts * COLUMN.itemsize).any():
            raise StoreCorruptError("A stripe is shorter than its header says.")
        if (self.event_counts > EVENTS_MAX).any():
            raise StoreCorruptError("A stripe's header says more events than any stripe has.")

    def _records(
        self, starts: NDArray[np.int64], dtype: np.dtype[np.void], count: int
    ) -> NDArray[np.void]:
        lengths = np.full(len(starts), dtype.itemsize * count)
        picked = joined(self.buffer, starts, lengths)
        return np.frombuffer(picked, dtype).reshape(len(starts), count)

    @cached_property
    def _columns(self) -> dict[int, tuple[NDArray[np.bool_], NDArray[np.void]]]:
        """The stripes that have each column, and every stripe's record of it, by trait number."""
        columns: dict[int, tuple[NDArray[np.bool_], NDArray[np.void]]] = {}
        for count in np.unique(self._column_counts).tolist():
            rows = np.flatnonzero(self._column_counts == count)
            records = self._records(self.starts[rows] + HEADER.itemsize, COLUMN, count)
            for number in np.unique(records["number"]).tolist():
                if number not in columns:
                    size = len(self.starts)
                    columns[number] = (np.zeros(size, np.bool_), np.zeros(size, COLUMN))
                has, record = columns[number]
                row, place = np.nonzero(records["number"] == number)
                has[rows[row]] = True
                record[rows[row]] = records[row, place]
                if not (
                    np.isin(record["width"], (0, *WIDTHS)).all()
                    and (record["presence"] & 3 <= PRESENT_NONE).all()
                    and (record["dictionary_count"] <= EVENTS_MAX).all()
                ):
                    raise StoreCorruptError("A stripe has a column of no known kind.")
        return columns

    def _column(self, trait: Trait) -> tuple[NDArray[np.bool_], NDArray[np.void]]:
        size = len(self.starts)
        absent = (np.zeros(size, np.bool_), np.zeros(size, COLUMN))
        has, record = self._columns.get(trait.number, absent)
        if not has.all():
            # Written before the trait was added: its default, or null.
            record = record.copy()
            record["base"][~has] = trait.default_word
            record["presence"][~has] = PRESENT_NONE if trait.nullable else PRESENT_ALL
        return has, record

    def slices(
        self,
        trait: Trait,
        stripe: NDArray[np.int64],
        first: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> ColumnSlices:
        """Events ``[first, first + counts)`` of each of the named stripes, one trait of them."""
        _, records = self._column(trait)
        record = records[stripe]
        presence = record["presence"] & 3
        value_first, value_counts, present = first, counts, None
        if (presence != PRESENT_ALL).any():
            if not trait.nullable:
                raise StoreCorruptError("A stripe lacks values of a trait that every event has.")
            value_first, value_counts, present = self._present(record, stripe, first, counts)
        lengths = None
        if trait.length_max:
            value_first, value_counts, lengths = self._lists(trait, record, stripe, first, counts)
        widths = record["width"]
        blocks = NarrowBlocks(
            bases=record["base"].astype(np.int64),
            widths=widths,
            counts=value_counts * trait.size,
            starts=self.starts[stripe] + record["data"] + value_first * trait.size * widths,
        )
        return ColumnSlices(blocks, present, lengths)

    def _lists(
        self,
        trait: Trait,
        record: NDArray[np.void],
        stripe: NDArray[np.int64],
        first: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Counts the elements before and in each slice, and in each of its events."""
        width = length_bytes(trait.length_max)
        events = self.event_counts[stripe]
        bitmaps = np.where(record["presence"] & 3 == PRESENT_SOME, -(-events // 8), 0)
        starts = self.starts[stripe] + record["bitmap"] + bitmaps
        # Stripes from before the trait was added have no lengths.
        stored = np.where(record["presence"] >> LENGTH_SHIFT == width, first + counts, 0)
        data = joined(self.buffer, starts, width * stored)
        every = np.frombuffer(data, f"<u{width}").astype(np.int64)
        lists = [
            every[begin:end] if end > begin else np.zeros(size, np.int64)
            for (begin, end), size in zip(
                pairwise(offsets_of(stored).tolist()), (first + counts).tolist(), strict=True
            )
        ]
        within = [part[skipped:] for part, skipped in zip(lists, first, strict=True)]
        if any((part > trait.length_max).any() for part in lists):
            raise StoreCorruptError("A stripe has a list that is longer than its limit.")
        before = [part[:skipped].sum() for part, skipped in zip(lists, first, strict=True)]
        sums = [part.sum() for part in within]
        lengths = np.concatenate([np.zeros(0, np.int64), *within])
        return np.array(before, np.int64), np.array(sums, np.int64), lengths

    def _present(
        self,
        record: NDArray[np.void],
        stripe: NDArray[np.int64],
        first: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Counts the values before and in each slice; True for events that have one."""
        presence = record["presence"] & 3
        present = np.repeat(presence == PRESENT_ALL, counts)
        value_first = np.where(presence == PRESENT_ALL, first, 0)
        value_counts = np.where(presence == PRESENT_ALL, counts, 0)
        some = np.flatnonzero(presence == PRESENT_SOME)
        if some.size:
            lengths = -(-(first[some] + counts[some]) // 8)
            starts = self.starts[stripe[some]] + record["bitmap"][some]
            data = np.frombuffer(joined(self.buffer, starts, lengths), dtype=np.uint8)
            bits = np.unpackbits(data, bitorder="little").view(np.bool_)
            rank = offsets_of(bits.view(np.int8))
            bit = 8 * offsets_of(lengths)[:-1]
            value_first[some] = rank[bit + first[some]] - rank[bit]
            value_counts[some] = rank[bit + first[some] + counts[some]] - rank[bit + first[some]]
            within = ranges(offsets_of(counts)[:-1][some], counts[some])
            present[within] = bits[ranges(bit + first[some], counts[some])]
        return value_first, value_counts, present

    def words(
        self,
        trait: Trait,
        stripe: NDArray[np.int64],
        first: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> TraitValues:
        """The same slices, decoded. Words of text index the result's texts."""
        slices = self.slices(trait, stripe, first, counts)
        words = widened(self.buffer, slices.blocks)
        if trait.type not in (TraitType.STRING, TraitType.CATEGORICAL):
            return TraitValues(trait, words, slices.present, lengths=slices.lengths)
        used, place = np.unique(stripe, return_inverse=True)
        has, records = self._column(trait)
        record, is_text = records[used], trait.type is TraitType.STRING
        # A stripe from before the trait was added has one text, the default.
        stored = record["dictionary_count"].astype(np.int64)
        entry_counts = np.where(has[used], stored, int(is_text))
        entry_starts = offsets_of(entry_counts)
        indexes = np.repeat(is_text | (entry_counts[place] > 0), slices.blocks.counts)
        bounds = np.repeat(entry_counts[place], slices.blocks.counts)[indexes]
        if (words[indexes] >= bounds.view(np.uint64)).any():
            raise StoreCorruptError("A stripe's word points past its dictionary.")
        words[indexes] += np.repeat(entry_starts[:-1][place], slices.blocks.counts)[indexes].view(
            np.uint64
        )
        if not is_text:
            starts = self.starts[used] + record["dictionary"]
            data = joined(self.buffer, starts, CATEGORY_BYTES * entry_counts)
            words[indexes] = np.frombuffer(data, dtype="<u8")[words[indexes]]
            return TraitValues(trait, words, slices.present, lengths=slices.lengths)
        # Only what the slices use: a short slice must not drag a long dictionary along.
        wanted = np.zeros(entry_starts[-1], dtype=np.bool_)
        wanted[words] = True
        words = (np.cumsum(wanted) - 1).astype(np.uint64)[words]
        texts = self._texts(trait, has[used], record, used, entry_starts, wanted)
        return TraitValues(trait, words, slices.present, texts, slices.lengths)

    def _texts(
        self,
        trait: Trait,
        has: NDArray[np.bool_],
        record: NDArray[np.void],
        used: NDArray[np.int64],
        entry_starts: NDArray[np.int64],
        wanted: NDArray[np.bool_],
    ) -> pa.Array:
        texts: list[str] = []
        places = (self.starts[used] + record["dictionary"]).tolist()
        for index, place in enumerate(places):
            chosen = np.flatnonzero(wanted[entry_starts[index] : entry_starts[index + 1]])
            if not has[index]:
                texts += [str(trait.default)] * len(chosen)
                continue
            count = int(record["dictionary_count"][index])
            body = self.buffer[place + 4 * count :]
            ends_bytes = joined(self.buffer, np.array([place]), np.array([4 * count]))
            ends = np.frombuffer(ends_bytes, dtype="<u4")
            begins = np.concatenate([[0], ends[:-1]])
            if (ends < begins).any() or (ends > len(body)).any():
                raise StoreCorruptError("A stripe is shorter than its header says.")
            try:
                texts += [
                    str(bytes(body[a:b]), "utf-8")
                    for a, b in zip(begins[chosen].tolist(), ends[chosen].tolist(), strict=True)
                ]
            except UnicodeDecodeError as error:
                raise StoreCorruptError("A stripe has a text that is none.") from error
        return pa.array(texts, type=pa.large_string())
