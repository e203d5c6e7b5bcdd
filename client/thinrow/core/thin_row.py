"""One thin row, as the online service gives it and the logger takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ThinRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinRow:
    """The pointer of one request, and the events too new for its generation. Times are ms."""

    user_id: int

    request_ts: int
    """When the request was made; everything here arrived strictly before."""

    start_ts: int
    """First visible_ts named, inclusive."""

    end_ts: int
    """Watermark of the generation that served the request, exclusive; start_ts before the first."""

    max_length: int
    """Most immutable events named, the newest; 0 for no limit."""

    digest: int
    """Of the history up to end_ts, 64 bits unsigned; 0 for not recorded."""

    mutable: tuple[Mapping[str, object], ...]
    """The snapshot in the order served. Each event has the fields that `mutable` has in a file of
    thin rows: event_ts, arrival_ts, event_id and the traits; None where it lacks one."""
