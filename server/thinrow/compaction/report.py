"""Report of a compaction, which commands print."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinrow.compaction.vocabularies import VocabularyGrowth
    from thinrow.events.time_columns import TimeSpan

__all__ = ["CompactionReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionReport:
    """Report of a run."""

    generation: int
    watermark_ts: int
    already_published: bool = False
    """True where the very same run was done before; then nothing was done and counts are 0."""
    rows_read: int = 0
    messages_refused: int = 0
    """Messages of a topic that hold no events of the schema, as every replica refuses them."""
    refusals: list[str] = field(default_factory=list)
    """Place and reason of the first ones."""
    events_added: int = 0
    duplicates: int = 0
    late: int = 0
    """Skipped: arrived before the last watermark, so taken as already there."""
    left_for_later: int = 0
    """Arrived at or after the watermark."""
    erased_users: int = 0
    events_dropped: int = 0
    """Events dropped by retention and erasure."""
    event_count: int = 0
    """Events in the generation."""
    user_count: int = 0
    stored_bytes: int = 0
    ignored_columns: list[str] = field(default_factory=list)
    """Input columns that the schema does not list."""
    times: dict[str, TimeSpan] = field(default_factory=dict)
    """Range of the times read, by time column."""
    tied_events: int = 0
    """Events added whose order only their traits decide, as the input does not define it."""
    uncut_ms: int = 0
    """Span of this run's arrivals that has no watermark inside; 0 with a cadence."""
    vocabularies: list[VocabularyGrowth] = field(default_factory=list)
    """Sizes of vocabularies, and their growth in this run."""
