"""Prometheus series of a loader's routing: the map that it follows, groups, hedges, failovers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric
    from thinrow.client.router import Routing

__all__ = ["RoutingSeries"]


class RoutingSeries:
    """A collector for a registry of prometheus-client.

    Args:
        routing: Returns the numbers so far; None before the loader is connected.
    """

    def __init__(self, routing: Callable[[], Routing | None]) -> None:
        self._routing = routing

    def collect(self) -> Iterable[Metric]:
        """Returns the series; zeros before the loader is connected."""
        # The registry's owner has this library, which is an extra.
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        found = self._routing()
        for name, text in (
            ("map_version", "Version of the cluster's map that is followed; 0 without a cluster."),
            ("groups", "Groups of servers that are connected."),
        ):
            value = 0 if found is None else getattr(found, name)
            yield GaugeMetricFamily(f"thinrow_trainer_{name}", text, value)
        for name, text in (
            ("map_reads", "Maps of the cluster that were taken up."),
            ("hedges", "Requests that were repeated at another server, since the first was late."),
            ("failovers", "Times that a server was left because it failed or was silent."),
            ("elsewhere", "Examples that were requested again because their shard had moved."),
        ):
            value = 0 if found is None else getattr(found, name)
            yield CounterMetricFamily(f"thinrow_trainer_{name}", text, value)
