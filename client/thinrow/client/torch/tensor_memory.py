"""Tensors that share one piece of memory."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = ["carve", "joined", "move_together", "plain_memory"]

ALIGNMENT_BYTES = 64


def plain_memory(size_bytes: int) -> Tensor:
    """Allocates host memory: uint8, shape (size_bytes,)."""
    return torch.empty(size_bytes, dtype=torch.uint8)


def carve(
    batches: Sequence[Sequence[tuple[torch.dtype, tuple[int, ...]]]],
    allocate: Callable[[int], Tensor],
) -> list[list[Tensor]]:
    """Cuts one allocation into the tensors of each batch, one batch after the other.

    Neighbours of one dtype within a batch have no gap between them.
    """
    # By dtype: sizes of gaps and tensors in turn, in elements, and the end of the last one.
    sizes: dict[torch.dtype, list[int]] = {}
    ends: dict[torch.dtype, int] = {}
    end = 0
    for parts in batches:
        before = None
        for dtype, shape in parts:
            if dtype != before:
                end = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
            item_bytes, count = dtype.itemsize, math.prod(shape)
            gap_bytes = end - ends.get(dtype, 0)
            sizes.setdefault(dtype, []).extend((gap_bytes // item_bytes, count))
            end += count * item_bytes
            ends[dtype] = end
            before = dtype
    memory = allocate(-(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
    # Calls into torch cost more than the rest of a small batch: these are two for each dtype.
    pieces = {}
    for dtype, of_dtype in sizes.items():
        rest = (memory.nbytes - ends[dtype]) // dtype.itemsize
        pieces[dtype] = iter(memory.view(dtype).split_with_sizes([*of_dtype, rest])[1::2])
    return [
        [
            next(pieces[dtype]) if len(shape) == 1 else next(pieces[dtype]).view(shape)
            for dtype, shape in parts
        ]
        for parts in batches
    ]


def move_together(tensors: Sequence[Tensor], move: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Moves tensors; those that share memory move in one piece, and share it afterwards, too."""
    tensors = [tensor.contiguous() for tensor in tensors]
    spans: dict[int, tuple[Tensor, int, int]] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage().data_ptr()
        start = place(tensor)
        end = start + tensor.nbytes
        _, first, last = spans.get(storage, (tensor, start, end))
        spans[storage] = (
            tensor,
            min(first, start) // ALIGNMENT_BYTES * ALIGNMENT_BYTES,
            max(last, end),
        )
    moved = {
        storage: move(as_bytes(tensor, start, end))
        for storage, (tensor, start, end) in spans.items()
    }
    result = []
    for tensor in tensors:
        storage = tensor.untyped_storage().data_ptr()
        start = place(tensor) - spans[storage][1]
        memory = moved[storage][start : start + tensor.nbytes]
        result.append(memory.view(tensor.dtype).view(tensor.shape))
    return result


def place(tensor: Tensor) -> int:
    """Returns the number of bytes before a tensor in its memory."""
    return int(tensor.storage_offset()) * tensor.itemsize


def as_bytes(tensor: Tensor, start: int, end: int) -> Tensor:
    """Views the bytes [start, end) of the memory in which a tensor lies."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
        storage, start, (end - start,), (1,)
    )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenates flat tensors of one dtype, without a copy if they are consecutive in memory."""
    memory = parts[0].untyped_storage().data_ptr()
    ends = itertools.accumulate((part.nbytes for part in parts), initial=place(parts[0]))
    for part, end in zip(parts, ends, strict=False):
        follows = part.untyped_storage().data_ptr() == memory and place(part) == end
        if not (follows and part.is_contiguous()):
            return torch.cat(list(parts))
    return parts[0].as_strided((sum(map(len, parts)),), (1,))
