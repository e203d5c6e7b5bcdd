"""The HTTP port of a server: metrics for Prometheus, a status page for people."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from prometheus_client import make_wsgi_app
from thinrow.access.address import split_address
from thinrow.access.http_server import HttpServer
from thinrow.access.status_page import StatusPage
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

__all__ = ["MetricsEndpoint"]


class MetricsEndpoint:
    """The HTTP port: /metrics for Prometheus, / and /status for people."""

    def __init__(self, registry: CollectorRegistry, listen: str) -> None:
        """Opens the port. Raises UsageError where it cannot be had."""
        host, port = split_address(listen)
        try:
            self._server = HttpServer(host.strip("[]"), port)
        except OSError as error:
            raise UsageError(
                f"Cannot listen on {listen} for metrics ({error.strerror}); choose another "
                f"--metrics HOST:PORT."
            ) from error
        pages = {"/metrics": make_wsgi_app(registry)}
        pages["/"] = pages["/status"] = StatusPage(registry.collect)

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
            page = pages.get(environ["PATH_INFO"])
            if page is not None:
                answer: Iterable[bytes] = page(environ, start_response)
                return answer
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There are /metrics and /status.\n"]

        self._server.set_app(app)
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="thinrow-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
