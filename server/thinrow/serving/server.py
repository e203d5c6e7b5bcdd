"""A server's life: open the store, listen, drain, close."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from thinrow.errors import InputError, RequestError, UsageError
from thinrow.serving.config import ServerConfig, read_tenants
from thinrow.serving.current import CurrentGeneration
from thinrow.serving.metrics import Metrics, MetricsEndpoint, split_address
from thinrow.serving.projection import resolve_tenant
from thinrow.serving.service import MaterializationService
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import materialization_pb2_grpc as wire_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("thinrow.serving")

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name
SPARE_THREADS = 8
"""Kept for health, reflection and the refusal of calls over a limit."""
MIN_PING_INTERVAL_MS = 10_000
FAREWELL_S = 0.2
"""Between the last answer and the end of connections."""


class Health(health.HealthServicer):  # type: ignore[misc]
    """Health whose watches can be ended: they are calls, and would hold up every drain."""

    def __init__(self) -> None:
        super().__init__(
            experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1)
        )
        self._ends: dict[grpc.ServicerContext, Callable[[None], None]] = {}

    def Watch(  # noqa: N802 - named by the protocol
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[Any], None],
    ) -> None:
        """As the library does it."""

        def ended() -> None:
            self._ends.pop(context, None)

        self._ends[context] = send_response_callback
        if not context.add_callback(ended):
            ended()
        super().Watch(request, context, send_response_callback)

    def end_watches(self) -> None:
        """Ends them after what they were told last."""
        for end in list(self._ends.values()):
            end(None)


class Server:
    """Serves a store until it is closed; a context manager.

    Raises, when entered:
        StoreError: the store cannot be opened.
        UsageError: a port cannot be had, or the tenants file is wrong.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._stack = ExitStack()
        self.address = config.listen
        """HOST:PORT where gRPC is served, once entered."""
        self.metrics_address: str | None = config.metrics
        """HOST:PORT of the metrics, once entered."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        config = self._config
        tenants = read_tenants(config.tenants)
        host, _ = split_address(config.listen)
        metrics = Metrics()
        current = CurrentGeneration(config.store, config.poll_s, metrics.open_failures.inc)
        self._stack.enter_context(current)
        with current.use() as generation:
            for name, tenant in tenants.items():
                try:
                    resolve_tenant(tenant, generation.schema)
                except RequestError as error:
                    raise InputError(f"{config.tenants}: {name}: {error}") from error
        metrics.follow(lambda: current.number, lambda: current.watermark_ts)
        if config.metrics is not None:
            endpoint = MetricsEndpoint(metrics, config.metrics)
            self._stack.callback(endpoint.close)
            self.metrics_address = endpoint.address
        self._service = MaterializationService(config, current, tenants, metrics)
        self._health = Health()
        self._server = self._grpc_server()
        try:
            port = self._server.add_insecure_port(config.listen)
        except RuntimeError as error:
            raise UsageError(
                f"Cannot listen on {config.listen}; choose another --listen HOST:PORT."
            ) from error
        self.address = f"{host}:{port}"
        self._server.start()
        self._stack.callback(self._drain)
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info(
            "serving",
            extra={
                "address": self.address,
                "metrics": self.metrics_address,
                "generation": current.number,
                "watermark_ts": current.watermark_ts,
            },
        )

    def _grpc_server(self) -> grpc.Server:
        config = self._config
        threads = config.calls_max + config.streams_max + SPARE_THREADS
        pool = ThreadPoolExecutor(threads, thread_name_prefix="thinrow-call")
        server = grpc.server(
            pool,
            maximum_concurrent_rpcs=threads,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", config.request_bytes_max),
                # Answers are bounded by response_bytes_max, before they are built.
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        self._stack.callback(pool.shutdown)
        wire_grpc.add_MaterializationServiceServicer_to_server(self._service, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _set_health(self, status: int) -> None:
        for name in ("", SERVICE):
            self._health.set(name, status)

    def _drain(self) -> None:
        """Takes no new calls, lets those under way end, then stops."""
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        log.info("draining", extra={"drain_s": self._config.drain_s})
        self._service.drain(self._config.drain_s)
        # A connection that is closed while its last bytes are under way may lose them.
        time.sleep(FAREWELL_S)
        stopped = self._server.stop(self._config.drain_s)
        self._health.end_watches()
        stopped.wait()
        log.info("stopped")
