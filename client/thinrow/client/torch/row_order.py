"""Seeded orders of rows, the same with every release of numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["mixed", "shuffled"]


def shuffled(values: NDArray[np.int64], *salts: int) -> NDArray[np.int64]:
    """Returns values in an order that depends on the salts."""
    return values[np.argsort(mixed(np.arange(len(values)), *salts), kind="stable")]


def mixed(values: NDArray[np.int64], *salts: int) -> NDArray[np.uint64]:
    """Maps values to 64 bits, one to one, so that two users never collide."""
    words = values.astype(np.int64).view(np.uint64)
    for salt in salts:
        words = scatter(words ^ scatter(np.array([salt % (1 << 64)], np.uint64)))
    return words


def scatter(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies SplitMix64: a step of its sequence and its finalizer."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
