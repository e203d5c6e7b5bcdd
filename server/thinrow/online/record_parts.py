"""Parts of a record that follow its fixed fields: a text, or a list, of any size.

A text is its bytes; its field has their number. The field of a list has the number of elements, and
the list is its elements' words; a list of texts, the sizes of the texts, four bytes each, and then
the texts.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.pointers import MutableColumn
from thinrow.core.runs import offsets_of
from thinrow.schema import Trait, TraitType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["TEXT_SIZE_BYTES", "decoded_parts", "encoded_parts", "has_part", "part_bytes"]

TEXT_SIZE_BYTES = 4
"""Bytes of the size of each text in a list."""


def has_part(trait: Trait) -> bool:
    """Returns True if a record holds the trait's value after its fixed fields."""
    return trait.length_max > 0 or trait.type is TraitType.STRING


def part_bytes(trait: Trait) -> int:
    """Returns the bytes that an element of a list takes, the bytes of a text aside."""
    if trait.type is TraitType.STRING:
        return TEXT_SIZE_BYTES
    return trait.type.word_dtype.itemsize


def encoded_parts(
    trait: Trait, column: MutableColumn
) -> tuple[NDArray[np.int64] | list[int], list[bytes]]:
    """Returns the fields and the parts of some events.

    Args:
        trait: A text or a list.
        column: Its values; absent texts are empty.
    """
    if column.offsets is None:
        texts = [text.encode() for text in column.values.tolist()]
        return [len(text) for text in texts], texts
    bounds = list(pairwise(column.offsets.tolist()))
    lengths = np.diff(column.offsets)
    if trait.type is not TraitType.STRING:
        size = part_bytes(trait)
        words = column.values.view(trait.type.word_dtype)
        data = words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
        return lengths, [data[size * first : size * last] for first, last in bounds]
    # A text that many lists have is encoded once.
    once: dict[str, bytes] = {text: text.encode() for text in set(column.values.tolist())}
    texts = [once[text] for text in column.values.tolist()]
    sizes = np.array([len(text) for text in texts], "<u4").tobytes()
    size = TEXT_SIZE_BYTES
    return lengths, [
        b"".join((sizes[size * first : size * last], *texts[first:last])) for first, last in bounds
    ]


def decoded_parts(
    trait: Trait, fields: NDArray[Any], records: Sequence[bytes], places: list[int]
) -> MutableColumn:
    """Returns the values of some records; the inverse of `encoded_parts`.

    Args:
        trait: A text or a list.
        fields: The fields of the records.
        records: The records.
        places: Place of the trait's part in each record; moved to the place of the next one.
    """
    if not trait.length_max:
        return MutableColumn(_texts([_cut(*each) for each in _walk(fields, records, places)]))
    if trait.type is not TraitType.STRING:
        size = part_bytes(trait)
        parts = [_cut(*each) for each in _walk(size * fields.astype(np.int64), records, places)]
        words = np.frombuffer(b"".join(parts), trait.type.word_dtype.newbyteorder("<"))
        values = words.astype(trait.type.word_dtype).view(trait.type.value_dtype)
        return MutableColumn(values, None, offsets_of(fields))
    texts: list[bytes] = []
    for row, length in enumerate(fields.tolist()):
        at = places[row]
        sizes = struct.unpack_from(f"<{length}I", records[row], at)
        at += TEXT_SIZE_BYTES * length
        for size in sizes:
            texts.append(records[row][at : at + size])
            at += size
        places[row] = at
    return MutableColumn(_texts(texts), None, offsets_of(fields))


def _walk(
    sizes: NDArray[Any], records: Sequence[bytes], places: list[int]
) -> list[tuple[bytes, int, int]]:
    """Returns each record and the bounds of a part, whose place is moved to its end."""
    found = []
    for row, size in enumerate(sizes.tolist()):
        found.append((records[row], places[row], places[row] + size))
        places[row] += size
    return found


def _cut(record: bytes, first: int, last: int) -> bytes:
    return record[first:last]


def _texts(parts: Sequence[bytes]) -> NDArray[Any]:
    values = np.empty(len(parts), object)
    values[:] = [part.decode() for part in parts]
    return values
