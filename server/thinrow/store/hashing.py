"""The digest of a history, and fingerprints of files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash
from thinrow.core.shards import xxh3

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile

__all__ = [
    "FINGERPRINT_BYTES",
    "close_digest",
    "content_fingerprint",
    "event_digests",
    "file_fingerprint",
    "fold",
]

BLOCK_BYTES = 1 << 20
FINGERPRINT_BYTES = 1 << 16
"""Bytes at the end of a file that its fingerprint covers."""

_DIGEST_SEED = np.uint64(0x7468696E726F7731)
_STEP = np.uint64(0x9E3779B97F4A7C15)


def event_digests(
    ordinals: NDArray[np.int64], fields: Iterable[NDArray[np.uint64]]
) -> NDArray[np.uint64]:
    """Returns the term that each event adds to the digest of its history.

    Args:
        ordinals: place of each event in its history, from 0; int64, shape (events,).
        fields: the events' fields as words, each uint64 of shape (events,).

    The digest of a history is the sum of these modulo 2^64, closed by :func:`close_digest`. A
    sum, because it can be taken up to any event at once and continued by a later generation;
    with the ordinal inside each term, because order matters.
    """
    state = ordinals.view(np.uint64) * _STEP
    state += _DIGEST_SEED
    for field in fields:
        fold(state, field)
    return xxh3(state)


def fold(state: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Multiplies and folds in place: each word moves every bit of what came before it."""
    state ^= words
    state *= _STEP
    state ^= state >> np.uint64(32)
    return state


def close_digest(sums: NDArray[np.uint64], event_counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Digests as pointers carry them, never 0: uint64 of the shape of ``sums``."""
    closed = xxh3(sums ^ xxh3(event_counts.astype(np.int64).view(np.uint64) ^ _DIGEST_SEED))
    return np.maximum(closed, np.uint64(1))


def content_fingerprint(file: DataFile, name: str) -> str:
    """Returns a name, the keys of a file's Hive folders, and XXH3 of all of its bytes.

    A file that is known by its content already has that fingerprint.
    """
    if file.fingerprint:
        return file.fingerprint
    digest = xxhash.xxh3_128()
    for block in file.blocks(BLOCK_BYTES):
        digest.update(block)
    keys = "".join(f"{key}={value}/" for key, value in file.keys)
    return f"{keys}{name} {digest.hexdigest()}"


def file_fingerprint(file: DataFile, name: str) -> str:
    """Returns a name, a file's size, and XXH3 of its end, where Parquet's footer describes it.

    A file that is known by its content already has that fingerprint.
    """
    if file.fingerprint:
        return file.fingerprint
    size, end = file.end(FINGERPRINT_BYTES)
    return f"{name} {size} {xxhash.xxh3_64_hexdigest(end)}"
