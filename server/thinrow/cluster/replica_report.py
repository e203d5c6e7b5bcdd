"""The report of one replica about itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReplicaReport"]


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """The report of one replica, or why there is none."""

    target: str
    problem: str | None = None
    """Reason for which the replica does not answer; None if it does."""
    group: str = ""
    """Name of its group; empty where no group of its map is its own."""
    map_version: int = 0
    """Version of the map that it follows; 0 if it follows none."""
    generation: int = 0
    watermark_ts: int = 0
    open_shards: frozenset[int] = frozenset()
    response_ms: float = 0.0
    """Time until it responded, connecting included."""
