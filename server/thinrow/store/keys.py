"""Keys of a shard: big-endian user (8 bytes), group (1), stripe (4); so a user's data is one run.

Users sort as unsigned numbers, as their bytes do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KEY_BYTES", "USER_BYTES", "group_and_stripe", "pack_keys"]

KEY_BYTES = 13
USER_BYTES = 8


def pack_keys(
    user_ids: NDArray[np.int64],
    groups: NDArray[np.int64] | int,
    stripes: NDArray[np.int64] | int,
) -> list[bytes]:
    """Keys of (user, group, stripe), element by element."""
    matrix = np.empty((len(user_ids), KEY_BYTES), dtype=np.uint8)
    matrix[:, :8] = user_ids.astype(">i8").view(np.uint8).reshape(-1, 8)
    matrix[:, 8] = groups
    numbers = np.broadcast_to(np.asarray(stripes, dtype=">u4"), len(user_ids))
    matrix[:, 9:] = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, 4)
    data = matrix.tobytes()
    return [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]


def group_and_stripe(key: bytes) -> tuple[int, int]:
    """The group and the stripe number of a key."""
    return key[8], int.from_bytes(key[9:], "big")
