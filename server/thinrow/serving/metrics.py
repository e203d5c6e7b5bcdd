"""What a server tells Prometheus. Each process has a registry of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import Metric
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """All series; docs/operations.md says how to read them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.stage_seconds = Histogram(
            "thinrow_stage_seconds",
            "Seconds that a batch spent in a stage: wait, plan, read, assemble.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.examples = Counter(
            "thinrow_examples",
            "Examples answered, by tenant ('' for projections sent along) and status.",
            ["tenant", "status"],
            registry=self.registry,
        )
        self.events = Counter(
            "thinrow_events",
            "Events of examples answered, counting those that examples share each time.",
            registry=self.registry,
        )
        self.read_bytes = Counter(
            "thinrow_read_bytes", "Bytes of stripes read.", registry=self.registry
        )
        self.sent_bytes = Counter(
            "thinrow_sent_bytes", "Bytes of answers made.", registry=self.registry
        )
        self.errors = Counter(
            "thinrow_errors",
            "Calls that ended in an error, by the error's name.",
            ["name"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "thinrow_in_flight_requests",
            "Batches in work or waiting for their turn.",
            registry=self.registry,
        )
        self.streams = Gauge("thinrow_streams", "Streams open.", registry=self.registry)
        self.open_failures = Counter(
            "thinrow_generation_open_failures",
            "Failed tries to open a newly published generation.",
            registry=self.registry,
        )
        self._generation = Gauge(
            "thinrow_generation", "Number of the serving generation.", registry=self.registry
        )
        self._watermark_age = Gauge(
            "thinrow_watermark_age_seconds",
            "Seconds between the serving generation's watermark and now.",
            registry=self.registry,
        )

    def follow(self, number: Callable[[], int], watermark_ts: Callable[[], int]) -> None:
        """Where to look up the serving generation at each scrape."""
        self._generation.set_function(number)
        self._watermark_age.set_function(lambda: time.time() - watermark_ts() / 1000)


class MetricsEndpoint:
    """The HTTP port that Prometheus scrapes, /metrics."""

    def __init__(self, registry: CollectorRegistry, listen: str) -> None:
        """Opens the port. Raises UsageError where it cannot be had."""
        host, port = split_address(listen)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise UsageError(
                f"Cannot listen on {listen} for metrics ({error.strerror}); choose another "
                f"--metrics HOST:PORT."
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_MERGED: dict[str, Callable[[Iterable[float]], float]] = {
    "thinrow_generation": min,
    "thinrow_watermark_age_seconds": max,
}
"""Series that do not add up over processes: told is the process that lags behind."""


def merged(parts: Iterable[Sequence[Metric]]) -> list[Metric]:
    """The series of several processes as those of one server."""
    families: dict[str, Metric] = {}
    values: dict[tuple[str, str, tuple[tuple[str, str], ...]], list[float]] = {}
    for family in (family for part in parts for family in part):
        families.setdefault(
            family.name, Metric(family.name, family.documentation, family.type, family.unit)
        )
        for sample in family.samples:
            key = (family.name, sample.name, tuple(sample.labels.items()))
            values.setdefault(key, []).append(sample.value)
    for (family_name, name, labels), each in values.items():
        merge = _MERGED.get(name, min if name.endswith("_created") else sum)
        families[family_name].add_sample(name, dict(labels), merge(each))
    return list(families.values())


def split_address(listen: str) -> tuple[str, int]:
    """HOST:PORT as a pair. Raises UsageError where it is none."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{listen!r} is not HOST:PORT, such as 127.0.0.1:7878.")
    return host, int(port)
