"""A span for each call of a service whose methods make none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.core.tracing import Tracing

    Handler = grpc.RpcMethodHandler[Any, Any]


class Traced(grpc.ServerInterceptor):
    """Continues the trace that a single call's metadata name; streams last too long for a span."""

    def __init__(self, spans: Tracing) -> None:
        self._spans = spans

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """As the library wants it."""
        handler = continuation(handler_call_details)
        name = handler_call_details.method.removeprefix("/")
        if handler is None or handler.unary_unary is None or not name.startswith("thinrow."):
            return handler
        answer = handler.unary_unary

        def traced(request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401
            with self._spans.serving(name, {}, context.invocation_metadata()):
                return answer(request, context)

        return grpc.unary_unary_rpc_method_handler(
            traced, handler.request_deserializer, handler.response_serializer
        )
