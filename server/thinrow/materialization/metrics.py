"""Prometheus series of the materialization server."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from thinrow.access.metrics import ServiceMetrics
from thinrow.core.codes import FIRST_CODE
from thinrow.core.status import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from prometheus_client import Counter, Gauge, Histogram
    from thinrow.schema import Schema
    from thinrow.store.follower import ReadCounts

__all__ = ["METHODS", "STAGES", "Metrics", "Serving", "StoreReads"]

STAGES = ("wait", "plan", "room", "read", "assemble")
METHODS = ("Materialize", "MaterializeStream", "Inspect", "DescribeStore", "LookUpCodes")


class Serving(Protocol):
    """Values that are looked up at each scrape; GenerationFollower has them."""

    def schema(self) -> Schema:
        """Returns the schema of the serving generation."""
        ...

    @property
    def opened_ts(self) -> int:
        """Time at which the serving generation was opened, ms."""
        ...

    def read_counts(self) -> ReadCounts:
        """Returns the reads of all generations so far."""
        ...


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
        # Looking a series up takes longer than counting.
        self._stages = {stage: self.stage_seconds.labels(stage) for stage in STAGES}
        self._answers: dict[str, tuple[list[Counter], Counter]] = {}
        for method in METHODS:
            self.request_seconds.labels(method, "")

    def init_series(self, tenant: str) -> None:
        """Makes the series of a tenant appear before its first request."""
        super().init_series(tenant)
        for method in METHODS[:2]:
            self.request_seconds.labels(method, tenant)
        self.examples.labels(tenant, "OK")
        self.tenant_sent_bytes.labels(tenant)
        self.tenant_in_flight.labels(tenant)

    @contextmanager
    def request(self, method: str, tenant: str = "") -> Iterator[None]:
        """Measures one request until the block ends, also if it fails.

        Args:
            method: Name of the method.
            tenant: Label of the tenant.
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

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Measures a stage of a request until the block ends, also if it fails."""
        return self._stages[name].time()

    def answered(
        self, tenant: str, statuses: NDArray[np.uint8], events: int, sent_bytes: int
    ) -> None:
        """Counts a response.

        Args:
            tenant: Label of the tenant.
            statuses: Shape (examples,): their statuses.
            events: Events of all examples.
            sent_bytes: Size of the response.
        """
        series = self._answers.get(tenant)
        if series is None:
            examples = [self.examples.labels(tenant, status.name) for status in Status]
            series = examples, self.tenant_sent_bytes.labels(tenant)
            self._answers[tenant] = series
        examples, tenant_sent_bytes = series
        counts = np.bincount(statuses, minlength=len(Status) + 1).tolist()
        for status, counter in zip(Status, examples, strict=True):
            if counts[status]:
                counter.inc(counts[status])
        self.events.inc(events)
        self.sent_bytes.inc(sent_bytes)
        tenant_sent_bytes.inc(sent_bytes)

    def serve(self, serving: Serving) -> None:
        """Sets the object that has the values of the store."""
        self._opened.set_function(lambda: serving.opened_ts / 1000)
        self.registry.register(StoreReads(serving))
        self.registry.register(VocabularySizes(serving))


class StoreReads(Collector):
    """Counts of the store's reads."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterable[Metric]:
        """Implements Collector."""
        family = CounterMetricFamily(
            "thinrow_store_values",
            "Values of the store that requests read, by source: memory, files.",
            labels=["source"],
        )
        counts = self._serving.read_counts()
        family.add_metric(["memory"], counts.from_memory)
        family.add_metric(["files"], counts.from_files)
        yield family


class VocabularySizes(Collector):
    """Sizes of the serving generation's vocabularies, and their limits."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def collect(self) -> Iterable[Metric]:
        """Implements Collector."""
        sizes = GaugeMetricFamily(
            "thinrow_vocabulary_values", "Values in the vocabulary of a trait.", labels=["trait"]
        )
        limits = GaugeMetricFamily(
            "thinrow_vocabulary_values_max",
            "Values that the schema allows in the vocabulary of a trait.",
            labels=["trait"],
        )
        for trait in self._serving.schema().coded_traits:
            sizes.add_metric([trait.name], trait.codes_end - FIRST_CODE)
            limits.add_metric([trait.name], trait.values_max)
        return [sizes, limits] if sizes.samples else []
