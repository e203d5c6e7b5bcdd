"""The layout of the tensors of batches in one allocation."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from thinrow.client.torch.batch import TensorBatch
from thinrow.client.torch.tensor_memory import carve, plain_memory
from thinrow.core.runs import offsets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from thinrow.core.wire.widen import ColumnKind
    from torch import Tensor

__all__ = ["BatchExamples", "lay_out"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchExamples:
    """The examples of a batch, without the values of their events. Arrays are copied."""

    lengths: NDArray[np.int64]
    """Shape (examples,): events of each example."""

    statuses: NDArray[np.uint8]
    """Shape (examples,)."""

    example_ids: NDArray[np.int64]
    """Shape (examples,)."""

    columns: Mapping[str, NDArray[Any] | list[Any]]
    """Other columns by name, arrays or lists of shape (examples,)."""

    generation: int
    """See TensorBatch."""

    watermark_ts: int
    """See TensorBatch."""

    list_offsets: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """Offsets by trait of lists, shape (events + 1,)."""


def lay_out(
    kinds: Mapping[str, ColumnKind],
    batches: Sequence[BatchExamples],
    *,
    integer_dtype: torch.dtype = torch.int64,
    uint64_dtype: torch.dtype | None = None,
    allocate: Callable[[int], Tensor] = plain_memory,
) -> list[TensorBatch]:
    """Returns batches whose `values` and `present` are not written yet; see Answer.write.

    All tensors lie in one allocation, batch after batch, so that one copy moves a batch. Traits of
    one dtype are consecutive in the order of `kinds`, scalars before vectors.

    Args:
        kinds: Kinds of the traits, as from Answer.joint_kinds.
        batches: Examples of the batches.
        integer_dtype: int32 or int64, for every trait of integers except times and an `event_id`
            that is no text, which are int64.
        uint64_dtype: torch.uint64 for traits of uint64; None for `integer_dtype`.
        allocate: Returns memory of a size in bytes: uint8.
    """

    def dtype_of(trait: str, kind: ColumnKind) -> torch.dtype:
        if trait.endswith("_ts"):
            return torch.int64
        if kind.dtype.kind not in "iu":
            return to_torch(kind.dtype)
        if kind.dtype == np.uint64 and uint64_dtype is not None:
            return uint64_dtype
        return torch.int64 if trait == "event_id" and not kind.text else integer_dtype

    dtypes = {trait: dtype_of(trait, kind) for trait, kind in kinds.items()}
    traits = sorted(kinds, key=lambda trait: (str(dtypes[trait]), bool(kinds[trait].shape)))
    nullable = [trait for trait, kind in kinds.items() if kind.nullable]
    texts = [trait for trait, kind in kinds.items() if kind.text]
    filled = frozenset(trait for trait, kind in kinds.items() if kind.filled)
    given: list[list[NDArray[Any]]] = []
    parts: list[list[tuple[torch.dtype, tuple[int, ...]]]] = []
    for batch in batches:
        lists, offsets = batch.list_offsets, offsets_of(batch.lengths)
        numbers = [of for of in batch.columns.values() if isinstance(of, np.ndarray)]
        given.append([offsets, *lists.values(), batch.example_ids, batch.statuses, *numbers])
        events = int(offsets[-1])
        of_batch = [
            (dtypes[trait], (int(lists[trait][-1]) if trait in lists else events, *kind.shape))
            for trait, kind in ((trait, kinds[trait]) for trait in traits)
        ]
        of_batch += [(torch.bool, (events,)) for _ in nullable]
        of_batch += [(to_torch(array.dtype), array.shape) for array in given[-1]]
        parts.append(of_batch)
    made = []
    for batch, arrays, tensors in zip(batches, given, carve(parts, allocate), strict=True):
        small = tensors[len(traits) + len(nullable) :]
        for tensor, array in zip(small, arrays, strict=True):
            tensor.numpy()[:] = array
        lists = batch.list_offsets
        example_ids, statuses, *rest = small[1 + len(lists) :]
        values, number = dict(zip(traits, tensors, strict=False)), iter(rest)
        made.append(
            TensorBatch(
                offsets=small[0],
                example_ids=example_ids,
                statuses=statuses,
                values={trait: values[trait] for trait in kinds},
                present=dict(zip(nullable, tensors[len(traits) :], strict=False)),
                strings={trait: [] for trait in texts},
                columns={
                    name: next(number) if isinstance(of, np.ndarray) else of
                    for name, of in batch.columns.items()
                },
                max_seqlen=int(batch.lengths.max(initial=0)),
                generation=batch.generation,
                watermark_ts=batch.watermark_ts,
                list_offsets=dict(zip(lists, small[1:], strict=False)),
                list_lengths_max={
                    trait: int(np.diff(of).max(initial=0)) for trait, of in lists.items()
                },
                filled=filled,
            )
        )
    return made


@cache
def to_torch(dtype: np.dtype[Any]) -> torch.dtype:
    """Returns the torch dtype of a numpy dtype."""
    return torch.from_numpy(np.empty(0, dtype)).dtype
