"""The gRPC server of a service: threads, options, health, reflection and drain."""

from __future__ import annotations

import logging
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from thinrow.access.address import split_address
from thinrow.access.admission import CallAdmission
from thinrow.access.authorization import AuthInterceptor
from thinrow.access.config import UTILITY_THREADS, WINDOW_BYTES
from thinrow.access.delayed_rejections import HELD_MAX, DelayedRejections
from thinrow.access.health import HEALTH, Health
from thinrow.access.overload import CallPool, OverloadInterceptor
from thinrow.access.quotas import TenantQuotas
from thinrow.access.readiness import Readiness
from thinrow.access.reflection import add_reflection
from thinrow.access.tracing_interceptor import TracingInterceptor
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from thinrow.access.config import ServiceConfig
    from thinrow.access.metrics import ServiceMetrics
    from thinrow.access.tenants import Right, Tenants
    from thinrow.access.tls import Certificates
    from thinrow.core.tracing import Tracing

    Handler = grpc.RpcMethodHandler[Any, Any]

__all__ = [
    "CONNECTION_IDLE_MS",
    "GOAWAY_DELAY_S",
    "HANDSHAKE_TIMEOUT_MS",
    "KEEPALIVE_INTERVAL_MS",
    "KEEPALIVE_TIMEOUT_MS",
    "PING_INTERVAL_MS_MIN",
    "grpc_server",
]

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
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
GOAWAY_DELAY_S = 0.2
"""Pause between the first refusals and GOAWAY.

A call that crosses a GOAWAY on the wire is cancelled by gRPC, without a name; in this pause it ends
with UNAVAILABLE, and its client turns to another replica.
"""


@contextmanager
def grpc_server(
    config: ServiceConfig,
    services: Mapping[str, Callable[[grpc.Server], None]],
    rights: Mapping[str, Right | None],
    tenants: Tenants,
    metrics: ServiceMetrics,
    *,
    is_room_short: Callable[[], bool] = lambda: False,
    readiness: Readiness | None = None,
    tracing: Tracing | None = None,
    certificates: Certificates | None = None,
    reuse_port: bool = False,
) -> Iterator[str]:
    """Serves gRPC, with health and reflection, until the block ends.

    Interceptors do everything that is not particular to a method: overload, admission, identity,
    quotas, tracing, the status of errors and drain. A method raises ThinRowError to end its call.

    At the end health reports NOT_SERVING, idle streams end, new requests are refused, and every
    connection gets a GOAWAY. Calls under way have `config.drain_s` to finish.

    Args:
        config: The limits. Each call under way, streams among them, has a thread.
        services: By full name, the function that adds the service to the server.
        rights: For each method whose requests name no tenant, the right that a token needs.
        tenants: The tenants and their tokens.
        metrics: Counts calls and errors.
        is_room_short: Returns True while requests wait for memory that unread responses may hold;
            calls then end sooner if their response is not read.
        readiness: Reported by health of the services; None for one that is always ready.
        tracing: Makes a span for each single call.
        certificates: Certificates of TLS; None to serve in the clear.
        reuse_port: True if several processes share the port.

    Yields:
        The address, as HOST:PORT.

    Raises:
        UsageError: The port is not available.
    """
    host, _ = split_address(config.listen)
    calls_max = config.calls_max + config.streams_max
    threads = config.call_threads
    health_service, rejections = Health(services), DelayedRejections()
    quotas = TenantQuotas(tenants, metrics)
    with (
        closing(rejections),
        CallPool(threads) as pool,
        closing(
            CallAdmission(services, config, tenants, quotas, rejections, metrics, is_room_short)
        ) as admission,
    ):
        server = grpc.server(
            pool,
            # Those beyond the threads are being rejected.
            maximum_concurrent_rpcs=threads + HELD_MAX + UTILITY_THREADS,
            interceptors=[
                OverloadInterceptor(services, pool, rejections, metrics),
                admission,
                *([] if tracing is None else [TracingInterceptor(tracing, services)]),
                AuthInterceptor(services, rights, tenants, quotas),
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

        def report(is_ready: bool) -> None:
            health_service.set_services(SERVING if is_ready else NOT_SERVING)
            metrics.set_ready(is_ready)

        health_service.set(SERVING)
        try:
            with (readiness or Readiness()).reported(report):
                yield f"{host}:{port}"
        finally:
            health_service.set(NOT_SERVING)
            log.info("draining", extra={"drain_s": config.drain_s})
            metrics.set_ready(False)
            admission.drain()
            rejections.close()
            time.sleep(GOAWAY_DELAY_S)
            stopped = server.stop(config.drain_s)
            admission.stop()
            health_service.end_watches()
            stopped.wait()
            log.info("stopped")
