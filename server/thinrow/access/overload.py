"""Rejection of calls that would need a thread when all are busy."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.access.concurrency_limit import server_limit_error
from thinrow.access.wire_errors import set_error_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from thinrow.access.delayed_rejections import DelayedRejections
    from thinrow.access.metrics import ServiceMetrics

    Handler = grpc.RpcMethodHandler[Any, Any]

__all__ = ["CallPool", "OverloadInterceptor"]


class CallPool(ThreadPoolExecutor):
    """Threads for calls, with the number of those that are busy or waited for."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="thinrow-call")
        self.threads = threads
        self.busy = 0
        self._count = threading.Lock()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Implements ThreadPoolExecutor, and counts the call as busy until it ends."""
        with self._count:
            self.busy += 1
        future = super().submit(*args, **kwargs)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Future[Any]) -> None:
        with self._count:
            self.busy -= 1


class OverloadInterceptor(grpc.ServerInterceptor):
    """Rejects calls of services while all threads are busy: late, and without a thread."""

    def __init__(
        self,
        services: Iterable[str],
        pool: CallPool,
        rejections: DelayedRejections,
        metrics: ServiceMetrics,
    ) -> None:
        self._prefixes = tuple(f"/{service}/" for service in services)
        self._pool = pool

        def reject(
            _: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[None], None]
        ) -> None:
            error = server_limit_error("calls_max and streams_max")
            metrics.failed(error.name, "")
            set_error_status(context, error)
            rejections.hold(lambda: send(None))

        reject.experimental_non_blocking = True  # type: ignore[attr-defined]
        reject.experimental_thread_pool = ThreadPoolExecutor(1)  # type: ignore[attr-defined]
        self._rejection: Handler = grpc.stream_stream_rpc_method_handler(reject)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Implements grpc.ServerInterceptor."""
        if self._pool.busy < self._pool.threads:
            return continuation(handler_call_details)
        if not handler_call_details.method.startswith(self._prefixes):
            return continuation(handler_call_details)
        return self._rejection
