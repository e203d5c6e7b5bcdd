"""Stripes: consecutive events of one user in one feature group, encoded together.

Layout, little-endian::

    header      u32 events, u16 columns, u16 zero
    columns     one COLUMN record each, ascending by trait number
    data        presence bitmaps, dictionaries and offsets, where the records point

A column's words are narrowed by frame of reference (narrow.py). Those of text index the column's
own dictionary; so do categories where that takes fewer bytes than the categories themselves, which
a count of entries says. A nullable column that has nulls carries a bitmap, lowest bit first, and
words only of the events that have the trait. A column of lists has the length of each event's
list behind the bitmap, as its record says, and the words of every element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow import _native
from thinrow.core.runs import offsets_of, ranges
from thinrow.core.traits import length_bytes
from thinrow.errors import StoreCorruptError
from thinrow.schema import EVENT_TS, VISIBLE_TS, Trait, TraitType
from thinrow.store.narrow import narrow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "CATEGORY_BYTES",
    "COLUMN",
    "EVENTS_MAX",
    "HEADER",
    "LENGTH_SHIFT",
    "PRESENT_ALL",
    "PRESENT_NONE",
    "PRESENT_SOME",
    "STRIPE_EVENTS_MAX",
    "TraitValues",
    "decode_stripes",
    "encode_stripes",
]

HEADER = np.dtype([("events", "<u4"), ("columns", "<u2"), ("zero", "<u2")])
COLUMN = np.dtype(
    [
        ("number", "<u2"),
        ("width", "u1"),
        ("presence", "u1"),
        ("data", "<u4"),
        ("bitmap", "<u4"),
        ("dictionary", "<u4"),
        ("dictionary_count", "<u4"),
        ("dictionary_bytes", "<u4"),
        ("base", "<i8"),
    ]
)
CATEGORY_BYTES = 8
PRESENT_ALL, PRESENT_SOME, PRESENT_NONE = 0, 1, 2
LENGTH_SHIFT = 2
"""Bits of a record's presence below the bytes of each length of lists; 0 bytes for no lists."""

STRIPE_EVENTS_MAX = 1024
"""A user's newest stripes are shorter, and rewritten until they make one of this many events."""

EVENTS_MAX = 1 << 16
"""Far more events, and dictionary entries, than any stripe has: one that says so is damaged."""


@dataclass(frozen=True, slots=True)
class TraitValues:
    """One trait of consecutive events, ready to be encoded."""

    trait: Trait
    words: NDArray[np.uint64]
    """Words of the events that have the trait, ``trait.size`` each."""
    present: NDArray[np.bool_] | None = None
    """True for events that have the trait, shape (events,); None if all have it."""
    texts: pa.Array | None = None
    """Strings that the words of a text index: Arrow large_string."""
    lengths: NDArray[np.int64] | None = None
    """Words of each event of a list, shape (events,), 0 where absent; None if it is no list."""


def encode_stripes(columns: Sequence[TraitValues], counts: NDArray[np.int64]) -> list[bytes]:
    """Encodes stripes of ``counts`` events each; ``columns`` ascend by trait number."""
    stripes = len(counts)
    records = np.zeros((stripes, len(columns)), dtype=COLUMN)
    offset = np.full(stripes, HEADER.itemsize + records.dtype.itemsize * len(columns))
    parts: list[list[bytes]] = []
    placed: dict[int, tuple[TraitValues, NDArray[np.int64]]] = {}
    for index, column in enumerate(columns):
        record = records[:, index]
        record["number"] = column.trait.number
        word_counts = counts * column.trait.size
        if column.present is not None:
            bitmaps, present_counts = _bitmaps(column.present, counts, record)
            word_counts = present_counts * column.trait.size
            record["bitmap"], offset = offset, offset + _lengths(bitmaps)
            parts.append(bitmaps)
        if column.lengths is not None:
            if column.present is None:
                record["bitmap"] = offset
            lists, word_counts = _list_lengths(column, counts, record)
            offset = offset + _lengths(lists)
            parts.append(lists)
        words = column.words
        if column.trait.type.is_indexed:
            encode = _texts if column.texts is not None else _categories
            dictionaries, words = encode(column, word_counts, record)
            record["dictionary_bytes"] = _lengths(dictionaries)
            record["dictionary"], offset = offset, offset + record["dictionary_bytes"]
            parts.append(dictionaries)
        blocks, data = narrow(words, word_counts)
        record["base"], record["width"] = blocks.bases, blocks.widths
        lengths = blocks.byte_lengths
        record["data"] = offset
        # event_ts mostly equals visible_ts: a stripe where it does stores the offsets once.
        twin = _twin(column, placed, counts)
        if twin is not None:
            same, place = twin
            record["data"] = np.where(same, place, offset)
            lengths = np.where(same, 0, lengths)
        placed[column.trait.number] = (column, record["data"].astype(np.int64))
        parts.append(_cut(data.tobytes(), blocks.starts, lengths))
        offset = offset + lengths
    header = np.zeros(stripes, dtype=HEADER)
    header["events"], header["columns"] = counts, len(columns)
    heads = _rows(header)
    bodies = _rows(records)
    return [b"".join(pieces) for pieces in zip(heads, bodies, *parts, strict=True)]


