"""Admission of every call of a server: its places, its tenant, and bounded waits for its peer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError
from thinrow.access.config import OPENING_MAX, UTILITY_CALLS_MAX, UTILITY_THREADS
from thinrow.access.peers import (
    OPENING_S_MIN,
    PeerCall,
    PeerPlaces,
)
from thinrow.access.wire_errors import set_error_status
from thinrow.errors import RequestError, ThinRowError, TooManyCallsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from thinrow.access.config import ServiceConfig
    from thinrow.access.delayed_rejections import DelayedRejections
    from thinrow.access.gate import Gate
    from thinrow.access.metrics import ServiceMetrics

    Handler = grpc.RpcMethodHandler[Any, Any]
    Send = Callable[[bytes | None], None]

UTILITY_WAIT_S = 5.0
"""Longest wait for the peer of a call of health or reflection."""
CHECK_INTERVAL_S = 0.5
"""Interval at which waits for peers are compared with their limits."""


class CallAdmission(grpc.ServerInterceptor):
    """Wraps every method, so that no call holds a place of others while it waits for its peer.

    A call of a service takes a place among `calls_max` or `streams_max` once its first request has
    arrived; a call with a token counts as its tenant's from its start. Calls of health and
    reflection have threads and places of their own.
    """

    def __init__(
        self,
        services: Collection[str],
        config: ServiceConfig,
        gate: Gate,
        refusals: DelayedRejections,
        metrics: ServiceMetrics,
    ) -> None:
        self._config = config
        self._gate = gate
        self._refusals = refusals
        self._metrics = metrics
        self._opening = PeerPlaces(OPENING_MAX, "calls_max", idle_s_min=OPENING_S_MIN)
        self._calls = PeerPlaces(config.calls_max, "calls_max")
        self._streams = PeerPlaces(config.streams_max, "streams_max")
        self._utility = PeerPlaces(
            UTILITY_CALLS_MAX,
            "calls of health",
            idle_s_min=OPENING_S_MIN,
            sending_s_min=OPENING_S_MIN,
            at_work=True,
        )
        self._utility_pool = ThreadPoolExecutor(UTILITY_THREADS, "thinrow-utility")
        self._is_stream = {
            f"/{service}/{method.name}": method.client_streaming or method.server_streaming
            for service in services
            for method in Default().FindServiceByName(service).methods
        }
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thinrow-peers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the thread that compares waits with their limits, and health's threads."""
        self._stopping.set()
        self._thread.join()
        self._utility_pool.shutdown()

    def drain(self) -> None:
        """Refuses calls of services from now on, and ends every call that owes no answer."""
        self._opening.close()
        self._utility.end_idle()

    def stop(self) -> None:
        """Ends calls of health and reflection that opened since `drain` and owe no answer."""
        self._utility.close()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Implements grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        # Without a place: a method of health or reflection.
        is_stream = self._is_stream.get(method)

        def behave(requests: Iterator[bytes], context: grpc.ServicerContext, send: Send) -> None:
            call = PeerCall(requests, context, send)
            with ExitStack() as places:
                try:
                    if is_stream is None:
                        places.enter_context(self._utility.held_by(call))
                    else:
                        self._admit(call, context, places, is_stream=is_stream)
                except ThinRowError as error:
                    self._metrics.failed(error.name, call.tenant)
                    self._reject(error, call, context, send)
                    return
                try:
                    answer(handler, method, call, context)
                except ThinRowError as error:
                    if not isinstance(error, TooManyCallsError):  # which the gate has counted
                        self._metrics.failed(error.name, call.tenant)
                    self._reject(error, call, context, send)
                except Exception:
                    # A status that was sent already is the only one a call can have.
                    if call.claim_status():
                        raise

        # The library then hands over `send`, with which another thread can end the call.
        behave.experimental_non_blocking = True  # type: ignore[attr-defined]
        if is_stream is None:
            behave.experimental_thread_pool = self._utility_pool  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(behave)

    def _admit(
        self, call: PeerCall, context: grpc.ServicerContext, places: ExitStack, *, is_stream: bool
    ) -> None:
        """Waits for the call's first request, and takes its places.

        Raises:
            UnauthenticatedError: The token is missing or unknown.
            TooManyCallsError: The server or the tenant is at its limit.
            DeadlineError: The request did not arrive in time.
        """
        tenant = self._gate.tenants.caller(context.invocation_metadata())
        if tenant is not None:
            call.tenant = tenant
            places.enter_context(self._gate.tenant_place(tenant, is_stream=is_stream))
        with self._opening.held_by(call):
            call.receive_first()
        places.enter_context((self._streams if is_stream else self._calls).held_by(call))

    def _reject(
        self, error: ThinRowError, call: PeerCall, context: grpc.ServicerContext, send: Send
    ) -> None:
        """Ends a call with an error; with a delay if it is at a limit."""
        if not call.claim_status():
            return
        set_error_status(context, error)
        if isinstance(error, TooManyCallsError):
            self._refusals.hold(lambda: send(None))
        else:
            send(None)

    def _run(self) -> None:
        config = self._config
        limits_s = {
            self._opening: config.first_request_s,
            self._calls: config.idle_s,
            self._streams: config.idle_s,
            self._utility: UTILITY_WAIT_S,
        }
        interval_s = min(CHECK_INTERVAL_S, *limits_s.values())
        while not self._stopping.wait(interval_s):
            for places, limit_s in limits_s.items():
                places.end_overdue(limit_s)


def answer(handler: Handler, method: str, call: PeerCall, context: grpc.ServicerContext) -> None:
    """Answers a call with a handler of any kind.

    Raises:
        RequestError: The bytes of the request are no message of its type, or there is none.
    """
    decode, encode = handler.request_deserializer or bytes, handler.response_serializer or bytes

    def decoded(request: bytes) -> Any:  # noqa: ANN401 - of any method
        try:
            return decode(request)
        except DecodeError as error:
            raise RequestError(f"The bytes sent are no request of {method}.") from error

    def send(message: Any) -> None:  # noqa: ANN401
        call.send(None if message is None else encode(message))

    requests = map(decoded, call)
    argument = requests if handler.request_streaming else only(requests, method)
    if not handler.response_streaming:
        send((handler.stream_unary or handler.unary_unary)(argument, context))  # type: ignore[misc]
        send(None)
        return
    handle: Any = handler.stream_stream or handler.unary_stream
    if getattr(handle, "experimental_non_blocking", False):
        handle(argument, context, send)
        return
    with closing(handle(argument, context)) as answers:
        for each in answers:
            send(each)
            if not context.is_active():
                return
    send(None)


def only(requests: Iterator[Any], method: str) -> Any:  # noqa: ANN401 - of any method
    """The request of a call that has one. Raises RequestError if there is none."""
    for request in requests:
        return request
    raise RequestError(f"The call ended without its request of {method}.")
