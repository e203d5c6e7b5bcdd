"""Codes in place of the values that mutable events have, where the store has a vocabulary.

Events carry values, because a vocabulary may get a value after a row was written. They are coded
as the generation that answered codes them, so that an event reads alike from row and store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from thinrow.core.codes import UNKNOWN_CODE
from thinrow.core.pointers import MutableColumn, MutableEvents
from thinrow.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.lookup.checked_response import CheckedResponse

__all__ = ["Coder", "Value", "coded_events"]

Value: TypeAlias = str | int
Coder: TypeAlias = Callable[[str, Sequence[Value], int], dict[Value, int]]
"""Returns the codes of distinct values: of a trait, below the end of a generation's codes."""


def coded_events(
    events: MutableEvents,
    responses: Sequence[CheckedResponse],
    response: NDArray[np.int64],
    coder: Coder | None,
) -> MutableEvents:
    """Returns mutable events with codes for the values of traits that have a vocabulary.

    Args:
        events: The events of some examples.
        responses: The responses about these.
        response: Number of each example's response; shape (examples,).
        coder: Looks codes up; None where no example has events.

    Raises:
        InputError: A column has lists or vectors, or values of more than one kind.
        ThinRowError: The codes could not be looked up.
    """
    ends: dict[str, list[int]] = {}
    for trait, column in responses[0].columns.items():
        if column.message.codes_end:
            # The schema is the same in all: `joint_kinds` compares them.
            others = (part.columns.get(trait) for part in responses)
            ends[trait] = [0 if each is None else each.message.codes_end for each in others]
    if not ends or not events.lengths.any():
        return events
    events = events.compact()
    columns = dict(events.columns)
    for trait, of_response in ends.items():
        if trait not in columns:
            continue
        assert coder is not None
        coded = _coded(trait, columns[trait], max(of_response), coder)
        if min(of_response) < max(of_response):
            # Replicas answered from several generations: each example has the codes of its own.
            end = np.repeat(np.array(of_response)[response], events.lengths)
            codes = np.where(coded.values < end, coded.values, UNKNOWN_CODE).astype(np.int32)
            coded = MutableColumn(codes, coded.present)
        columns[trait] = coded
    return MutableEvents(events.offsets, events.arrival_ts, columns)


def _coded(trait: str, column: MutableColumn, codes_end: int, coder: Coder) -> MutableColumn:
    values = column.values
    if column.offsets is not None or values.ndim != 1:
        raise InputError(f"The mutable column {trait!r} must have one value an event.")
    if column.present is not None:
        values = values[column.present]
    if values.dtype.kind not in "iuO":
        raise InputError(
            f"The mutable column {trait!r} has {values.dtype}; it must have the values of the "
            f"trait, texts or integers, which the store's vocabulary codes."
        )
    listed = values.tolist()
    found = coder(trait, list(dict.fromkeys(listed)), codes_end) if listed else {}
    codes = np.fromiter(map(found.__getitem__, listed), np.int32, len(listed))
    if column.present is None:
        return MutableColumn(codes)
    scattered = np.zeros(len(column.present), np.int32)
    scattered[column.present] = codes
    return MutableColumn(scattered, column.present)
