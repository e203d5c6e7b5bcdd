"""Frame of reference: blocks of 64-bit words as a base and narrow offsets.

A column of words is cut into blocks. Word j of a block is ``base + offset[j]`` modulo 2^64, each
block's offsets taking the narrowest of 0, 1, 2, 4 or 8 bytes. Byte-aligned, so that a slice of a
block is a slice of its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.runs import offsets_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "WIDTHS",
    "NarrowBlocks",
    "narrow",
]

WIDTHS = (1, 2, 4, 8)
"""Bytes per offset of blocks that have offsets at all."""


@dataclass(frozen=True, slots=True)
class NarrowBlocks:
    """Blocks of one column, wherever their bytes lie."""

    bases: NDArray[np.int64]
    """Shape (blocks,)."""
    widths: NDArray[np.uint8]
    """Bytes per offset, shape (blocks,)."""
    counts: NDArray[np.int64]
    """Words, shape (blocks,)."""
    starts: NDArray[np.int64]
    """Position of each block's offsets in the buffer, bytes, shape (blocks,)."""

    @property
    def byte_lengths(self) -> NDArray[np.int64]:
        """Bytes of each block's offsets; shape (blocks,)."""
        return self.counts * self.widths


def narrow(
    words: NDArray[np.uint64], counts: NDArray[np.int64]
) -> tuple[NarrowBlocks, NDArray[np.uint8]]:
    """Encodes blocks of ``counts`` words each; their bytes lie in block order."""
    bases = np.zeros(len(counts), dtype=np.int64)
    widths = np.zeros(len(counts), dtype=np.uint8)
    full = counts > 0
    if full.any():
        signed = words.view(np.int64)
        starts = offsets_of(counts)[:-1][full]
        lowest = np.minimum.reduceat(signed, starts)
        span = np.maximum.reduceat(signed, starts).view(np.uint64) - lowest.view(np.uint64)
        bases[full] = lowest
        widths[full] = np.select(
            [span == 0, span < 1 << 8, span < 1 << 16, span < 1 << 32], [0, 1, 2, 4], 8
        )
    lengths = counts * widths
    blocks = NarrowBlocks(bases, widths, counts, offsets_of(lengths)[:-1])
    data = np.empty(int(lengths.sum()), dtype=np.uint8)
    offsets = words - np.repeat(bases.view(np.uint64), counts)
    for width in WIDTHS:
        of_width = widths == width
        if of_width.any():
            chosen = offsets if of_width.all() else offsets[np.repeat(of_width, counts)]
            data[np.repeat(of_width, lengths)] = chosen.astype(f"<u{width}").view(np.uint8)
    return blocks, data
