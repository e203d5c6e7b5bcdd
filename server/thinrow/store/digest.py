"""The words of an event that enter the digest of its history (semantics.md, Pointer)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash
from thinrow.core.runs import offsets_of
from thinrow.store.hashing import fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from thinrow.store.stripe import TraitValues

__all__ = ["digest_fields"]


def digest_fields(
    visible_ts: TraitValues,
    event_ts: TraitValues,
    event_id: TraitValues,
    key_traits: Sequence[TraitValues],
) -> list[NDArray[np.uint64]]:
    """Fields for :func:`~thinrow.store.hashing.event_digests`, each uint64 of shape (events,)."""
    fields = [visible_ts.words, event_ts.words]
    for values in (event_id, *key_traits):
        words = _canonical(values)
        if values.lengths is not None:
            words = _list_words(words, values.lengths)
        if values.trait.nullable:
            present = values.present
            if present is None:
                present = np.ones(len(words) // values.trait.size, dtype=np.bool_)
            fields.append(present.astype(np.uint64))
            if values.lengths is None:
                spread = np.zeros(len(present) * values.trait.size, dtype=np.uint64)
                spread[np.repeat(present, values.trait.size)] = words
                words = spread
        fields += list(words.reshape(-1, values.trait.size).T)
    return fields


def _list_words(words: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One word of each event's list, which depends on its length and on every element."""
    made, starts = lengths.astype(np.uint64), offsets_of(lengths)[:-1]
    longer = np.arange(len(lengths))
    for place in range(int(lengths.max(initial=0))):
        longer = longer[lengths[longer] > place]
        made[longer] = fold(made[longer], words[starts[longer] + place])
    return made


def _canonical(values: TraitValues) -> NDArray[np.uint64]:
    """Words that mean the same whatever dictionary a stripe happens to have."""
    if values.texts is None:
        return values.words
    texts = values.texts.cast(pa.large_binary()).to_pylist()
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, len(texts))
    return hashes[values.words]
