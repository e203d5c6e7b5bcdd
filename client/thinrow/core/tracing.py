"""OpenTelemetry traces, if they are configured; otherwise nothing is imported."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, TracerProvider
    from opentelemetry.util.types import AttributeValue
    from thinrow.core.wire.response import Response

__all__ = [
    "UNTRACED",
    "PassTrace",
    "StreamTrace",
    "Tracing",
    "span_attributes",
    "traced_call",
    "tracing",
]

T = TypeVar("T")

UNTRACED = nullcontext()
"""Replaces a span if nothing is traced."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = logging.getLogger("thinrow.client")


@cache
def tracing(service: str) -> Tracing | None:
    """Returns the maker of spans; None if traces are not configured. Decided once in a process.

    Traces go to the tracer provider that the program has set, or to the exporters that the
    environment names: OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT.

    Args:
        service: Name of the service, unless OTEL_SERVICE_NAME gives another.
    """
    provider = find_provider(service)
    return None if provider is None else Tracing(provider)


def find_provider(service: str) -> TracerProvider | None:
    """Returns the program's own provider, or the environment's."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        provider: TracerProvider = trace.get_tracer_provider()
        if not isinstance(provider, trace.ProxyTracerProvider):
            return provider
    exporters = os.environ.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(map(os.environ.get, ENDPOINTS)) else "none"
    )
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return None if disabled or exporters == "none" else make_provider(service, exporters)


def make_provider(service: str, exporters: str) -> TracerProvider | None:
    """Returns a provider with the named exporters; warns and returns None if one is missing."""
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        provider = TracerProvider(resource=resource)
        for name in exporters.split(","):
            [found] = entry_points(
                group="opentelemetry_traces_exporter", name=exporter_name(name.strip())
            )
            provider.add_span_processor(BatchSpanProcessor(found.load()()))
    except (ImportError, ValueError) as error:
        # A cluster's environment may configure traces; a missing package must not stop the program.
        log.warning(
            "No traces are sent (%s); pip install 'thinrow[tracing]', or set "
            "OTEL_TRACES_EXPORTER=none.",
            error,
        )
        return None
    return provider


def exporter_name(name: str) -> str:
    """Returns the registered name of an exporter of OTEL_TRACES_EXPORTER."""
    if name != "otlp":
        return name
    protocol = os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    )
    return "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"


class Tracing:
    """Makes spans, and propagates them as W3C trace context."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._context = context
        self._trace = trace
        self._names = TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("thinrow")

    def start(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        parent: Span | None = None,
        since_s: float = 0.0,
    ) -> Span:
        """Starts a span, which the caller ends.

        Args:
            name: Name of the span.
            attributes: Attributes of the span.
            parent: None for the current span of this thread.
            since_s: Seconds since its begin.
        """
        return self._tracer.start_span(
            name,
            None if parent is None else self._trace.set_span_in_context(parent),
            attributes=attributes,
            start_time=time.time_ns() - int(1e9 * since_s),
        )

    def is_current(self) -> bool:
        """Returns True within a span of the program."""
        return self._trace.get_current_span().get_span_context().is_valid

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        parent: Context | None = None,
        kind: SpanKind | None = None,
    ) -> Iterator[Span]:
        """Opens a span that is current in this thread until the block ends; it records an error."""
        with self._tracer.start_as_current_span(
            name, parent, kind or self._trace.SpanKind.INTERNAL, attributes
        ) as span:
            yield span

    def serving(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        metadata: Iterable[tuple[str, str | bytes]],
    ) -> AbstractContextManager[Span]:
        """Returns a server's span, which continues the trace that a call's metadata name."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        parent = self._names.extract(carrier)
        return self.span(name, attributes, parent=parent, kind=self._trace.SpanKind.SERVER)

    def calling(
        self, name: str, attributes: Mapping[str, AttributeValue]
    ) -> AbstractContextManager[Span]:
        """Returns a client's span, as `span`."""
        return self.span(name, attributes, kind=self._trace.SpanKind.CLIENT)

    @contextmanager
    def within(self, span: Span) -> Iterator[None]:
        """Makes a started span current in this thread until the block ends; does not end it."""
        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            yield
        finally:
            self._context.detach(token)

    def metadata(self, span: Span) -> tuple[tuple[str, str], ...]:
        """Returns the metadata with which a server continues a span's trace."""
        carrier: dict[str, str] = {}
        self._names.inject(carrier, self._trace.set_span_in_context(span))
        return tuple(carrier.items())

    def fail(self, span: Span, reason: str) -> None:
        """Ends a span as failed."""
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, reason))
        span.end()


class PassTrace:
    """The span of one pass of a loader, and one for each time that the trainer waited."""

    def __init__(self, made_by: Tracing) -> None:
        self._tracing = made_by
        self._span = made_by.start("thinrow.pass", {})

    def current(self) -> AbstractContextManager[None]:
        """Assigns this thread's requests to the pass until the block ends."""
        return self._tracing.within(self._span)

    def waited(self, seconds: float, stages: Mapping[Any, float]) -> None:
        """Records that the trainer has just waited, and the seconds of each stage.

        Within a span of the trainer, such as of a step, that span is the parent.
        """
        parent = None if self._tracing.is_current() else self._span
        attributes = {f"thinrow.wait_us.{stage}": int(1e6 * s) for stage, s in stages.items()}
        self._tracing.start("thinrow.batch", attributes, parent=parent, since_s=seconds).end()

    def end(self) -> None:
        """Ends the span of the pass; may be called again."""
        if self._span.is_recording():
            self._span.end()


class StreamTrace:
    """The span of one stream, and one below it for each request that waits for its answer."""

    def __init__(self, made_by: Tracing) -> None:
        self._tracing = made_by
        self._span = made_by.start("thinrow.stream", {})
        self._in_flight: deque[Span] = deque()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of the stream's call."""
        return self._tracing.metadata(self._span)

    def sent(self, cursor: int, tenant: str, examples: int) -> str:
        """Records that a request is sent; returns its `traceparent`."""
        attributes = {**span_attributes(tenant, examples), "thinrow.cursor": cursor}
        span = self._tracing.start("thinrow.request", attributes, parent=self._span)
        self._in_flight.append(span)
        return dict(self._tracing.metadata(span)).get("traceparent", "")

    def answered(self, answer: Response) -> None:
        """Records the response to the oldest request."""
        span = self._in_flight.popleft()
        span.set_attributes(
            {"thinrow.server_us": answer.server_us, "thinrow.generation": answer.generation}
        )
        span.end()

    def end(self) -> None:
        """Ends the span of the stream; may be called again."""
        while self._in_flight:
            self._tracing.fail(self._in_flight.popleft(), "not answered on this stream")
        if self._span.is_recording():
            self._span.end()


def span_attributes(tenant: str, examples: int) -> dict[str, AttributeValue]:
    """Returns the attributes of a request's span."""
    return {"thinrow.tenant": tenant, "thinrow.examples": examples}


def traced_call(method: Callable[..., T], tenant: str, examples: int) -> Callable[..., T]:
    """Returns a unary call that makes a span each time; the call itself without traces."""
    spans = tracing("thinrow-client")
    if spans is None:
        return method

    def call(request: bytes, *, metadata: Any, **options: Any) -> T:  # noqa: ANN401
        with spans.calling("thinrow.request", span_attributes(tenant, examples)) as span:
            return method(request, metadata=(*metadata, *spans.metadata(span)), **options)

    return call
