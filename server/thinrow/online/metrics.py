"""What the online server tells Prometheus."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from thinrow.online.published import Published
    from thinrow.online.tier import MutableTier

_SECONDS = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2, 8)


class OnlineMetrics:
    """All series; docs/online.md says how to read them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.appended = self._counter("thinrow_online_events_appended", "Events taken.")
        self.duplicates = self._counter(
            "thinrow_online_events_duplicate", "Events dropped: their id was there already."
        )
        self.refused = self._counter("thinrow_online_batches_refused", "Batches refused.")
        self.snapshots = self._counter("thinrow_online_snapshots", "Users whose state was shown.")
        self.exported = self._counter(
            "thinrow_online_events_exported", "Events sent to be compacted."
        )
        self.open_failures = self._counter(
            "thinrow_generation_open_failures",
            "Failed tries to take up a newly published generation.",
        )
        self.errors = Counter(
            "thinrow_errors",
            "Calls that ended in an error, by the error's name.",
            ["name"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "thinrow_online_seconds",
            "Seconds from having a request to having its answer: snapshot, append.",
            ["call"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def follow(self, tier: MutableTier, published: Published) -> None:
        """Where to look up what is known at each scrape."""
        for name, text, tell in (
            ("thinrow_generation", "Number of the serving generation.", lambda: published.number),
            (
                "thinrow_watermark_age_seconds",
                "Seconds between the serving generation's watermark and now.",
                lambda: time.time() - published.watermark_ts / 1000,
            ),
            (
                "thinrow_online_clock_ahead_seconds",
                "Seconds that the tier's clock is ahead of the machine's.",
                lambda: max(0.0, tier.now_ts / 1000 - time.time()),
            ),
            (
                "thinrow_online_stored_bytes",
                "Bytes of the tier's tables.",
                lambda: tier.property_value("rocksdb.total-sst-files-size"),
            ),
        ):
            Gauge(name, text, registry=self.registry).set_function(tell)
