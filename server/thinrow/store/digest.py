"""The words of an event that enter the digest of its history (semantics.md, Pointer)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

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
        if values.trait.nullable:
            present = values.present
            if present is None:
                present = np.ones(len(words) // values.trait.size, dtype=np.bool_)
            fields.append(present.astype(np.uint64))
            spread = np.zeros(len(present) * values.trait.size, dtype=np.uint64)
            spread[np.repeat(present, values.trait.size)] = words
            words = spread
        fields += list(words.reshape(-1, values.trait.size).T)
    return fields


def _canonical(values: TraitValues) -> NDArray[np.uint64]:
    """Words that mean the same whatever dictionary a stripe happens to have."""
    if values.texts is None:
        return values.words
    hashes = [xxhash.xxh3_64_intdigest(text.encode()) for text in values.texts.to_pylist()]
    return np.array(hashes, dtype=np.uint64)[values.words]
