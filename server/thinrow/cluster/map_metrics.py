"""Prometheus series of a server that follows the cluster's map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from thinrow.cluster.member import ClusterMember

__all__ = ["FAILURES", "MapMetrics", "MemberSeries"]

FAILURES = ("unreachable", "damaged", "other")
"""Kinds of failures to read the map."""


class MapMetrics:
    """The series of the process that keeps the mirror."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.failing = Gauge(
            "thinrow_cluster_map_failing",
            "1 while the cluster's map cannot be followed, else 0.",
            registry=registry,
        )
        self.checked = Gauge(
            "thinrow_cluster_map_checked_timestamp_seconds",
            "When the cluster's map was last read from the store, since the epoch.",
            registry=registry,
        )
        self.failures = Counter(
            "thinrow_cluster_map_failures",
            f"Failures to read the cluster's map, by kind: {', '.join(FAILURES)}.",
            ["kind"],
            registry=registry,
        )
        for kind in FAILURES:
            self.failures.labels(kind)


class MemberSeries(Collector):
    """The series of a process that serves.

    Args:
        member: The server's place in its cluster.
        open_count: Returns the number of shards that are open.
    """

    def __init__(self, member: ClusterMember, open_count: Callable[[], int]) -> None:
        self._member = member
        self._open_count = open_count

    def collect(self) -> Iterable[Metric]:
        """Implements Collector."""
        member = self._member
        in_map = GaugeMetricFamily(
            "thinrow_cluster_group",
            "1 while the cluster's map has this server's group, else 0.",
            labels=["group"],
        )
        in_map.add_metric([member.group], float(member.is_in_map))
        yield in_map
        for name, text, value in (
            ("map_version", "Version of the cluster's map; 0 before the first.", member.version),
            (
                "shards_wanted",
                "Shards that the cluster's map gives this server's group.",
                len(member.wanted),
            ),
            ("shards_open", "Shards that are open.", self._open_count()),
            (
                "shards_moving",
                "Shards of the cluster that are on the move, by the map.",
                member.moving_count,
            ),
        ):
            yield GaugeMetricFamily(f"thinrow_cluster_{name}", text, value)
