"""The digest of a shard's stream of keys and values, by which two engines compare what they wrote.

A shard written whole has XXH3 (128 bits) over its pairs in the order of keys: the key, the length
of the value as four little-endian bytes, and the value. A layer continues the shard below it: its
digest is over the 16 bytes of the digest below, and then the pairs that the layer changes, in the
order of keys; a pair that it removes has the length 2^32 - 1 and no value. A layer that changes
nothing has the digest below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KeyValueDigest", "stream_digest"]

_REMOVED = b"\xff\xff\xff\xff"


class KeyValueDigest:
    """The digest of pairs that are given in the order of keys.

    Args:
        below: Digest of the shard below, hexadecimal; None for a shard that is written whole.
    """

    def __init__(self, below: str | None = None) -> None:
        self._hasher = xxhash.xxh3_128()
        self._below: str | None = None
        if below is not None:
            self._below = below
            self._hasher.update(bytes.fromhex(below))

    def add(self, key: bytes, value: bytes | None) -> None:
        """Adds one pair; None for one that is removed."""
        self._below = None
        update = self._hasher.update
        update(key)
        if value is None:
            update(_REMOVED)
        else:
            update(len(value).to_bytes(4, "little"))
            update(value)

    def hexdigest(self) -> str:
        """Returns the digest of what was added so far."""
        return self._hasher.hexdigest() if self._below is None else self._below


def stream_digest(pairs: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the digest of a shard's pairs, as one that is written whole has it."""
    digest = KeyValueDigest()
    for key, value in pairs:
        digest.add(key, value)
    return digest.hexdigest()
