"""A batch of histories as jagged arrays."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.lookup.answer import Answer
from thinrow.core.status import Status
from thinrow.core.wire.widen_jobs import Job, run_jobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Batch", "list_offsets", "trait_jobs", "write_traits"]


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
    """Values by trait, shape (events,), or (events, size) for a vector. Numbers and bools in
    their own dtype, categorical traits int64, text int32 codes into `strings`. 0 where absent. Of
    lists, the elements of all events, shape (elements,)."""

    present: dict[str, NDArray[np.bool_]]
    """Presence by nullable trait, shape (events,): False where the event lacks it."""

    strings: dict[str, list[str]]
    """Texts by text trait, which its codes index. May repeat one."""

    generation: int
    """Number of the generation that answered; the oldest if there were several."""

    watermark_ts: int
    """Watermark of that generation, ms, exclusive."""

    list_offsets: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Offsets by trait of lists, shape (events + 1,): event j has the elements
    [list_offsets[j], list_offsets[j + 1]), none where absent. Example i so has those between
    list_offsets[offsets[i]] and list_offsets[offsets[i + 1]]."""

    filled: frozenset[str] = frozenset()
    """Traits with values that were filled after the events were served."""

    def __len__(self) -> int:
        """Returns the number of examples, not of events."""
        return len(self.statuses)

    def __repr__(self) -> str:
        return (
            f"Batch({len(self)} examples, {self.offsets[-1]} events, "
            f"traits {', '.join(self.values)}, generation {self.generation})"
        )

    def to_lists(self, trait: str) -> list[list[Any] | None]:
        """Returns a trait as Python values, per example: for people and tests, not for speed.

        An absent value is None; an example that is not STATUS_OK is None as a whole.
        """
        values: list[Any] = self.values[trait].tolist()
        if trait in self.strings:
            texts = self.strings[trait]
            # Codes of absent values are 0 even where there are no texts at all.
            values = [texts[code] if code < len(texts) else None for code in values]
        if trait in self.list_offsets:
            places = pairwise(self.list_offsets[trait].tolist())
            values = [values[start:stop] for start, stop in places]
        if trait in self.present:
            values = [
                value if there else None
                for value, there in zip(values, self.present[trait], strict=True)
            ]
        ends = self.offsets.tolist()
        return [
            values[ends[i] : ends[i + 1]] if status == Status.OK else None
            for i, status in enumerate(self.statuses.tolist())
        ]

    @staticmethod
    def from_answers(answers: Sequence[Answer]) -> Batch:
        """Widens one answer or more into one batch, in their order.

        Raises:
            ThinRowError: Their traits differ, because the schema changed between them.
        """
        kinds = Answer.joint_kinds(answers)
        lengths = np.concatenate([answer.lengths for answer in answers])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        oldest = min(answers, key=lambda answer: answer.generation)
        batch = Batch(
            statuses=np.concatenate([answer.statuses for answer in answers]),
            offsets=offsets,
            values={},
            present={},
            strings={},
            generation=oldest.generation,
            watermark_ts=oldest.watermark_ts,
            filled=frozenset(trait for trait, kind in kinds.items() if kind.filled),
        )
        events = int(offsets[-1])
        for trait, kind in kinds.items():
            count = events
            if kind.listed:
                batch.list_offsets[trait] = list_offsets(answers, trait)
                count = int(batch.list_offsets[trait][-1])
            batch.values[trait] = np.empty((count, *kind.shape), kind.dtype)
            if kind.nullable:
                batch.present[trait] = np.empty(events, np.bool_)
            if kind.text:
                batch.strings[trait] = []
        write_traits(answers, batch.values, batch.present, batch.strings, batch.list_offsets)
        return batch


def list_offsets(answers: Sequence[Answer], trait: str) -> NDArray[np.int64]:
    """Returns the place of each event's first element in a trait of lists of several answers.

    Returns:
        int64, shape (events + 1,).
    """
    parts = [answer.list_offsets(trait) for answer in answers]
    if len(parts) == 1:
        return parts[0]
    firsts = itertools.accumulate((int(part[-1]) for part in parts), initial=0)
    moved = [part[:-1] + first for part, first in zip(parts, firsts, strict=False)]
    return np.concatenate([*moved, [sum(int(part[-1]) for part in parts)]])


def write_traits(
    answers: Sequence[Answer],
    values: Mapping[str, NDArray[Any]],
    present: Mapping[str, NDArray[np.bool_]],
    strings: Mapping[str, list[str]],
    list_offsets: Mapping[str, NDArray[np.int64]],
) -> None:
    """Widens the traits of several answers, one after the other; see Answer.write.

    Args:
        answers: The answers.
        values: Arrays to write, by trait.
        present: Arrays to write, by nullable trait.
        strings: Lists to extend, by text trait; codes index these joint lists.
        list_offsets: By trait of lists, as `list_offsets` returns them.
    """
    run_jobs(trait_jobs(answers, values, present, strings, list_offsets))


def trait_jobs(
    answers: Sequence[Answer],
    values: Mapping[str, NDArray[Any]],
    present: Mapping[str, NDArray[np.bool_]],
    strings: Mapping[str, list[str]],
    list_offsets: Mapping[str, NDArray[np.int64]],
) -> list[Job]:
    """Does as `write_traits`, but returns the long work as jobs, to be run together with others."""
    ends = list(itertools.accumulate((answer.events for answer in answers), initial=0))
    parts = [(answer, slice(*place)) for answer, place in zip(answers, pairwise(ends), strict=True)]
    jobs: list[Job] = []
    for trait, target in values.items():
        texts = strings.get(trait)
        for answer, events in parts:
            there = present[trait][events] if trait in present else None
            own, lists = events, None
            if trait in list_offsets:
                lists = list_offsets[trait][events.start : events.stop + 1]
                own = slice(int(lists[0]), int(lists[-1]))
                lists = lists - lists[0]
            jobs += answer.jobs(trait, target[own], there, lists)
            if texts is not None:
                target[own] += len(texts)
                if there is not None and lists is None:
                    target[own][~there] = 0
                texts += answer.strings(trait)
    return jobs
