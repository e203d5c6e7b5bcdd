"""Traits that go to the device as narrow as they came over the wire, and are widened there.

A history that several examples share goes once; what the host does not widen it need not write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from thinrow.client.torch.batch import carve, move_together, plain_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray
    from thinrow.core.wire.answer import Answer
    from thinrow.core.wire.kernel import Views
    from thinrow.core.wire.widen import NarrowColumn
    from torch import Tensor

__all__ = ["NarrowRun", "narrow_runs", "widen_on_device"]

WORD_BYTES = 8
SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NarrowTrait(NamedTuple):
    """One trait of a run: blocks of offsets, each with its base."""

    data: Tensor
    """uint8; offsets of one width stand together, from a multiple of 8 bytes on."""
    bases: Tensor
    """int64, shape (blocks,)."""
    widths: Tensor
    """int64, shape (blocks,): bytes per offset, 0 where all are 0."""
    first_bytes: Tensor
    """int64, shape (blocks,): where in `data` each block's offsets begin."""
    widths_used: tuple[int, ...]
    dtype: np.dtype[Any]
    """What the words' lowest bits are."""
    size: int


@dataclass(frozen=True, slots=True)
class NarrowRun:
    """What one response holds of a batch: its events, and some of their traits."""

    events: int
    starts: Tensor
    """int64, shape (views,): first event of each view, counted over the run."""
    lengths: Tensor
    """int64, shape (views,)."""
    places: Tensor
    """int64, shape (views,): where in the batch each view goes."""
    block_ends: Tensor
    """int64, shape (blocks,): events up to the end of each block."""
    traits: dict[str, NarrowTrait]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> NarrowRun:
        """Copies the tensors to a device, those that share memory in one piece."""
        return self._moved(
            move_together(
                self._tensors(), lambda memory: memory.to(device, non_blocking=non_blocking)
            )
        )

    def packed(self, allocate: Callable[[int], Tensor] = plain_memory) -> NarrowRun:
        """Copies the tensors into one piece of memory; `allocate` as in lay_out."""
        tensors = self._tensors()
        packed = carve([(tensor.dtype, tuple(tensor.shape)) for tensor in tensors], allocate)
        for tensor, copy in zip(tensors, packed, strict=True):
            copy.copy_(tensor)
        return self._moved(packed)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        traits = [part for trait in self.traits.values() for part in trait[:4]]
        return [self.starts, self.lengths, self.places, self.block_ends, *traits]

    def _moved(self, tensors: Sequence[Tensor]) -> NarrowRun:
        parts = iter(tensors)
        return replace(
            self,
            starts=next(parts),
            lengths=next(parts),
            places=next(parts),
            block_ends=next(parts),
            traits={
                name: NarrowTrait(next(parts), next(parts), next(parts), next(parts), *trait[4:])
                for name, trait in self.traits.items()
            },
        )


def narrow_runs(answer: Answer, dtypes: Mapping[str, np.dtype[Any]]) -> list[NarrowRun]:
    """Takes an answer's runs as they are, with those of the traits that may stay narrow.

    Mutable events are a run of their own, behind the others.

    dtypes: what the values are to become, by trait. Left out are traits that are nullable, text
        or bool, that index a dictionary, or whose values might not fit: Answer.write has to look at
        each.
    """
    traits = [
        trait
        for trait, dtype in dtypes.items()
        if all(columns[trait].is_plain and columns[trait].fits(dtype) for columns in answer.columns)
    ]
    runs = [to_run(columns, views, traits) for columns, views in answer.by_response()]
    if len(answer.mutable):
        runs.append(to_mutable_run(answer, {trait: dtypes[trait] for trait in traits}))
    return [run for run in runs if run.events and run.traits]


def to_run(columns: Mapping[str, NarrowColumn], views: Views, traits: Sequence[str]) -> NarrowRun:
    """What one response holds."""
    counts = np.zeros(0, np.int64)
    for trait in traits:
        counts = columns[trait].blocks.counts // math.prod(columns[trait].kind.shape)
    return NarrowRun(
        events=int(views.lengths.sum()),
        starts=torch.from_numpy(views.starts),
        lengths=torch.from_numpy(views.lengths),
        places=torch.from_numpy(views.places),
        block_ends=torch.from_numpy(np.cumsum(counts)),
        traits={trait: to_narrow(columns[trait]) for trait in traits},
    )


