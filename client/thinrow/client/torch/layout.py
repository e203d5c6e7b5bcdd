"""The layout of a batch's tensors in one allocation."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from thinrow.client.torch.batch import TensorBatch
from thinrow.client.torch.tensor_memory import carve, plain_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from thinrow.core.wire.widen import ColumnKind
    from torch import Tensor

__all__ = ["lay_out"]


def lay_out(
    kinds: Mapping[str, ColumnKind],
    lengths: NDArray[np.int64],
    list_offsets: Mapping[str, NDArray[np.int64]] | None = None,
    *,
    statuses: NDArray[np.uint8],
    example_ids: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any] | list[Any]],
    generation: int,
    watermark_ts: int,
    integer_dtype: torch.dtype = torch.int64,
    uint64_dtype: torch.dtype | None = None,
    allocate: Callable[[int], Tensor] = plain_memory,
) -> TensorBatch:
    """Returns a batch whose `values` and `present` are not written yet; see Answer.write.

    All its tensors lie in one allocation, so that one copy moves it. Traits of one dtype are
    consecutive in the order of `kinds`, scalars before vectors.

    Args:
        kinds: Kinds of the traits, as from Answer.joint_kinds.
        lengths: Shape (examples,): events of each example.
        list_offsets: By trait of lists, shape (events + 1,); copied.
        statuses: Shape (examples,); copied, as the next two.
        example_ids: Shape (examples,).
        columns: Other columns by name, arrays or lists of shape (examples,).
        generation: See TensorBatch.
        watermark_ts: See TensorBatch.
        integer_dtype: int32 or int64, for every trait of integers except times and an `event_id`
            that is no text, which are int64.
        uint64_dtype: torch.uint64 for traits of uint64; None for `integer_dtype`.
        allocate: Returns memory of a size in bytes: uint8.
    """
    events = int(lengths.sum())

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
    numbers = {name: of for name, of in columns.items() if isinstance(of, np.ndarray)}
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    lists = {trait: list_offsets[trait] for trait in kinds if kinds[trait].listed and list_offsets}
    given = [offsets, *lists.values(), example_ids, statuses, *numbers.values()]
    counts = {trait: int(of[-1]) for trait, of in lists.items()}
    tensors = iter(
        carve(
            [
                *(
                    (dtypes[trait], (counts.get(trait, events), *kinds[trait].shape))
                    for trait in traits
                ),
                *((torch.bool, (events,)) for _ in nullable),
                *((to_torch(array.dtype), array.shape) for array in given),
            ],
            allocate,
        )
    )
    values = {trait: next(tensors) for trait in traits}
    present = {trait: next(tensors) for trait in nullable}
    small = list(tensors)
    for tensor, array in zip(small, given, strict=True):
        tensor.numpy()[:] = array
    rest = small[1 + len(lists) :]
    by_name = dict(zip(numbers, rest[2:], strict=True))
    return TensorBatch(
        offsets=small[0],
        example_ids=rest[0],
        statuses=rest[1],
        values={trait: values[trait] for trait in kinds},
        present=present,
        strings={trait: [] for trait, kind in kinds.items() if kind.text},
        columns={
            name: by_name[name] if isinstance(of, np.ndarray) else of
            for name, of in columns.items()
        },
        max_seqlen=int(lengths.max(initial=0)),
        generation=generation,
        watermark_ts=watermark_ts,
        list_offsets=dict(zip(lists, small[1:], strict=False)),
        list_lengths_max={trait: int(np.diff(of).max(initial=0)) for trait, of in lists.items()},
        filled=frozenset(trait for trait, kind in kinds.items() if kind.filled),
    )


@cache
def to_torch(dtype: np.dtype[Any]) -> torch.dtype:
    """Returns the torch dtype of a numpy dtype."""
    return torch.from_numpy(np.empty(0, dtype)).dtype
