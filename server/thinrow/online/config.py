"""What an online server may be told, and every limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.online.clock import Wall, wall_ts
from thinrow.serving.config import MIB, ServiceConfig

if TYPE_CHECKING:
    from pathlib import Path

DAY_MS = 24 * 3600 * 1000
BATCH_BYTES_PER_REQUEST_BYTE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig(ServiceConfig):
    """One online server. Its store may hold no generation yet."""

    listen: str = "127.0.0.1:7888"
    metrics: str | None = "127.0.0.1:7889"
    data: Path | None = None
    """Folder of the mutable tier; None: beside the store, its name and "-online"."""
    schema: Path | None = None
    """TOML file of feature groups, for events that come before the first generation."""
    retention_ms: int = 2 * DAY_MS
    """How long past moments can be asked about, at least; longer than compaction's cadence."""
    dedup_window_ms: int = 7 * DAY_MS
    """How far back duplicates are looked for, at least; not shorter than compaction's."""
    commit_lead_ms: int = 50
    """How long events are expected to take to the disk: so much later than now they arrive."""
    batch_events_max: int = 16_384
    """Most events in one batch."""
    batch_users_max: int = 1024
    """Most users in one SnapshotBatch."""
    request_bytes_max: int = 16 * MIB
    work_max: int = 2
    calls_max: int = 256
    wall: Wall = wall_ts
    """The clock on the wall."""

    @property
    def batch_bytes_max(self) -> int:
        """Limit on the bytes of a batch's records: traits left out and equal values count, too."""
        return BATCH_BYTES_PER_REQUEST_BYTE * self.request_bytes_max

    @property
    def folder(self) -> Path:
        """Where the mutable tier lies."""
        return self.data or self.store.with_name(f"{self.store.name}-online")