def to_mutable_run(answer: Answer, dtypes: Mapping[str, np.dtype[Any]]) -> NarrowRun:
    """The mutable events: one block, as wide as its values, without a base."""
    offsets = answer.mutable.offsets
    lengths = np.diff(offsets)
    zero = torch.zeros(1, dtype=torch.int64)
    traits = {}
    for trait, dtype in dtypes.items():
        values = answer.tail(trait).values(dtype)
        data = np.zeros(-(-values.nbytes // WORD_BYTES) * WORD_BYTES, np.uint8)
        data[: values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        width = dtype.itemsize
        size = int(np.prod(values.shape[1:]))
        widths = torch.tensor([width])
        traits[trait] = NarrowTrait(
            torch.from_numpy(data), zero, widths, zero, (width,), dtype, size
        )
    return NarrowRun(
        events=int(lengths.sum()),
        starts=torch.from_numpy(offsets[:-1].copy()),
        lengths=torch.from_numpy(lengths),
        places=torch.from_numpy(np.cumsum(answer.lengths) - lengths),
        block_ends=torch.from_numpy(offsets[-1:].copy()),
        traits=traits,
    )


def to_narrow(column: NarrowColumn) -> NarrowTrait:
    """Puts each width's offsets where a device can read them, and counts where blocks begin."""
    blocks = column.blocks
    widths = blocks.widths.astype(np.int64)
    lengths = widths * blocks.counts
    first_bytes = np.zeros(len(widths), np.int64)
    parts: list[NDArray[np.uint8]] = []
    used = tuple(sorted({int(width) for width in widths if width}))
    before = laid = 0
    for width in used:
        mine = widths == width
        ends = np.cumsum(lengths[mine])
        first_bytes[mine] = laid + ends - lengths[mine]
        size = int(ends[-1])
        padding = -size % WORD_BYTES
        parts += [blocks.data[before : before + size], np.zeros(padding, np.uint8)]
        before += size
        laid += size + padding
    data = np.concatenate([*parts, np.zeros(0, np.uint8)])
    return NarrowTrait(
        data=torch.from_numpy(data),
        bases=torch.from_numpy(blocks.bases),
        widths=torch.from_numpy(widths),
        first_bytes=torch.from_numpy(first_bytes),
        widths_used=used,
        dtype=column.kind.dtype,
        size=math.prod(column.kind.shape),
    )


def widen_on_device(run: NarrowRun, values: Mapping[str, Tensor]) -> None:
    """Writes the run's events to `values`, by trait, shape (events of the batch, …).

    Everything is on one device, which the host does not wait for.
    """
    device = run.starts.device
    view = torch.repeat_interleave(run.lengths, output_size=run.events)
    firsts = run.lengths.cumsum(0) - run.lengths
    within = torch.arange(run.events, device=device) - firsts[view]
    event = run.starts[view] + within
    block = torch.searchsorted(run.block_ends, event, right=True)
    block_starts = torch.cat([run.block_ends.new_zeros(1), run.block_ends[:-1]])
    in_block = event - block_starts[block]
    place = run.places[view] + within
    for name, trait in run.traits.items():
        out = values[name]
        word = in_block.unsqueeze(1) * trait.size + torch.arange(trait.size, device=device)
        width = trait.widths[block].unsqueeze(1)
        first_byte = trait.first_bytes[block].unsqueeze(1)
        total = trait.bases[block].unsqueeze(1).expand(word.shape)
        for bytes_each in trait.widths_used:
            offsets = trait.data.view(SIGNED[bytes_each])
            there = width == bytes_each
            index = torch.where(there, first_byte // bytes_each + word, 0)
            offset = offsets[index].to(torch.int64)
            if bytes_each < WORD_BYTES:
                offset &= (1 << 8 * bytes_each) - 1
            total = total + torch.where(there, offset, 0)
        out[place] = lowest_bits(total, trait.dtype).to(out.dtype).view(-1, *out.shape[1:])


def lowest_bits(words: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """Reads the lowest bits of int64 words as `dtype`; unsigned integers stay int64."""
    bits = 8 * dtype.itemsize
    if dtype.kind == "u":
        return words if bits == 64 else words & ((1 << bits) - 1)
    narrowed = words.to(SIGNED[dtype.itemsize])
    if dtype.kind == "f":
        return narrowed.view(torch.from_numpy(np.empty(0, dtype)).dtype)
    return narrowed
