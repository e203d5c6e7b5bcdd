"""Tokens and limits by tenant for a service whose methods know nothing of either."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
    from thinrow.access.gate import Caller, Gate
    from thinrow.access.metrics import ServiceMetrics

    Way = tuple[str, ...]
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.ServicerContext


class Guard(grpc.ServerInterceptor):
    """Stands before every method of a service, also before those that it gets later.

    rights: what a token must allow for each method that asks for no history, None for nothing.
    All other methods ask as the tenant that their requests name.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        rights: Mapping[str, str | None],
        gate: Gate,
        metrics: ServiceMetrics,
    ) -> None:
        self._gate = gate
        self._methods = {
            f"/{service.full_name}/{method.name}": Method(method, rights, gate, metrics)
            for method in service.methods
        }

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """As the library wants it."""
        handler = continuation(handler_call_details)
        method = self._methods.get(handler_call_details.method)
        if handler is None or method is None:
            return handler
        if not self._gate.tenants.by_name:
            return method.counted(handler) if method.streams else handler
        return method.guarded(handler)


class Method:
    """One method, and what its callers must prove."""

    def __init__(
        self,
        method: MethodDescriptor,
        rights: Mapping[str, str | None],
        gate: Gate,
        metrics: ServiceMetrics,
    ) -> None:
        self.streams = method.client_streaming or method.server_streaming
        self._gate = gate
        self._metrics = metrics
        self._right = rights.get(method.name)
        self._request = GetMessageClass(method.input_type)
        self._ways = () if method.name in rights else ways_to_tenants(method.input_type)
        if method.name not in rights and not self._ways:
            raise AssertionError(f"{method.full_name} names no tenant: say what right it takes")

    def counted(self, handler: Handler) -> Handler:
        """A method of streams, which are counted."""

        def wrapped(answers: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            def counting(request: Any, context: Context) -> Iterator[Any]:  # noqa: ANN401
                with self._metrics.streams.track_inprogress():
                    yield from answers(request, context)

            return counting

        return with_streams(handler, wrapped)

    def guarded(self, handler: Handler) -> Handler:
        """The method, for callers who may."""
        if handler.unary_unary is not None:
            answer = handler.unary_unary

            def single(request: Any, context: Context) -> Any:  # noqa: ANN401
                with self._entered(context) as caller:
                    self._check(caller, request)
                    return answer(request, context)

            return grpc.unary_unary_rpc_method_handler(
                single, handler.request_deserializer, handler.response_serializer
            )

        def wrapped(answers: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            def several(asked: Any, context: Context) -> Iterator[Any]:  # noqa: ANN401
                with self._entered(context) as caller:
                    if handler.request_streaming:
                        checked = Checked(self._check, caller, asked, context)
                        yield from answers(iter(checked), context)
                        checked.end()
                    else:
                        self._check(caller, asked)
                        yield from answers(asked, context)

            return several

        return with_streams(handler, wrapped)

    @contextmanager
    def _entered(self, context: Context) -> Iterator[Caller]:
        with (
            self._gate.answering(context) as caller,
            self._gate.named_place(caller, is_stream=self.streams),
        ):
            yield caller

    def _check(self, caller: Caller, request: Any) -> None:  # noqa: ANN401
        """Raises PermissionDeniedError for what the caller may not ask."""
        if caller.holder is None:
            return
        if self._right is not None:
            self._gate.tenants.require(caller.holder, self._right)
        if isinstance(request, ThinRowError):
            return  # of a message that was not decoded; the method raises it
        if isinstance(request, bytes):
            request = self._request.FromString(request)
        for way in self._ways:
            for tenant in named(request, way):
                self._gate.tenants.asking(caller.holder, tenant)


class Checked:
    """The requests of a stream, up to the first that its caller may not make.

    What came before is answered still; `end` then raises why the stream ends.
    """

    def __init__(
        self,
        check: Callable[[Caller, Any], None],
        caller: Caller,
        requests: Iterator[Any],
        context: Context,
    ) -> None:
        self._check = check
        self._caller = caller
        self._requests = requests
        self._context = context
        self._error: ThinRowError | None = None

    def __iter__(self) -> Iterator[Any]:
        caller = self._caller
        for request in self._requests:
            try:
                # Again, for a token may have been withdrawn since.
                caller.ask(self._context)
                self._check(caller, request)
            except ThinRowError as error:
                self._error = error
                return
            yield request

    def end(self) -> None:
        """Raises what ended the stream before its caller did."""
        if self._error is not None:
            raise self._error


def with_streams(
    handler: Handler,
    wrapped: Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]],
) -> Handler:
    """A handler of streams whose behaviour is wrapped."""
    decode, encode = handler.request_deserializer, handler.response_serializer
    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(wrapped(handler.stream_stream), decode, encode)
    assert handler.unary_stream is not None, "streams with one answer have no guard"
    return grpc.unary_stream_rpc_method_handler(wrapped(handler.unary_stream), decode, encode)


def ways_to_tenants(request: Descriptor) -> tuple[Way, ...]:
    """The fields that lead to each part of a request that names a tenant."""
    if "tenant" in request.fields_by_name:
        return ((),)
    return tuple(
        (field.name, *way)
        for field in request.fields
        if field.message_type is not None
        for way in ways_to_tenants(field.message_type)
    )


def named(request: Any, way: Way) -> Iterator[str]:  # noqa: ANN401
    """The tenants named at the end of a way; a part that was left out names none, ""."""
    if not way:
        yield request.tenant
        return
    part = getattr(request, way[0])
    for each in [part] if isinstance(part, Message) else part:
        yield from named(each, way[1:])
