"""Admission of every call of a server: limits, identity, errors, and bounded waits for peers."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import DecodeError
from thinrow.access.config import OPENING_MAX, UTILITY_CALLS_MAX, UTILITY_THREADS
from thinrow.access.identity import CallContext, CallIdentity
from thinrow.access.peers import OPENING_S_MIN, SENDING_S_MIN, PeerCall, PeerPlaces
from thinrow.access.wire_errors import set_error_status
from thinrow.errors import RequestError, StoreError, ThinRowError, TooManyCallsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from thinrow.access.config import ServiceConfig
    from thinrow.access.delayed_rejections import DelayedRejections
    from thinrow.access.metrics import ServiceMetrics
    from thinrow.access.quotas import TenantQuotas
    from thinrow.access.tenants import Tenants

    Handler = grpc.RpcMethodHandler[Any, Any]
    Send = Callable[[bytes | None], None]

__all__ = ["CallAdmission"]

log = logging.getLogger("thinrow.serving")

UTILITY_WAIT_S = 5.0
"""Longest wait for the peer of a call of health or reflection."""
CHECK_INTERVAL_S = 0.5
"""Interval at which waits for peers are compared with their limits."""


class CallAdmission(grpc.ServerInterceptor):
    """Wraps every method, so that no call holds a place of others while it waits for its peer.

    A call of a service takes a place among `calls_max` or `streams_max` once its first request has
    arrived; a call with a token counts against its tenant's quota from its start. An exception of
    the method ends the call with its status. Calls of health and reflection have threads and places
    of their own.

    Args:
        services: Full names of the services.
        config: The limits.
        tenants: The tenants and their tokens.
        quotas: Counts the calls of authenticated tenants.
        rejections: Delays the rejections of calls beyond a limit.
        metrics: Counts errors.
    """

    def __init__(
        self,
        services: Collection[str],
        config: ServiceConfig,
        tenants: Tenants,
        quotas: TenantQuotas,
        rejections: DelayedRejections,
        metrics: ServiceMetrics,
        is_room_short: Callable[[], bool],
    ) -> None:
        self._is_room_short = is_room_short
        self._config = config
        self._tenants = tenants
        self._quotas = quotas
        self._rejections = rejections
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
        """Refuses calls of services from now on, and ends every call once it owes no answer."""
        for places in (self._opening, self._calls, self._streams):
            places.close()
        self._utility.drain()

    def stop(self) -> None:
        """Ends calls of health and reflection that opened since `drain` once they owe no answer."""
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
        # Without a value: a method of health or reflection.
        is_stream = self._is_stream.get(method)

        def behave(requests: Iterator[bytes], context: grpc.ServicerContext, send: Send) -> None:
            call, identity = PeerCall(requests, context, send), CallIdentity(self._tenants)
            with ExitStack() as places:
                try:
                    if is_stream is None:
                        places.enter_context(self._utility.held_by(call))
                        respond(handler, method, call, context)
                        return
                    self._admit(call, identity, context, places, is_stream=is_stream)
                    checked = CallContext(context, identity, call.check_serving)
                    respond(handler, method, call, checked)
                except ThinRowError as error:
                    self._reject(error, call, identity, context, send)
                except Exception as error:
                    # A utility method sets its own status; a cancelled call has one.
                    if is_stream is not None and context.is_active():
                        log.exception("call failed")
                        failure = ThinRowError(f"The server failed ({type(error).__name__}).")
                        self._reject(failure, call, identity, context, send)
                    # A status that was sent already is the only one a call can have.
                    elif call.claim_status():
                        raise

        # The library then hands over `send`, with which another thread can end the call.
        behave.experimental_non_blocking = True  # type: ignore[attr-defined]
        if is_stream is None:
            behave.experimental_thread_pool = self._utility_pool  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(behave)

    def _admit(
        self,
        call: PeerCall,
        identity: CallIdentity,
        context: grpc.ServicerContext,
        places: ExitStack,
        *,
        is_stream: bool,
    ) -> None:
        """Waits for the call's first request, and takes its places.

        Raises:
            UnauthenticatedError: The token is missing or unknown.
            TooManyCallsError: The server or the tenant is at its limit.
            DeadlineError: The request did not arrive in time.
            UnavailableError: The server drains.
        """
        identity.authenticate(context.invocation_metadata())
        if identity.authenticated is not None:
            places.enter_context(self._quotas.admit(identity.effective, is_stream=is_stream))
        with self._opening.held_by(call):
            call.receive_first()
        places.enter_context((self._streams if is_stream else self._calls).held_by(call))

    def _reject(
        self,
        error: ThinRowError,
        call: PeerCall,
        identity: CallIdentity,
        context: grpc.ServicerContext,
        send: Send,
    ) -> None:
        """Ends a call with an error; with a delay if it is at a limit."""
        self._metrics.failed(error.name, identity.effective)
        if isinstance(error, StoreError):
            log.error("store failed", extra={"reason": str(error)})
        if not call.claim_status():
            return
        set_error_status(context, error)
        if isinstance(error, TooManyCallsError):
            self._rejections.hold(lambda: send(None))
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
                unread_s = min(limit_s, SENDING_S_MIN) if self._is_room_short() else limit_s
                places.end_overdue(limit_s, unread_s)


def respond(
    handler: Handler, method: str, call: PeerCall, context: grpc.ServicerContext | CallContext
) -> None:
    """Sends the responses of a handler of any kind.

    Raises:
        RequestError: The bytes of the request are no message of its type, or there is none.
    """
    decode, encode = handler.request_deserializer or bytes, handler.response_serializer or bytes

    def decoded(request: bytes) -> Any:  # noqa: ANN401 - of any method
        try:
            return decode(request)
        except DecodeError as error:
            raise RequestError(f"The bytes sent are no request of {method}.") from error

    requests = map(decoded, call)
    argument = requests if handler.request_streaming else only(requests, method)
    handle: Any = (
        handler.stream_stream or handler.unary_stream or handler.stream_unary or handler.unary_unary
    )
    if handler.response_streaming:
        with closing(handle(argument, context)) as responses:
            for each in responses:
                call.send(encode(each))
                if not context.is_active():
                    return
    else:
        call.send(encode(handle(argument, context)))
    call.send(None)


def only(requests: Iterator[Any], method: str) -> Any:  # noqa: ANN401 - of any method
    """Returns the request of a call that has one.

    Raises:
        RequestError: There is none.
    """
    for request in requests:
        return request
    raise RequestError(f"The call ended without its request of {method}.")
