"""Measures that tasks of backfill send: of requests, of events, and of what they wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.events.time_columns import TimeSpan, add_spans, read_spans
from thinrow.jobs.backfill import RowCounts

if TYPE_CHECKING:
    from typing import Any

__all__ = ["EventFacts", "RequestSurvey", "WrittenSlice", "slice_facts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSurvey:
    """Measures of the requests of one slice."""

    slice: int
    rows: int
    times: dict[str, TimeSpan]
    latest_ts: list[int]
    """The latest request, and the latest one that makes sense; nothing without any."""

    @classmethod
    def decode(cls, number: int, text: str) -> RequestSurvey:
        """Reads the row of a task."""
        body = json.loads(text)
        times = read_spans(body["times"])
        return cls(slice=number, rows=body["rows"], times=times, latest_ts=body["latest_ts"])


@dataclass(slots=True, kw_only=True)
class EventFacts:
    """Measures of the events of some slices, and what a shard received of all."""

    slices: list[int]
    rows_read: int
    rows_received: int
    arrivals: TimeSpan
    times: dict[str, TimeSpan]

    @staticmethod
    def none() -> EventFacts:
        """Returns the measures of nothing."""
        return EventFacts(slices=[], rows_read=0, rows_received=0, arrivals=TimeSpan(), times={})

    @staticmethod
    def decode(body: dict[str, Any]) -> EventFacts:
        """Reads what `asdict` returned."""
        times = read_spans(body["times"])
        arrivals = TimeSpan(**body["arrivals"])
        return EventFacts(**{**body, "arrivals": arrivals, "times": times})

    def add(self, other: EventFacts) -> None:
        """Takes in the measures of other slices or shards."""
        self.slices += other.slices
        self.rows_read += other.rows_read
        self.rows_received += other.rows_received
        self.arrivals.add(other.arrivals)
        add_spans(self.times, other.times)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSlice:
    """Result of one task: the thin rows of a slice of the requests."""

    slice: int
    file: str
    """Name of the file in the scratch place of the output; none of rows that go to parts."""
    file_bytes: int
    counts: RowCounts
    events: EventFacts | None
    """Measures of all events; those of slice 0 only."""

    @classmethod
    def decode(cls, body: dict[str, Any]) -> WrittenSlice:
        """Reads what `asdict` returned."""
        events = body["events"]
        return cls(
            slice=body["slice"],
            file=body["file"],
            file_bytes=body["file_bytes"],
            counts=RowCounts(**body["counts"]),
            events=None if events is None else EventFacts.decode(events),
        )


def slice_facts(body: dict[str, Any]) -> EventFacts:
    """Returns the measures of one slice of events: see `SliceFacts`."""
    return EventFacts.decode(
        {
            "slices": [body["slice"]],
            "rows_read": body["rows"],
            "rows_received": 0,
            "arrivals": body["arrivals"],
            "times": body["times"],
        }
    )
