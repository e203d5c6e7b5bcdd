"""A span for each call with one request; methods of streams open one for each message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor_pool import Default

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from thinrow.access.identity import CallContext
    from thinrow.core.tracing import Tracing

    Handler = grpc.RpcMethodHandler[Any, Any]

__all__ = ["TracingInterceptor"]


class TracingInterceptor(grpc.ServerInterceptor):
    """Continues the trace that a single call's metadata names; streams last too long for a span.

    Args:
        tracing: Makes the spans.
        services: Full names of the services.
    """

    def __init__(self, tracing: Tracing, services: Collection[str]) -> None:
        self._tracing = tracing
        self._single = {
            f"/{service}/{method.name}"
            for service in services
            for method in Default().FindServiceByName(service).methods
            if not (method.client_streaming or method.server_streaming)
        }

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Implements grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method not in self._single:
            return handler
        name, respond = handler_call_details.method.removeprefix("/"), handler.stream_stream
        assert respond is not None, "AuthInterceptor makes every method one of streams"

        def traced(requests: Iterator[Any], context: CallContext) -> Iterator[Any]:
            with self._tracing.serving(name, {}, context.metadata) as context.span:
                yield from respond(requests, context)  # type: ignore[arg-type]

        return grpc.stream_stream_rpc_method_handler(
            traced,
            handler.request_deserializer,
            handler.response_serializer,
        )
