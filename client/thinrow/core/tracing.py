"""OpenTelemetry traces for those who configure them; for all others nothing is even imported."""

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
"""Stands where a span would, for those who do not trace."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = logging.getLogger("thinrow.client")


@cache
def tracing(service: str) -> Tracing | None:
    """How to trace; None where nobody asked for traces. Decided once in a process.

    Traces go to the tracer provider that the program has set before, else where the standard
    variables of the environment say: OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT.

    service: the name to appear under, unless OTEL_SERVICE_NAME tells another.
    """
    provider = find_provider(service)
    return None if provider is None else Tracing(provider)


def find_provider(service: str) -> TracerProvider | None:
    """The program's own provider, else the environment's."""
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
    """A provider with exporters, by their names; None, and a warning, where they are missing."""
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
        # The environment of a whole cluster may ask for traces: no reason not to work.
        log.warning(
            "No traces are sent (%s); pip install 'thinrow[tracing]', or set "
            "OTEL_TRACES_EXPORTER=none.",
            error,
        )
        return None
    return provider


def exporter_name(name: str) -> str:
    """The registered name of what OTEL_TRACES_EXPORTER calls so."""
    if name != "otlp":
        return name
    protocol = os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    )
    return "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"


class Tracing:
    """Makes spans, and sends their names along as W3C trace context."""

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
        """Starts a span, to be ended by the caller.

        parent: None for the one that is current in this thread.
        since_s: how long ago it began.
        """
        return self._tracer.start_span(
            name,
            None if parent is None else self._trace.set_span_in_context(parent),
            attributes=attributes,
            start_time=time.time_ns() - int(1e9 * since_s),
        )

    def is_current(self) -> bool:
        """Whether the program is within a span of its own."""
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
        """A span, current in this thread until the block ends; it tells an error that ends it."""
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
        """A server's span, which continues the trace that a call's metadata name."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        parent = self._names.extract(carrier)
        return self.span(name, attributes, parent=parent, kind=self._trace.SpanKind.SERVER)

    def calling(
        self, name: str, attributes: Mapping[str, AttributeValue]
    ) -> AbstractContextManager[Span]:
        """A client's span, as `span`."""
        return self.span(name, attributes, kind=self._trace.SpanKind.CLIENT)

    @contextmanager
    def within(self, span: Span) -> Iterator[None]:
        """Makes a span, which others end, current in this thread until the block ends."""
        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            yield
        finally:
            self._context.detach(token)

    def metadata(self, span: Span) -> tuple[tuple[str, str], ...]:
        """What names a span to the server that continues its trace."""
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
        """Lets what this thread asks for belong to the pass until the block ends."""
        return self._tracing.within(self._span)

    def waited(self, seconds: float, stages: Mapping[Any, float]) -> None:
        """Says that the trainer has just waited, and how long for which stage.

        Where the trainer is within a span of its own, such as of a step, it belongs there.
        """
        parent = None if self._tracing.is_current() else self._span
        attributes = {f"thinrow.wait_us.{stage}": int(1e6 * s) for stage, s in stages.items()}
        self._tracing.start("thinrow.batch", attributes, parent=parent, since_s=seconds).end()

    def end(self) -> None:
        """Says that the pass ended; may be called again."""
        if self._span.is_recording():
            self._span.end()


class StreamTrace:
    """The span of one stream, and one below it for each request that waits for its answer."""

    def __init__(self, made_by: Tracing) -> None:
        self._tracing = made_by
        self._span = made_by.start("thinrow.stream", {})
        self._asked: deque[Span] = deque()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with the stream's call."""
        return self._tracing.metadata(self._span)

    def asked(self, cursor: int, tenant: str, examples: int) -> str:
        """Says that a request is being sent; returns the `traceparent` to send along."""
        attributes = {**span_attributes(tenant, examples), "thinrow.cursor": cursor}
        span = self._tracing.start("thinrow.request", attributes, parent=self._span)
        self._asked.append(span)
        return dict(self._tracing.metadata(span)).get("traceparent", "")

    def answered(self, answer: Response) -> None:
        """Says that the oldest request was answered."""
        span = self._asked.popleft()
        span.set_attributes(
            {"thinrow.server_us": answer.server_us, "thinrow.generation": answer.generation}
        )
        span.end()

    def end(self) -> None:
        """Says that the stream ended; may be called again."""
        while self._asked:
            self._tracing.fail(self._asked.popleft(), "not answered on this stream")
        if self._span.is_recording():
            self._span.end()


def span_attributes(tenant: str, examples: int) -> dict[str, AttributeValue]:
    """What spans say of a request."""
    return {"thinrow.tenant": tenant, "thinrow.examples": examples}


def traced_call(method: Callable[..., T], tenant: str, examples: int) -> Callable[..., T]:
    """A unary call with a span of its own, each time it is made; itself where nobody traces."""
    spans = tracing("thinrow-client")
    if spans is None:
        return method

    def call(request: bytes, *, metadata: Any, **options: Any) -> T:  # noqa: ANN401
        with spans.calling("thinrow.request", span_attributes(tenant, examples)) as span:
            return method(request, metadata=(*metadata, *spans.metadata(span)), **options)

    return call
