"""Codes of values for embeddings: 0 for absent and padding, 1 for unknown, and others from 2 on.

With buckets, the code of a text is 2 + hash % buckets, where the hash is BLAKE2b with a digest of 8
bytes (RFC 7693) of the text in UTF-8, read as a little-endian integer. With a vocabulary, the store
numbers the values that it has.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "ABSENT_CODE",
    "BUCKETS_MAX",
    "FIRST_CODE",
    "UNKNOWN_CODE",
    "VALUES_MAX",
    "VALUES_MAX_DEFAULT",
    "VALUES_PER_REQUEST_MAX",
    "bucket_codes",
    "require_codes",
    "text_hash",
]

ABSENT_CODE, UNKNOWN_CODE = 0, 1
FIRST_CODE = 2
"""The first code of a text."""
BUCKETS_MAX = (1 << 31) - 1 - FIRST_CODE
"""Limit on the buckets of a trait, whose codes are int32."""
VALUES_MAX = 1 << 28
"""Limit on the limit that a schema gives the vocabulary of a trait."""
VALUES_MAX_DEFAULT = 1 << 20
"""Limit on the values of a vocabulary where the schema gives none."""
VALUES_PER_REQUEST_MAX = 1 << 14
"""Limit on the values whose codes one request looks up."""


def bucket_codes(texts: Sequence[str], buckets: int) -> NDArray[np.int32]:
    """Returns the code of each text; shape (texts,)."""
    known: dict[str, int] = {}
    codes = [known[text] if text in known else _code(text, buckets, known) for text in texts]
    return np.array(codes, np.int32)


def _code(text: str, buckets: int, known: dict[str, int]) -> int:
    code = known[text] = FIRST_CODE + text_hash(text) % buckets
    return code


def text_hash(text: str) -> int:
    """Returns the hash of a text, unsigned, 64 bits."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def require_codes(codes: NDArray[np.int32], buckets: int) -> None:
    """Rejects integers that are no codes.

    Raises:
        ValueError: An integer lies outside of [0, buckets + 2).
    """
    wrong = (codes < 0) | (codes >= buckets + FIRST_CODE)
    if wrong.any():
        raise ValueError(
            f"{codes[wrong][0]} is no code of {buckets} buckets, which integers must be; write ids "
            f"as text to have them hashed"
        )