def _rows(array: NDArray[np.void]) -> list[bytes]:
    data = array.tobytes()
    size = len(data) // len(array) if len(array) else 0
    # Counted by rows: those of a stripe without columns are empty, but there.
    return [data[row * size : (row + 1) * size] for row in range(len(array))]


def _cut(data: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[bytes]:
    ends = starts + lengths
    return [data[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def _lengths(pieces: list[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))


def _twin(
    column: TraitValues,
    placed: dict[int, tuple[TraitValues, NDArray[np.int64]]],
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.int64]] | None:
    if column.trait != EVENT_TS or VISIBLE_TS.number not in placed:
        return None
    visible, place = placed[VISIBLE_TS.number]
    equal = column.words == visible.words
    return np.logical_and.reduceat(equal, offsets_of(counts)[:-1]), place


def _bitmaps(
    present: NDArray[np.bool_], counts: NDArray[np.int64], record: NDArray[np.void]
) -> tuple[list[bytes], NDArray[np.int64]]:
    present_counts = np.add.reduceat(present.astype(np.int64), offsets_of(counts)[:-1])
    some = (present_counts > 0) & (present_counts < counts)
    record["presence"] = np.select(
        [some, present_counts == counts], [PRESENT_SOME, PRESENT_ALL], PRESENT_NONE
    )
    lengths = -(-counts // 8)
    starts = offsets_of(lengths)
    bits = np.zeros(8 * starts[-1], dtype=np.bool_)
    bits[ranges(8 * starts[:-1], counts)] = present
    data = np.packbits(bits, bitorder="little").tobytes()
    return _cut(data, starts[:-1], np.where(some, lengths, 0)), present_counts


def _list_lengths(
    column: TraitValues, counts: NDArray[np.int64], record: NDArray[np.void]
) -> tuple[list[bytes], NDArray[np.int64]]:
    """Each stripe's lengths of lists, and the number of its words."""
    assert column.lengths is not None
    width = length_bytes(column.trait.length_max)
    record["presence"] |= width << LENGTH_SHIFT
    starts = offsets_of(counts)
    data = column.lengths.astype(f"<u{width}").tobytes()
    return _cut(data, width * starts[:-1], width * counts), np.add.reduceat(
        column.lengths, starts[:-1]
    )


def _texts(
    column: TraitValues, counts: NDArray[np.int64], record: NDArray[np.void]
) -> tuple[list[bytes], NDArray[np.uint64]]:
    """Each stripe's own texts, and the words that index them."""
    assert column.texts is not None
    entries, entry_counts, codes = _numbered(column.words.view(np.int64), counts)
    record["dictionary_count"] = entry_counts
    texts = column.texts.take(pa.array(entries))
    return _text_dictionaries(texts, offsets_of(entry_counts)), codes


def _categories(
    column: TraitValues, counts: NDArray[np.int64], record: NDArray[np.void]
) -> tuple[list[bytes], NDArray[np.uint64]]:
    """Each stripe's own categories, where that saves bytes, and the words that index them."""
    blocks, _ = narrow(column.words, counts)
    pieces = [b""] * len(counts)
    # Next to nothing can be saved where categories take a byte as they are.
    wide = blocks.widths > 1
    if not wide.any():
        return pieces, column.words
    of_wide = np.repeat(wide, counts)
    entries, entry_counts, codes = _numbered(column.words[of_wide].view(np.int64), counts[wide])
    code_bytes = np.array([0, 1, 2, 4])[np.searchsorted([1, 1 << 8, 1 << 16], entry_counts)]
    saves = CATEGORY_BYTES * entry_counts + code_bytes * counts[wide] < blocks.byte_lengths[wide]
    starts = offsets_of(entry_counts)[:-1]
    lengths = CATEGORY_BYTES * np.where(saves, entry_counts, 0)
    chosen = _cut(entries.astype("<i8").tobytes(), CATEGORY_BYTES * starts, lengths)
    places = np.flatnonzero(wide).tolist()
    for place, piece in zip(places, chosen, strict=True):
        pieces[place] = piece
    record["dictionary_count"][wide] = np.where(saves, entry_counts, 0)
    words = column.words.copy()
    words[of_wide] = np.where(np.repeat(saves, counts[wide]), codes, words[of_wide])
    return pieces, words


def _numbered(
    values: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Numbers each stripe's distinct values, ascending.

    Returns the distinct values, one stripe's behind the other's; how many each stripe has; and
    each value's number in its stripe.
    """
    stripe = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort([values, stripe])
    ascending, owner = values[order], stripe[order]
    is_new = np.ones(len(values), np.bool_)
    is_new[1:] = (ascending[1:] != ascending[:-1]) | (owner[1:] != owner[:-1])
    entry_counts = np.bincount(owner[is_new], minlength=len(counts))
    place = np.empty(len(values), np.int64)
    place[order] = np.cumsum(is_new) - 1
    numbers = place - offsets_of(entry_counts)[:-1][stripe]
    return ascending[is_new], entry_counts, numbers.astype(np.uint64)


def _text_dictionaries(texts: pa.Array, starts: NDArray[np.int64]) -> list[bytes]:
    # Each dictionary: u32 end of every text, then the texts' UTF-8.
    counts = np.diff(starts)
    lengths = pc.binary_length(texts).to_numpy()
    offsets = offsets_of(lengths)
    ends = (offsets[1:] - np.repeat(offsets[starts[:-1]], counts)).astype("<u4").tobytes()
    utf8 = _utf8(texts)
    first, last = offsets[starts[:-1]], offsets[starts[1:]]
    heads = _cut(ends, 4 * starts[:-1], 4 * counts)
    bodies = _cut(utf8, first, last - first)
    return [head + body for head, body in zip(heads, bodies, strict=True)]


def _utf8(texts: pa.Array) -> bytes:
    """The texts of an array without nulls, one after the other."""
    if not len(texts):
        return b""
    _, ends, data = texts.buffers()
    first, last = np.frombuffer(ends, np.int64)[[texts.offset, texts.offset + len(texts)]].tolist()
    return bytes(memoryview(data)[first:last]) if data is not None else b""


def decode_stripes(
    stripes: Sequence[bytes], counts: NDArray[np.int64], trait: Trait, native: _native.Trait
) -> TraitValues:
    """Decodes one trait of whole stripes; the inverse of `encode_stripes`.

    Args:
        stripes: Stripes of the trait's group.
        counts: Events of each stripe, as its directory states them.
        trait: The trait.
        native: The same trait, from `Schema.native_traits`.

    Raises:
        StoreCorruptError: A stripe contradicts itself or its count.
    """
    words, presence, text, ends, lengths = _native.decode_stripes(list(stripes), counts, native)
    texts = None
    if trait.type is TraitType.STRING:
        texts = pa.LargeStringArray.from_buffers(
            len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(text)
        )
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise StoreCorruptError("A stripe has a text that is not UTF-8.") from error
    present = presence.view(np.bool_) if trait.nullable else None
    return TraitValues(trait, words, present, texts, lengths if trait.length_max else None)
