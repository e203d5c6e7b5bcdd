"""A batch of histories as jagged arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.errors import ThinRowError
from thinrow.v1.materialization_pb2 import STATUS_OK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The histories of some examples, oldest event first: jagged arrays, one per trait.

    Example i has the events [offsets[i], offsets[i + 1]) of every trait; none where its status
    is not STATUS_OK.
    """

    statuses: NDArray[np.uint8]
    """Shape (examples,): numbers of thinrow.v1.Status."""

    offsets: NDArray[np.int64]
    """Shape (examples + 1,), ascending from 0 to the number of events."""

    values: dict[str, NDArray[Any]]
    """By trait, shape (events,), or (events, size) for a vector. Integers, floats and bools in
    their own dtype, categorical traits int64, text int32 codes into `strings`. 0 where absent."""

    present: dict[str, NDArray[np.bool_]]
    """By nullable trait, shape (events,): False where the event lacks it."""

    strings: dict[str, list[str]]
    """By text trait: the texts that its codes index. May repeat one."""

    generation: int
    """Number of the generation that answered; the oldest where several did."""

    watermark_ts: int
    """That generation's watermark, ms, exclusive."""

    def __len__(self) -> int:
        """Examples, not events."""
        return len(self.statuses)

    def __repr__(self) -> str:
        return (
            f"Batch({len(self)} examples, {self.offsets[-1]} events, "
            f"traits {', '.join(self.values)}, generation {self.generation})"
        )

    def to_lists(self, trait: str) -> list[list[Any] | None]:
        """Shows a trait as Python values, per example: for people and tests, not for speed.

        An absent value is None; an example that is not STATUS_OK is None as a whole.
        """
        values: list[Any] = self.values[trait].tolist()
        if trait in self.strings:
            texts = self.strings[trait]
            # Codes of absent values are 0 even where there are no texts at all.
            values = [texts[code] if code < len(texts) else None for code in values]
        if trait in self.present:
            values = [
                value if there else None
                for value, there in zip(values, self.present[trait], strict=True)
            ]
        ends = self.offsets.tolist()
        return [
            values[ends[i] : ends[i + 1]] if status == STATUS_OK else None
            for i, status in enumerate(self.statuses.tolist())
        ]

    @staticmethod
    def concatenate(batches: Sequence[Batch]) -> Batch:
        """Joins one batch or more into one, in their order.

        Raises ThinRowError where their traits differ, as across a change of schema.
        """
        first = batches[0]
        if len(batches) == 1:
            return first
        for batch in batches[1:]:
            if kinds(batch) != kinds(first):
                raise ThinRowError(
                    "The batches hold different traits, so the schema changed between their "
                    "answers; ask for them again."
                )
        oldest = min(batches, key=lambda batch: batch.generation)
        values = {
            trait: np.concatenate([batch.values[trait] for batch in batches])
            for trait in first.values
        }
        nullable = {trait for batch in batches for trait in batch.present}
        present = {
            trait: np.concatenate([presence(batch, trait) for batch in batches])
            for trait in first.values
            if trait in nullable
        }
        strings = {}
        for trait in first.strings:
            sizes = [len(batch.strings[trait]) for batch in batches]
            shifts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
            values[trait] += np.repeat(shifts, [batch.offsets[-1] for batch in batches])
            if trait in present:
                values[trait][~present[trait]] = 0
            strings[trait] = [text for batch in batches for text in batch.strings[trait]]
        lengths = np.concatenate([np.diff(batch.offsets) for batch in batches])
        return Batch(
            statuses=np.concatenate([batch.statuses for batch in batches]),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            values=values,
            present=present,
            strings=strings,
            generation=oldest.generation,
            watermark_ts=oldest.watermark_ts,
        )


def kinds(batch: Batch) -> list[tuple[str, np.dtype[Any], tuple[int, ...], bool]]:
    """Tells which traits a batch holds, and of what type."""
    return [
        (trait, values.dtype, values.shape[1:], trait in batch.strings)
        for trait, values in batch.values.items()
    ]


def presence(batch: Batch, trait: str) -> NDArray[np.bool_]:
    """Tells which events have a trait, nullable or not."""
    there = batch.present.get(trait)
    return np.ones(len(batch.values[trait]), np.bool_) if there is None else there
