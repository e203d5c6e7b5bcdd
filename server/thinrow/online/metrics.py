"""Metrics of the online server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from thinrow.access.metrics import ServiceMetrics

if TYPE_CHECKING:
    from thinrow.online.event_tier import EventTier

__all__ = ["OnlineMetrics"]

_SECONDS = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2, 8)


class OnlineMetrics(ServiceMetrics):
    """All series of an online server."""

    def __init__(self) -> None:
        super().__init__()
        self.appended = self.counter("thinrow_online_events_appended", "Events taken.")
        self.duplicates = self.counter(
            "thinrow_online_events_duplicate", "Events dropped: their id was there already."
        )
        self.refused = self.counter("thinrow_online_batches_refused", "Batches refused.")
        self.snapshots = self.counter("thinrow_online_snapshots", "Users whose state was shown.")
        self.exported = self.counter(
            "thinrow_online_events_exported", "Events sent to be compacted."
        )
        self.seconds = self.times(
            "thinrow_online_seconds",
            "Seconds from having a request to having its answer: snapshot, append.",
            "call",
            buckets=_SECONDS,
        )

    def of_tier(self, tier: EventTier) -> None:
        """Sets the object that has the state of the tier at each scrape."""
        self.gauge(
            "thinrow_online_clock_ahead_seconds",
            "Seconds that the tier's clock, or that of a partition, is ahead of the machine's.",
        ).set_function(lambda: max(0.0, tier.latest_ts / 1000 - time.time()))
        self.gauge("thinrow_online_stored_bytes", "Bytes of the tier's tables.").set_function(
            lambda: tier.database.property_value("rocksdb.total-sst-files-size")
        )
