"""Thin rows against fat rows: the same values into the same tensors, and how fast."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.errors import ThinRowError
from torch.utils.dlpack import from_dlpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from thinrow.demo.recipes import Tenant
    from torch import Tensor

    Tensors = dict[str, Tensor]

__all__ = ["Compared", "compare"]

BATCH_EXAMPLES = 256
ROUNDS = 5
"""Timed passes of each side, in turn, of which the median counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One tenant's fat rows, and the time that either side takes for all examples."""

    tenant: Tenant
    examples: int
    events: int
    fat_bytes: int
    thin_s: float
    fat_s: float


def compare(rows: Path, server: str, fat: Path, tenant: Tenant, label: str) -> Compared:
    """Compares every value of both sides, and then times them in turn.

    Args:
        rows: Thin rows.
        server: Their server.
        fat: The same rows as fat rows of the tenant's length and traits.
        tenant: What is read.
        label: A column that is read beside the histories.

    Raises:
        ThinRowError: A value differs.
    """
    wanted = Projection(tenant.sequence_length, traits=tenant.traits)
    config = LoaderConfig(batch_examples=BATCH_EXAMPLES, columns=(label,))
    files = RowFiles(rows, order="files")
    with ThinRowLoader(files, server, wanted, config, device="cpu") as loader:

        def thin_batches() -> Iterator[Tensors]:
            for batch in loader:
                labels = cast("Tensor", batch.columns[label])
                yield {"offsets": batch.offsets, label: labels, **batch.values}

        examples, events = check_equal(thin_batches(), fat_batches(fat, tenant, label))
        thin_s, fat_s = [], []
        for _ in range(ROUNDS):
            thin_s.append(seconds(thin_batches()))
            fat_s.append(seconds(fat_batches(fat, tenant, label)))
    return Compared(
        tenant=tenant,
        examples=examples,
        events=events,
        fat_bytes=fat.stat().st_size,
        thin_s=median(thin_s),
        fat_s=median(fat_s),
    )


def fat_batches(fat: Path, tenant: Tenant, label: str) -> Iterator[Tensors]:
    """Fat rows in the tensors of the loader: int64 and float32, without a copy where possible."""
    columns = [*tenant.traits, label]
    for batch in pq.ParquetFile(fat).iter_batches(BATCH_EXAMPLES, columns=columns):
        lists = {trait: batch.column(trait) for trait in tenant.traits}
        offsets = tensor(next(iter(lists.values())).offsets)
        values = {trait: tensor(column.flatten()) for trait, column in lists.items()}
        yield {"offsets": offsets - offsets[0], label: tensor(batch.column(label)), **values}


def tensor(column: pa.Array) -> Tensor:
    """A column without nulls; integers become int64."""
    if pa.types.is_integer(column.type) and column.type != pa.int64():
        return torch.from_numpy(column.to_numpy().astype(np.int64))
    return from_dlpack(column)


def check_equal(thin: Iterable[Tensors], fat: Iterable[Tensors]) -> tuple[int, int]:
    """Compares all tensors; returns the number of examples and of events.

    Raises:
        ThinRowError: A value differs.
    """
    examples = events = 0
    for ours, theirs in zip(thin, fat, strict=True):
        for name, values in theirs.items():
            if not torch.equal(ours[name], values):
                raise ThinRowError(
                    f"Thin and fat rows differ in {name}, in examples {examples} to "
                    f"{examples + len(theirs['offsets']) - 2}; report this as a bug."
                )
        examples += len(theirs["offsets"]) - 1
        events += int(theirs["offsets"][-1])
    return examples, events


def seconds(batches: Iterator[Tensors]) -> float:
    """Time to take all batches, as a trainer that does nothing would."""
    started = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - started
