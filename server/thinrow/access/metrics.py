"""Prometheus series that both services report. Each process has a registry of its own."""

from __future__ import annotations

import math
import os
import platform
import sys
import threading
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from thinrow.access.tenants import Tenants
    from thinrow.access.tls import Certificates

__all__ = ["TENANT_LABELS_MAX", "ServiceMetrics", "process_age_s"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TENANT_LABELS_MAX = 100
"""Tenants of the file that have series of their own: the first by name."""


class ServiceMetrics:
    """Series of every service; docs/operations/operations.md explains them. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tenants: set[str] = set()
        self._adding = threading.Lock()
        self._known: Callable[[], Collection[str]] = tuple
        self._has_been_ready = False
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
            "Failures to open a newly published generation.",
        )
        self.ready = self.gauge("thinrow_ready", "1 while requests are accepted, else 0.")
        self._ready_seconds = self.gauge(
            "thinrow_ready_seconds",
            "Seconds from the start of the process until it accepted requests.",
        )
        self._generation = self.gauge("thinrow_generation", "Number of the serving generation.")
        self._watermark_age = self.gauge(
            "thinrow_watermark_age_seconds",
            "Seconds between the serving generation's watermark and now.",
        )
        self.memory_bound = self.gauge(
            "thinrow_memory_bound_bytes",
            "The most memory that the limits allow: see docs/operations/operations.md.",
        )
        self.gauge(
            "thinrow_build_info", "1; the labels show the versions in use.", "version", "python"
        ).labels(version("thinrow"), platform.python_version()).set(1)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Returns a new counter."""
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Returns a new gauge."""
        return Gauge(name, text, labels, registry=self.registry)

    def times(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        """Returns a new histogram of times."""
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def bind_generation(self, number: Callable[[], int], watermark_ts: Callable[[], int]) -> None:
        """Sets the functions that return the serving generation at each scrape."""
        self._generation.set_function(number)
        self._watermark_age.set_function(lambda: time.time() - watermark_ts() / 1000)

    def bind_tenants(self, tenants: Tenants, certificates: Certificates | None) -> None:
        """Starts the series of tenants and certificates, which are looked up at each scrape."""
        ProcessCollector(registry=self.registry)
        self._known = lambda: tenants.by_name
        for name in sorted(tenants.by_name)[:TENANT_LABELS_MAX]:
            self.tenant(name)
        self.init_series("")
        self.gauge(
            "thinrow_tenants_usable",
            "1 while the tenants file on disk is in use, 0 while an earlier version is.",
        ).set_function(lambda: tenants.usable)
        self.gauge(
            "thinrow_certificates_usable",
            "1 while the certificate files on disk are in use, 0 while earlier ones are.",
        ).set_function(lambda: certificates is None or certificates.usable())
        self.gauge(
            "thinrow_certificate_expiry_timestamp_seconds",
            "Time at which the certificate in use expires, in seconds since the epoch; +Inf "
            "without TLS.",
        ).set_function(lambda: math.inf if certificates is None else certificates.expiry_s())

    def tenant(self, name: str) -> str:
        """Returns the label of a tenant: its name, or '' without series of its own.

        These are requests with a projection, unknown names, and tenants beyond TENANT_LABELS_MAX.
        """
        if name in self._tenants:
            return name
        with self._adding:
            if len(self._tenants) == TENANT_LABELS_MAX or name not in self._known():
                return ""
            self.init_series(name)
            self._tenants.add(name)
        return name

    def init_series(self, tenant: str) -> None:
        """Starts a tenant's series at 0, so that their first increment is visible."""
        self.tenant_streams.labels(tenant)

    def failed(self, error: str, tenant: str) -> None:
        """Counts a call that ended in an error, by the error's name."""
        self.errors.labels(error).inc()
        self.tenant_failed(error, tenant)

    def tenant_failed(self, error: str, tenant: str) -> None:
        """Counts an error that is counted already as one of a tenant."""
        self.tenant_errors.labels(self.tenant(tenant), error).inc()

    @contextmanager
    def streaming(self, tenant: str) -> Iterator[None]:
        """Counts a stream as a tenant's until the block ends."""
        with self.tenant_streams.labels(self.tenant(tenant)).track_inprogress():
            yield

    def set_ready(self, is_ready: bool) -> None:
        """Reports whether the service accepts requests."""
        if is_ready and not self._has_been_ready:
            self._has_been_ready = True
            self._ready_seconds.set(process_age_s())
        self.ready.set(is_ready)


def process_age_s() -> float:
    """Seconds since this process started, where the system is Linux; else used by it."""
    if sys.platform != "linux":
        return time.process_time()
    # The name in parentheses may hold anything.
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s
