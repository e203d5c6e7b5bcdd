"""The HTTP server of pages and metrics: few connections at once, each for a bounded time."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from io import BytesIO
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from thinrow.access.address import split_address
from thinrow.access.config import HTTP_CONNECTIONS_MAX
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

__all__ = [
    "HTTP_ENDING_S",
    "HTTP_GRACE_S",
    "HTTP_HEAD_BYTES_MAX",
    "HTTP_TIMEOUT_S",
    "HttpEndpoint",
    "HttpHandler",
    "HttpServer",
    "end",
    "get_only",
    "respond",
]

HTTP_TIMEOUT_S = 10.0
"""Limit on the time from a connection's start to its end, where a page sets no other."""
HTTP_GRACE_S = 1.0
"""Time that a connection has before it gives way to a new one, where all places are taken."""
HTTP_ENDING_S = 1.0
"""Time to wait until a connection that gives way has ended."""
HTTP_HEAD_BYTES_MAX = 16 * 1024
"""Limit on the bytes of a request's line and headers."""


class HttpServer(ThreadingMixIn, WSGIServer):
    """A thread for each connection, HTTP_CONNECTIONS_MAX at most.

    A connection beyond takes the place of the oldest one. If that is younger than HTTP_GRACE_S,
    the new connection is closed.

    Args:
        host: Address to listen on.
        port: Port; 0 for a free one.
        timeout_s: Limit on the time from a connection's start to its end.
    """

    daemon_threads = True
    # Where the queue is full, a scrape's connection is only tried again after seconds.
    request_queue_size = socket.SOMAXCONN

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._started_s: dict[socket.socket, float] = {}
        self._changed = threading.Condition()
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__((str(address[0]), port), HttpHandler)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ANN401, ARG002
        """Gives a new connection its place; False closes it."""
        with self._changed:
            if not self._has_room():
                oldest, started_s = next(iter(self._started_s.items()))
                if time.monotonic() - started_s < HTTP_GRACE_S:
                    return False
                end(oldest)
                if not self._changed.wait_for(self._has_room, HTTP_ENDING_S):
                    return False
            self._started_s[request] = time.monotonic()
        return True

    def service_actions(self) -> None:
        """Ends connections that took too long; `serve_forever` calls it twice a second."""
        with self._changed:
            for connection, started_s in self._started_s.items():
                if time.monotonic() - started_s >= self.timeout_s:
                    end(connection)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        """Closes a connection and frees its place."""
        with self._changed:
            self._started_s.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Says nothing about connections that broke or were ended."""

    def _has_room(self) -> bool:
        return len(self._started_s) < HTTP_CONNECTIONS_MAX


class HttpHandler(WSGIRequestHandler):
    """Says nothing about requests that went well, and reads no more than a request's head."""

    server: HttpServer

    def setup(self) -> None:
        """Reads the head."""
        super().setup()
        self.connection.settimeout(self.server.timeout_s)
        head = b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < HTTP_HEAD_BYTES_MAX:
            received = self.connection.recv(HTTP_HEAD_BYTES_MAX - len(head))
            if not received:
                break
            head += received
        self.rfile = BytesIO(head)

    def log_message(self, *_: object) -> None:
        """Not a line for each scrape."""


def end(connection: socket.socket) -> None:
    """Ends a connection, which wakes its thread."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class HttpEndpoint:
    """A port that a thread serves until it is closed."""

    def __init__(
        self,
        app: Application,
        listen: str,
        option: str,
        timeout_s: float = HTTP_TIMEOUT_S,
    ) -> None:
        """Opens the port.

        Args:
            app: A WSGI application.
            listen: HOST:PORT; port 0 for a free one.
            option: The option that gave `listen`, for the error's text.
            timeout_s: Limit on the time from a connection's start to its end.

        Raises:
            UsageError: The port is not available.
        """
        host, port = split_address(listen)
        try:
            self._server = HttpServer(host.strip("[]"), port, timeout_s)
        except OSError as error:
            raise UsageError(
                f"Cannot listen on {listen} ({error.strerror}); choose another {option} HOST:PORT."
            ) from error
        self._server.set_app(app)
        self.address = f"{host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="thinrow-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def get_only(app: Application) -> Application:
    """Returns an application that refuses all methods but GET and HEAD, before `app` works."""

    def checked(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD")])
        return [b""]

    return checked


def respond(
    environ: dict[str, Any],
    start_response: Any,  # noqa: ANN401 - as WSGI defines it
    kind: str,
    body: bytes,
    policy: str,
    status: str = "200 OK",
) -> Iterable[bytes]:
    """Answers GET and HEAD with text that no browser keeps, guesses the type of, or embeds.

    Args:
        environ: The request, of WSGI.
        start_response: Takes the head of the answer, of WSGI.
        kind: Media type of the body.
        body: Text in UTF-8.
        policy: Content security policy.
        status: Status of the answer.
    """
    headers = [
        ("Content-Type", f"{kind}; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Content-Security-Policy", f"{policy}; base-uri 'none'; frame-ancestors 'none'"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    ]
    start_response(status, headers)
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
