"""The shards of users, and parts of rows by the same hash: XXH3 over arrays of 64-bit integers.

Source: the XXH3 specification (Cyan4973/xxHash, doc/xxhash_spec.md), inputs of 4 to 8 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "PARTS_MAX",
    "PART_KEY",
    "SHARDS_MAX",
    "check_parts",
    "part_folder",
    "shard_of",
    "xxh3",
    "xxh3_of",
]

SHARDS_MAX = 65_536
"""Most shards of a store, whose number is a power of two."""
PARTS_MAX = 4_096
"""Most parts of thin rows, whose number is a power of two."""
PART_KEY = "part"
"""Hive key of a part, and column of tables that are partitioned by it."""

_FLIP = 0x1CAD21F72C81017C ^ 0xDB979083E96DD4DE  # bytes 8..24 of XXH3's secret
_PRIME = 0x9FB21C651E98DF25
_BITFLIP = np.uint64(_FLIP)
_PRIME_MX2 = np.uint64(_PRIME)
_UINT64_MAX = (1 << 64) - 1


def xxh3(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """XXH3 (64 bits, seed 0) of each value's eight little-endian bytes. Same shape, uint64."""
    keyed = (values >> np.uint64(32)) + (values << np.uint64(32))
    keyed ^= _BITFLIP
    keyed ^= _rotated_left(keyed, 49) ^ _rotated_left(keyed, 24)
    keyed *= _PRIME_MX2
    keyed ^= (keyed >> np.uint64(35)) + np.uint64(8)
    keyed *= _PRIME_MX2
    keyed ^= keyed >> np.uint64(28)
    return keyed


def _rotated_left(values: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    return (values << np.uint64(bits)) | (values >> np.uint64(64 - bits))


def xxh3_of(value: int) -> int:
    """XXH3 (64 bits, seed 0) of one value's eight little-endian bytes, as `xxh3` of an array."""
    value &= _UINT64_MAX
    keyed = (value >> 32 | value << 32) & _UINT64_MAX ^ _FLIP
    keyed ^= (keyed << 49 | keyed >> 15) & _UINT64_MAX ^ (keyed << 24 | keyed >> 40) & _UINT64_MAX
    keyed = keyed * _PRIME & _UINT64_MAX
    keyed ^= (keyed >> 35) + 8
    keyed = keyed * _PRIME & _UINT64_MAX
    return keyed ^ keyed >> 28


def shard_of(user_ids: NDArray[np.int64], shards: int) -> NDArray[np.int64]:
    """The shard of each user: XXH3 of the id's eight little-endian bytes, modulo ``shards``."""
    hashed: NDArray[np.uint64] = xxh3(user_ids.astype(np.int64, copy=False).view(np.uint64))
    return (hashed % np.uint64(shards)).astype(np.int64)


def check_parts(parts: int, name: str, shards: int | None = None) -> None:
    """Checks a number of parts of thin rows, of which each lies in few shards.

    Args:
        parts: The number; 0 for rows without parts.
        name: Name of the setting, for errors.
        shards: Shards of the store; None if they are not known.

    Raises:
        UsageError: It is no power of two, or exceeds PARTS_MAX or the shards.
    """
    if parts and (parts < 0 or parts & (parts - 1) or parts > PARTS_MAX):
        raise UsageError(f"{name} is {parts}; give a power of two up to {PARTS_MAX:,}.")
    if parts and shards is not None and shards % parts:
        raise UsageError(
            f"{name} is {parts}, but must divide the store's {shards:,} shards; give a power of "
            f"two that does."
        )


def part_folder(part: int) -> str:
    """Returns the name of the folder of a part."""
    return f"{PART_KEY}={part:04d}"
