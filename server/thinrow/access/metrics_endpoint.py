"""The HTTP port of a server: metrics for Prometheus, a status page for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import make_wsgi_app
from thinrow.access.http_server import HTTP_TIMEOUT_S, HttpEndpoint, get_only
from thinrow.access.status_page import StatusPage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

__all__ = ["MetricsEndpoint"]


class MetricsEndpoint(HttpEndpoint):
    """The HTTP port: /metrics for Prometheus, / and /status for people."""

    def __init__(
        self, registry: CollectorRegistry, listen: str, timeout_s: float = HTTP_TIMEOUT_S
    ) -> None:
        """Opens the port. Raises UsageError where it cannot be had."""
        pages = {"/metrics": make_wsgi_app(registry)}
        pages["/"] = pages["/status"] = get_only(StatusPage(registry.collect))

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
            page = pages.get(environ["PATH_INFO"])
            if page is not None:
                answer: Iterable[bytes] = page(environ, start_response)
                return answer
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There are /metrics and /status.\n"]

        super().__init__(app, listen, "--metrics", timeout_s)
