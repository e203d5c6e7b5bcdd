"""What a server tells Prometheus. Each process has a registry of its own."""

from __future__ import annotations

import math
import os
import platform
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    make_wsgi_app,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from thinrow.errors import UsageError
from thinrow.serving.http_server import HttpServer
from thinrow.serving.status_page import StatusPage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from thinrow.serving.tenants import Tenants
    from thinrow.serving.tls import Certificates

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STAGES = ("wait", "plan", "room", "read", "assemble")
METHODS = ("Materialize", "MaterializeStream", "Inspect", "DescribeStore")
TENANT_LABELS_MAX = 100
"""So many tenants of the file have series of their own: as many of the first by name as fit."""


@dataclass(frozen=True, slots=True)
class ReadCounts:
    """Values of the store that were asked for, by where they were."""

    from_memory: int = 0
    from_files: int = 0

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(self.from_memory + other.from_memory, self.from_files + other.from_files)


class Serving(Protocol):
    """What is looked up at each scrape: see CurrentGeneration."""

    @property
    def opened_ts(self) -> int: ...

    def read_counts(self) -> ReadCounts: ...


class ServiceMetrics:
    """What every service tells; docs/operations.md says how to read it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tenants: set[str] = set()
        self._known: Callable[[], Collection[str]] = tuple
        self.errors = self.counter(
            "thinrow_errors", "Calls that ended in an error, by the error's name.", "name"
        )
        self.tenant_errors = self.counter(
            "thinrow_tenant_errors", "Calls that ended in an error, by tenant.", "tenant", "name"
        )
        self.streams = self.gauge("thinrow_streams", "Streams open.")
        self.tenant_streams = self.gauge(
            "thinrow_tenant_streams", "Streams open, by tenant.", "tenant"
        )
        self.open_failures = self.counter(
            "thinrow_generation_open_failures",
            "Failed tries to take up a newly published generation.",
        )
        self.ready = self.gauge("thinrow_ready", "1 while requests are taken, else 0.")
        self._ready_seconds = self.gauge(
            "thinrow_ready_seconds",
            "Seconds from the start of the process until it took requests.",
        )
        self._generation = self.gauge("thinrow_generation", "Number of the serving generation.")
        self._watermark_age = self.gauge(
            "thinrow_watermark_age_seconds",
            "Seconds between the serving generation's watermark and now.",
        )
        self.memory_bound = self.gauge(
            "thinrow_memory_bound_bytes",
            "The most memory that the limits allow: see docs/operations.md.",
        )
        self.gauge(
            "thinrow_build_info", "1; the labels tell what runs.", "version", "python"
        ).labels(version("thinrow"), platform.python_version()).set(1)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """A new counter."""
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A new gauge."""
        return Gauge(name, text, labels, registry=self.registry)

    def times(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        """A new histogram of times."""
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def follow(self, number: Callable[[], int], watermark_ts: Callable[[], int]) -> None:
        """Where to look up the serving generation at each scrape."""
        self._generation.set_function(number)
        self._watermark_age.set_function(lambda: time.time() - watermark_ts() / 1000)

    def trust(self, tenants: Tenants, certificates: Certificates | None) -> None:
        """Where to look up the tenants there are, and whether what lies on disk is in use."""
        ProcessCollector(registry=self.registry)
        self._known = lambda: tenants.by_name
        for name in sorted(tenants.by_name)[:TENANT_LABELS_MAX]:
            self.tenant(name)
        self.show("")
        self.gauge(
            "thinrow_tenants_usable",
            "1 while what the tenants file says counts, 0 while what it said earlier does.",
        ).set_function(lambda: tenants.usable)
        self.gauge(
            "thinrow_certificates_usable",
            "1 while the certificate files are those in use, 0 while earlier ones are.",
        ).set_function(lambda: certificates is None or certificates.usable())
        self.gauge(
            "thinrow_certificate_expiry_timestamp_seconds",
            "When the certificate in use ends, in seconds since the epoch; +Inf without TLS.",
        ).set_function(lambda: math.inf if certificates is None else certificates.expiry_s())

    def tenant(self, name: str) -> str:
        """The label of a tenant: its name, or '' for all that have no series of their own.

        Those are projections sent along, names that nobody knows, and tenants beyond
        TENANT_LABELS_MAX.
        """
        if name in self._tenants:
            return name
        if len(self._tenants) == TENANT_LABELS_MAX or name not in self._known():
            return ""
        self.show(name)
        self._tenants.add(name)
        return name

    def show(self, tenant: str) -> None:
        """Lets a tenant's series begin at 0, so that their first step is seen."""
        self.tenant_streams.labels(tenant)

    def failed(self, error: str, tenant: str) -> None:
        """Counts a call that ended in an error, by the error's name."""
        self.errors.labels(error).inc()
        self.tenant_failed(error, tenant)

    def tenant_failed(self, error: str, tenant: str) -> None:
        """Counts as a tenant's what was counted already as an error."""
        self.tenant_errors.labels(self.tenant(tenant), error).inc()

    @contextmanager
    def streaming(self, tenant: str) -> Iterator[None]:
        """Counts a stream as a tenant's until the block ends."""
        with self.tenant_streams.labels(self.tenant(tenant)).track_inprogress():
            yield

    def serves(self) -> None:
        """Says that requests are taken from now on."""
        self._ready_seconds.set(process_age_s())
        self.ready.set(1)


class Metrics(ServiceMetrics):
    """All series of a server."""

    def __init__(self) -> None:
        super().__init__()
        self._requests: dict[tuple[str, str], tuple[Gauge, Histogram]] = {}
        self.request_seconds = self.times(
            "thinrow_request_seconds",
            "Seconds from having a request to having its answer.",
            "method",
            "tenant",
        )
        self.stage_seconds = self.times(
            "thinrow_stage_seconds",
            "Seconds that a batch spent in a stage: wait, plan, room, read, assemble.",
            "stage",
        )
        self.examples = self.counter(
            "thinrow_examples",
            "Examples answered, by tenant ('' for projections sent along) and status.",
            "tenant",
            "status",
        )
        self.events = self.counter(
            "thinrow_events",
            "Events of examples answered, counting those that examples share each time.",
        )
        self.read_bytes = self.counter("thinrow_read_bytes", "Bytes of stripes read.")
        self.sent_bytes = self.counter("thinrow_sent_bytes", "Bytes of answers made.")
        self.tenant_sent_bytes = self.counter(
            "thinrow_tenant_sent_bytes", "Bytes of answers made, by tenant.", "tenant"
        )
        self.in_flight = self.gauge(
            "thinrow_in_flight_requests", "Batches in work or waiting for their turn."
        )
        self.tenant_in_flight = self.gauge(
            "thinrow_tenant_in_flight_requests",
            "Batches in work or waiting for their turn, by tenant.",
            "tenant",
        )
        self._opened = self.gauge(
            "thinrow_generation_opened_timestamp_seconds",
            "When the serving generation was opened, in seconds since the epoch.",
        )
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for method in METHODS:
            self.request_seconds.labels(method, "")

    def show(self, tenant: str) -> None:
        super().show(tenant)
        for method in METHODS[:2]:
            self.request_seconds.labels(method, tenant)
        self.examples.labels(tenant, "OK")
        self.tenant_sent_bytes.labels(tenant)
        self.tenant_in_flight.labels(tenant)

    @contextmanager
    def request(self, method: str, tenant: str = "") -> Iterator[None]:
        """Measures one request until the block ends, whether it fails or not.

        tenant: as `tenant` labels it.
        """
        started_s = time.perf_counter()
        series = self._requests.get((method, tenant))
        if series is None:
            seconds = self.request_seconds.labels(method, tenant)
            series = self.tenant_in_flight.labels(tenant), seconds
            self._requests[method, tenant] = series
        in_flight, seconds = series
        in_flight.inc()
        try:
            yield
        finally:
            in_flight.dec()
            seconds.observe(time.perf_counter() - started_s)

    def serve(self, serving: Serving) -> None:
        """Where to look up what is known of the store."""
        self._opened.set_function(lambda: serving.opened_ts / 1000)
        self.registry.register(StoreReads(serving))


class StoreReads(Collector):
    """Counts kept where the store is read."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterable[Metric]:
        """As the library wants it."""
        family = CounterMetricFamily(
            "thinrow_store_values",
            "Values of the store asked for, by where they were: memory, files.",
            labels=["source"],
        )
        counts = self._serving.read_counts()
        family.add_metric(["memory"], counts.from_memory)
        family.add_metric(["files"], counts.from_files)
        yield family


def process_age_s() -> float:
    """Seconds since this process started, where the system is Linux; else used by it."""
    if sys.platform != "linux":
        return time.process_time()
    # The name in parentheses may hold anything.
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


class MetricsEndpoint:
    """The HTTP port: /metrics for Prometheus, / and /status for people."""

    def __init__(self, registry: CollectorRegistry, listen: str) -> None:
        """Opens the port. Raises UsageError where it cannot be had."""
        host, port = split_address(listen)
        try:
            self._server = HttpServer(host.strip("[]"), port)
        except OSError as error:
            raise UsageError(
                f"Cannot listen on {listen} for metrics ({error.strerror}); choose another "
                f"--metrics HOST:PORT."
            ) from error
        pages = {"/metrics": make_wsgi_app(registry)}
        pages["/"] = pages["/status"] = StatusPage(registry.collect)

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
            page = pages.get(environ["PATH_INFO"])
            if page is not None:
                answer: Iterable[bytes] = page(environ, start_response)
                return answer
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There are /metrics and /status.\n"]

        self._server.set_app(app)
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="thinrow-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_MERGED: dict[str, Callable[[Iterable[float]], float]] = {
    "process_max_fds": min,
    "thinrow_certificate_expiry_timestamp_seconds": min,
    "thinrow_certificates_usable": min,
    "thinrow_tenants_usable": min,
    "process_start_time_seconds": min,
    "thinrow_build_info": min,
    "thinrow_generation": min,
    "thinrow_generation_opened_timestamp_seconds": min,
    "thinrow_ready": min,
    "thinrow_ready_seconds": max,
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
