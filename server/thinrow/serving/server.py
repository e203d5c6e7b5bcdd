"""A server's life: open the store, listen, drain, close."""

from __future__ import annotations

import logging
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from thinrow.errors import UsageError
from thinrow.serving.current import CurrentGeneration
from thinrow.serving.metrics import Metrics, MetricsEndpoint, split_address
from thinrow.serving.service import MaterializationService
from thinrow.serving.tenants import Tenants
from thinrow.serving.tls import Tls
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from thinrow.serving.config import ServerConfig

    Handler = grpc.RpcMethodHandler[Any, Any]

log = logging.getLogger("thinrow.serving")

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name
SPARE_THREADS = 8
"""Kept for health, reflection and the refusal of calls over a limit."""
MIN_PING_INTERVAL_MS = 10_000
WINDOW_BYTES = 1 << 20
"""What a connection takes in before the server has looked at it."""
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


@contextmanager
def listening(
    listen: str,
    services: Mapping[str, Callable[[grpc.Server], None]],
    *,
    calls_max: int,
    request_bytes_max: int,
    drain: Callable[[float], None],
    drain_s: float,
    reuse_port: bool = False,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    tls: Tls | None = None,
    reflected: bool = True,
) -> Iterator[str]:
    """Serves gRPC, with health and reflection, until the block ends; yields HOST:PORT.

    `services` has for each service's full name what adds its servicer. Each of `calls_max` calls at
    once, streams among them, has a thread. At the end health says NOT_SERVING, `drain` refuses
    what comes from now on and waits so many seconds at most for what is under way, and
    connections are closed.

    Raises:
        UsageError: the port cannot be had, or the files of TLS do not serve.
    """
    host, _ = split_address(listen)
    threads = calls_max + SPARE_THREADS
    credentials = None if tls is None else tls.credentials()
    health_service = Health()
    with ThreadPoolExecutor(threads, thread_name_prefix="thinrow-call") as pool:
        server = grpc.server(
            pool,
            maximum_concurrent_rpcs=threads,
            interceptors=list(interceptors),
            options=[
                ("grpc.so_reuseport", int(reuse_port)),
                ("grpc.max_receive_message_length", request_bytes_max),
                # One connection cannot have every thread: what is more waits in its client.
                ("grpc.max_concurrent_streams", calls_max),
                # A window that grows by itself takes in much of a request before it is refused.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
                # Answers are bounded before they are built.
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        for add in services.values():
            add(server)
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        if reflected:
            reflection.enable_server_reflection(
                (*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server
            )
        try:
            if credentials is None:
                port = server.add_insecure_port(listen)
            else:
                port = server.add_secure_port(listen, credentials)
        except RuntimeError as error:
            raise UsageError(
                f"Cannot listen on {listen}; choose another --listen HOST:PORT."
            ) from error
        server.start()

        def tell(status: int) -> None:
            for name in ("", *services):
                health_service.set(name, status)

        tell(health_pb2.HealthCheckResponse.SERVING)
        try:
            yield f"{host}:{port}"
        finally:
            tell(health_pb2.HealthCheckResponse.NOT_SERVING)
            log.info("draining", extra={"drain_s": drain_s})
            drain(drain_s)
            # A connection that is closed while its last bytes are under way may lose them.
            time.sleep(FAREWELL_S)
            stopped = server.stop(drain_s)
            health_service.end_watches()
            stopped.wait()
            log.info("stopped")


class ProcessNames(grpc.ServerInterceptor):
    """Tells the caller of a stream which process answers, and how many share the port.

    By that a client spreads its connections, which the kernel deals out to processes at random.
    """

    def __init__(self, processes: int) -> None:
        self._metadata = (
            ("thinrow-process", secrets.token_hex(8)),
            ("thinrow-processes", str(processes)),
        )

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """As the library wants it."""
        handler = continuation(handler_call_details)
        if handler is None or handler.stream_stream is None:
            return handler
        answers = handler.stream_stream

        def answers_with_name(
            requests: Iterator[Any], context: grpc.ServicerContext
        ) -> Iterator[Any]:
            context.send_initial_metadata(self._metadata)
            return answers(requests, context)

        return grpc.stream_stream_rpc_method_handler(
            answers_with_name, handler.request_deserializer, handler.response_serializer
        )


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
        self.metrics = Metrics()

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
        metrics = self.metrics
        current = CurrentGeneration(
            config.store, config.poll_s, metrics.open_failures.inc, config.cache_bytes_max
        )
        self._stack.enter_context(current)
        tenants = self._stack.enter_context(Tenants(config, current.schema))
        tls = None
        if config.tls_cert is not None and config.tls_key is not None:
            tls = Tls(cert=config.tls_cert, key=config.tls_key, client_ca=config.tls_client_ca)
        elif tenants.guarded:
            log.warning("tokens travel in the clear: serve with TLS, or behind what ends it")
        metrics.follow(lambda: current.number, lambda: current.watermark_ts)
        if config.metrics is not None:
            endpoint = MetricsEndpoint(metrics.registry, config.metrics)
            self._stack.callback(endpoint.close)
            self.metrics_address = endpoint.address
        service = MaterializationService(config, current, tenants, metrics)
        self.address = self._stack.enter_context(
            listening(
                config.listen,
                {SERVICE: service.add_to},
                calls_max=config.calls_max + config.streams_max,
                request_bytes_max=config.request_bytes_max,
                drain=service.drain,
                drain_s=config.drain_s,
                reuse_port=config.processes > 1,
                interceptors=[ProcessNames(config.processes)] if config.processes > 1 else [],
                tls=tls,
                reflected=config.reflection,
            )
        )
        log.info(
            "serving" if config.processes == 1 else "worker serving",
            extra={
                "address": self.address,
                "metrics": self.metrics_address,
                "pid": os.getpid(),
                "generation": current.number,
                "watermark_ts": current.watermark_ts,
            },
        )
