"""Batches of tensors whose every value names the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.client.torch.layout import BatchExamples, lay_out
from thinrow.core.wire.widen import ColumnKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.client.torch.batch import TensorBatch
    from torch import Tensor


KINDS = {
    trait: ColumnKind(dtype=np.dtype(dtype), shape=shape, text=False, nullable=nullable)
    for trait, dtype, shape, nullable in (
        ("item_id", np.int64, (), False),
        ("rating", np.int8, (), True),
        ("embedding", np.float16, (3,), False),
    )
}


def filled(number: int, events: int, allocate: Callable[[int], Tensor]) -> TensorBatch:
    """A batch whose every value shows which one it is."""
    examples = BatchExamples(
        lengths=np.array([events, 0, 1]),
        statuses=np.full(3, number % 256, np.uint8),
        example_ids=np.full(3, number),
        columns={"user_id": np.full(3, number)},
        generation=1,
        watermark_ts=0,
    )
    [batch] = lay_out(KINDS, [examples], allocate=allocate)
    batch.values["item_id"].fill_(number)
    batch.values["rating"].fill_(number)
    batch.values["embedding"].fill_(number % 100)
    batch.present["rating"].fill_(True)
    return batch
