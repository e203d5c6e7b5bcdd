"""The health service. It keeps nothing that callers choose, and no peer can hold it up."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["HEALTH", "UNKNOWN", "Health"]

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Reports a status of the server, named "", and one of all its services.

    They differ while the server is up and its services are not ready: one that waits must not be
    restarted for it.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = frozenset(("", *services))
        self._server_status: int = health_pb2.HealthCheckResponse.NOT_SERVING
        self._services_status: int = health_pb2.HealthCheckResponse.NOT_SERVING
        self._has_ended = False
        self._changed = threading.Condition()

    def set(self, status: int) -> None:
        """Sets the status of the server and of its services, which watches report."""
        with self._changed:
            self._server_status = self._services_status = status
            self._changed.notify_all()

    def set_services(self, status: int) -> None:
        """Sets the status of the services alone."""
        with self._changed:
            self._services_status = status
            self._changed.notify_all()

    def end_watches(self) -> None:
        """Ends watches, which would hold up every drain, after the status that they sent last."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def Check(  # noqa: N802 - named by the protocol
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Returns the status; NOT_FOUND for a service that is not here."""
        if request.service not in self._names:
            context.abort(grpc.StatusCode.NOT_FOUND, "This server has no service of that name.")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    def Watch(  # noqa: N802 - named by the protocol
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """Yields the status, and each later one."""
        is_known = request.service in self._names
        sent: int | None = None

        def current() -> int:
            return self._status(request.service) if is_known else UNKNOWN

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        if not context.add_callback(wake):
            return
        while True:
            with self._changed:
                while sent == current() and not self._has_ended and context.is_active():
                    self._changed.wait()
                if sent == current() or not context.is_active():
                    return
                sent = current()
            yield health_pb2.HealthCheckResponse(status=sent)

    def _status(self, service: str) -> int:
        return self._services_status if service else self._server_status
