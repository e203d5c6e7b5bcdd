"""Prometheus series of a mirror."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["FAILURES", "MirrorMetrics"]

FAILURES = ("unreachable", "damaged", "full", "other")
"""Kinds of failures to follow the store."""


class MirrorMetrics:
    """The series, in the registry of the process that keeps the mirror."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        self.generation = gauge(
            "thinrow_mirror_generation", "Number of the generation that is complete in the mirror."
        )
        self.pulling = gauge(
            "thinrow_mirror_pulling_generation",
            "Number of the generation that is being copied; 0 if none is.",
        )
        self.missing_bytes = gauge(
            "thinrow_mirror_pull_bytes", "Bytes that the last pull had to copy when it began."
        )
        self.received_bytes = gauge(
            "thinrow_mirror_pull_received_bytes", "Bytes that the last pull has copied."
        )
        self.shared_bytes = gauge(
            "thinrow_mirror_pull_shared_bytes",
            "Bytes of the last pull's generation that were in the mirror already.",
        )
        self.failing = gauge(
            "thinrow_mirror_failing", "1 while the mirror cannot follow the store, else 0."
        )
        self.checked = gauge(
            "thinrow_mirror_checked_timestamp_seconds",
            "When the mirror was last found to have what the store serves, since the epoch.",
        )
        self.all_bytes = Counter(
            "thinrow_mirror_received_bytes", "Bytes copied from the store.", registry=registry
        )
        self.failures = Counter(
            "thinrow_mirror_failures",
            f"Failures to follow the store, by kind: {', '.join(FAILURES)}.",
            ["kind"],
            registry=registry,
        )
        for kind in FAILURES:
            self.failures.labels(kind)
