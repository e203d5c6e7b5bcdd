"""What an online server may be told, and every limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.errors import UsageError
from thinrow.online.clock import Wall, wall_ts

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """One online server. Raises UsageError for a value out of its range."""

    store: Path
    """Folder of the store that pointers name; may hold no generation yet."""
    data: Path | None = None
    """Folder of the mutable tier; None: beside the store, its name and "-online"."""
    schema: Path | None = None
    """TOML file of feature groups, for events that come before the first generation."""
    listen: str = "127.0.0.1:7888"
    """HOST:PORT for gRPC; port 0 takes a free one."""
    metrics: str | None = "127.0.0.1:7889"
    """HOST:PORT for Prometheus over HTTP; None for none."""
    tenants: Path | None = None
    """TOML file of named projections."""
    retention_ms: int = 2 * DAY_MS
    """How long past moments can be asked about, at least; longer than compaction's cadence."""
    dedup_window_ms: int = 7 * DAY_MS
    """How far back duplicates are looked for, at least; not shorter than compaction's."""
    commit_lead_ms: int = 5
    """How long events are expected to take to the disk: so much later than now they arrive."""
    batch_events_max: int = 16_384
    """Most events in one batch."""
    batch_users_max: int = 1024
    """Most users in one SnapshotBatch."""
    request_bytes_max: int = 16 * MIB
    """Largest request taken."""
    response_bytes_max: int = 64 * MIB
    """Largest immutable part sent."""
    work_bytes_max: int = 1024 * MIB
    """Most bytes of events, decoded, that requests in work may hold together."""
    work_max: int = 2
    """Most snapshots of several users in work at once; others wait for their turn."""
    calls_max: int = 256
    """Most single calls at once; more are refused."""
    streams_max: int = 64
    """Most streams open at once; more are refused."""
    drain_s: float = 10.0
    """How long calls under way may take to end once the server is told to stop."""
    poll_s: float = 0.5
    """Pause between two looks for a new generation."""
    wall: Wall = wall_ts
    """The clock on the wall."""

    def __post_init__(self) -> None:
        for name in (
            "retention_ms",
            "batch_events_max",
            "batch_users_max",
            "request_bytes_max",
            "response_bytes_max",
            "work_bytes_max",
            "work_max",
            "calls_max",
            "streams_max",
            "poll_s",
        ):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be above 0.")
        for name in ("dedup_window_ms", "commit_lead_ms", "drain_s"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must not be below 0.")

    @property
    def folder(self) -> Path:
        """Where the mutable tier lies."""
        return self.data or self.store.with_name(f"{self.store.name}-online")
