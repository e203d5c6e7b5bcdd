"""The HTTP port of a server: metrics for Prometheus, a status page for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import make_wsgi_app
from thinrow.access.http_server import HTTP_TIMEOUT_S, HttpEndpoint, get_only, respond
from thinrow.access.status_page import StatusPage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from thinrow.access.http_server import Application

__all__ = ["MetricsEndpoint"]


class MetricsEndpoint(HttpEndpoint):
    """The HTTP port: /metrics for Prometheus, / and /status for people, /readyz for probes."""

    def __init__(
        self, registry: CollectorRegistry, listen: str, timeout_s: float = HTTP_TIMEOUT_S
    ) -> None:
        """Opens the port. Raises UsageError where it cannot be had."""
        pages = {"/metrics": make_wsgi_app(registry)}
        pages["/readyz"] = get_only(readiness_page(registry))
        pages["/"] = pages["/status"] = get_only(StatusPage(registry.collect))

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
            page = pages.get(environ["PATH_INFO"])
            if page is not None:
                answer: Iterable[bytes] = page(environ, start_response)
                return answer
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There are /metrics, /status and /readyz.\n"]

        super().__init__(app, listen, "--metrics", timeout_s)


def readiness_page(registry: CollectorRegistry) -> Application:
    """Returns a page whose status is 200 while requests are accepted, and else 503."""

    def page(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
        is_ready = registry.get_sample_value("thinrow_ready") == 1
        status = "200 OK" if is_ready else "503 Service Unavailable"
        body = b"ready\n" if is_ready else b"not ready\n"
        return respond(environ, start_response, "text/plain", body, "default-src 'none'", status)

    return page
