"""The gRPC server of a service: threads, options, health, reflection and drain."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from thinrow.access.address import split_address
from thinrow.access.admission import CallAdmission
from thinrow.access.config import UTILITY_THREADS, WINDOW_BYTES
from thinrow.access.delayed_rejections import HELD_MAX
from thinrow.access.drain import StreamDrain
from thinrow.access.health import HEALTH, Health
from thinrow.access.limits import full
from thinrow.access.reflection import add_reflection
from thinrow.access.wire_errors import set_error_status
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from thinrow.access.config import ServiceConfig
    from thinrow.access.delayed_rejections import DelayedRejections
    from thinrow.access.gate import Gate
    from thinrow.access.metrics import ServiceMetrics
    from thinrow.access.tls import Certificates

    Handler = grpc.RpcMethodHandler[Any, Any]

log = logging.getLogger("thinrow.serving")

HANDSHAKE_TIMEOUT_MS = 10_000
"""Longest time from a connection's start to its first frames."""
CONNECTION_IDLE_MS = 300_000
"""A connection without calls for this long is closed; a client's next call opens another."""
PING_INTERVAL_MS_MIN = 5_000
"""Lower bound on the interval between two pings of an idle connection.

Clients may ping every 10 s (docs/operations/operations.md). Half of that is enforced, because the
network can delay one ping more than the next.
"""
KEEPALIVE_INTERVAL_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000
GOAWAY_DELAY_S = 0.2
"""Pause between the first refusals and GOAWAY.

A call that crosses a GOAWAY on the wire is cancelled by gRPC, without a name; in this pause it ends
with UNAVAILABLE, and its client turns to another replica.
"""


class Pool(ThreadPoolExecutor):
    """Threads for calls, and how many of those are taken or waited for."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="thinrow-call")
        self.busy = 0
        self._count = threading.Lock()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """As the library does it."""
        with self._count:
            self.busy += 1
        future = super().submit(*args, **kwargs)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Future[Any]) -> None:
        with self._count:
            self.busy -= 1


class Overload(grpc.ServerInterceptor):
    """Refuses, late and without a thread, calls of services that find all threads taken."""

    def __init__(
        self,
        services: Iterable[str],
        pool: Pool,
        threads: int,
        refusals: DelayedRejections,
        metrics: ServiceMetrics,
    ) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._pool = pool
        self._threads = threads
        self._metrics = metrics

        def behave(
            _: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[None], None]
        ) -> None:
            error = full("calls_max and streams_max")
            self._metrics.failed(error.name, "")
            set_error_status(context, error)
            refusals.hold(lambda: send(None))

        behave.experimental_non_blocking = True  # type: ignore[attr-defined]
        behave.experimental_thread_pool = ThreadPoolExecutor(1)  # type: ignore[attr-defined]
        self._refusal: Handler = grpc.stream_stream_rpc_method_handler(behave)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """As the library wants it."""
        if self._pool.busy < self._threads:
            return continuation(handler_call_details)
        if not handler_call_details.method.startswith(self._prefixes):
            return continuation(handler_call_details)
        return self._refusal


@contextmanager
def grpc_server(
    config: ServiceConfig,
    services: Mapping[str, Callable[[grpc.Server], None]],
    gate: Gate,
    refusals: DelayedRejections,
    metrics: ServiceMetrics,
    *,
    drain: Callable[[], None],
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    certificates: Certificates | None = None,
    reuse_port: bool = False,
) -> Iterator[str]:
    """Serves gRPC, with health and reflection, until the block ends; yields HOST:PORT.

    `services` has for each service's full name what adds its servicer. Each call under way, streams
    among them, has a thread. At the end health reports NOT_SERVING, `drain` makes the service
    refuse new requests, idle streams end, and every connection gets a GOAWAY. Calls under way have
    `config.drain_s` to finish.

    Raises:
        UsageError: the port cannot be had.
    """
    host, _ = split_address(config.listen)
    calls_max = config.calls_max + config.streams_max
    threads = config.call_threads
    health_service, streams = Health(services), StreamDrain()
    with (
        Pool(threads) as pool,
        closing(CallAdmission(services, config, gate, refusals, metrics)) as admission,
    ):
        server = grpc.server(
            pool,
            # Those beyond the threads are being refused.
            maximum_concurrent_rpcs=threads + HELD_MAX + UTILITY_THREADS,
            interceptors=[
                Overload(services, pool, threads, refusals, metrics),
                admission,
                streams,
                *interceptors,
            ],
            options=[
                ("grpc.so_reuseport", int(reuse_port)),
                ("grpc.max_receive_message_length", config.request_bytes_max),
                # One connection cannot have every thread: what is more waits in its client.
                ("grpc.max_concurrent_streams", calls_max),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
                ("grpc.max_connection_idle_ms", CONNECTION_IDLE_MS),
                ("grpc.max_allowed_incoming_connections", config.connections_max),
                # A window that grows by itself takes in much of a request before it is refused.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
                # Answers are bounded before they are built.
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
                ("grpc.keepalive_permit_without_calls", 1),
                # A client that vanished would keep its stream's place for hours.
                ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ],
        )
        for add in services.values():
            add(server)
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        if config.reflection:
            add_reflection(server, (*services, HEALTH))
        try:
            if certificates is None:
                port = server.add_insecure_port(config.listen)
            else:
                port = server.add_secure_port(config.listen, certificates.credentials())
        except RuntimeError as error:
            raise UsageError(
                f"Cannot listen on {config.listen}; choose another --listen HOST:PORT."
            ) from error
        server.start()

        health_service.set(health_pb2.HealthCheckResponse.SERVING)
        try:
            yield f"{host}:{port}"
        finally:
            health_service.set(health_pb2.HealthCheckResponse.NOT_SERVING)
            log.info("draining", extra={"drain_s": config.drain_s})
            drain()
            admission.drain()
            streams.drain()
            refusals.close()
            time.sleep(GOAWAY_DELAY_S)
            stopped = server.stop(config.drain_s)
            admission.stop()
            health_service.end_watches()
            stopped.wait()
            log.info("stopped")
