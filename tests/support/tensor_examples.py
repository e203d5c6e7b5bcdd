"""Examples of tensor batches, by their request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from support.thin_rows import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from thinrow.client.torch import TensorBatch


def by_request(batches: Iterable[TensorBatch]) -> dict[str, Any]:
    """Example of each request: its own slices of the tensors, byte by byte, and its texts."""
    found: dict[str, Any] = {}
    for batch in batches:
        ends = batch.offsets.tolist()
        for n, (_, status, traits, columns) in enumerate(shown(batch)):
            slices = {
                trait: (values.dtype, values[ends[n] : ends[n + 1]].numpy().tobytes())
                for trait, values in batch.values.items()
                if trait not in batch.strings and trait not in batch.list_offsets
            }
            kinds = {
                name: column.dtype
                for name, column in batch.columns.items()
                if isinstance(column, torch.Tensor)
            }
            request_id = columns["request_id"]
            assert request_id not in found, "a row came twice"
            # By its text, so that nan is equal to nan.
            found[request_id] = (status, slices, repr((traits, columns)), kinds)
    return found
