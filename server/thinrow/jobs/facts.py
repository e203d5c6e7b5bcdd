"""Facts about fat rows that slim reports, summed over partitions of users."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HIGHEST_TS", "Disagreement", "Facts", "first_generation", "total"]

HIGHEST_TS = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """One place where rows of a user contradict each other."""

    kind: str
    user_id: int | str
    event_ts: int
    request_ts: int
    """Row that lacks the event, or has it elsewhere."""
    seen_request_ts: int
    """Row that has it."""
    event: str
    """Traits of the event."""


@dataclass(slots=True, kw_only=True)
class Facts:
    """Findings in some rows."""

    rows: int = 0
    fat_events: int = 0
    events: int = 0
    """Events of the histories."""
    carried_events: int = 0
    rows_carried_whole: int = 0
    """Though a generation published before the request has some of their events."""
    rows_all_newer: int = 0
    """Rows with nothing to point at yet: all their events are newer than the last generation."""
    late: int = 0
    """Events stored as having arrived later than they happened."""
    late_in_place: int = 0
    """Events that rows show in their place though an earlier row lacks them; stored as in time."""
    rows_disagreeing: int = 0
    disagreements: dict[str, int] = field(default_factory=dict)
    """Number of events, or of places in rows, by kind."""
    examples: list[Disagreement] = field(default_factory=list)
    first_generation: int = HIGHEST_TS
    """The earliest one with a plausible arrival, by its number in the cadence's grid; int64's
    maximum where there are none."""
    lowest_generation: int = HIGHEST_TS
    """The earliest one with any event."""
    earliest_below: int = HIGHEST_TS
    """The earliest one with an event that happened before it."""


def total(found: Sequence[Facts]) -> Facts:
    """The facts of all partitions."""
    whole = Facts()
    for facts in found:
        for item in fields(Facts):
            ours, theirs = getattr(whole, item.name), getattr(facts, item.name)
            if item.name in ("first_generation", "lowest_generation", "earliest_below"):
                setattr(whole, item.name, min(ours, theirs))
            elif item.name == "disagreements":
                whole.disagreements = {
                    kind: ours.get(kind, 0) + theirs.get(kind, 0) for kind in {**ours, **theirs}
                }
            else:
                setattr(whole, item.name, ours + theirs)
    return whole


def first_generation(found: Sequence[Facts]) -> int:
    """The earliest generation of all users: compaction starts where the times are plausible."""
    first = min(facts.first_generation for facts in found)
    lowest = min(facts.lowest_generation for facts in found)
    return lowest if first == HIGHEST_TS else first
