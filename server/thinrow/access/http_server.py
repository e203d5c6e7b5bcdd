"""The HTTP server of the metrics port: few connections at once, each for a bounded time."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from io import BytesIO
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from thinrow.access.config import HTTP_CONNECTIONS_MAX

__all__ = [
    "HTTP_ENDING_S",
    "HTTP_GRACE_S",
    "HTTP_HEAD_BYTES_MAX",
    "HTTP_TIMEOUT_S",
    "HttpHandler",
    "HttpServer",
    "end",
]

HTTP_TIMEOUT_S = 10.0
"""Limit on the time from a connection's start to its end."""
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
    """

    daemon_threads = True
    # Where the queue is full, a scrape's connection is only tried again after seconds.
    request_queue_size = socket.SOMAXCONN

    def __init__(self, host: str, port: int) -> None:
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
                if time.monotonic() - started_s >= HTTP_TIMEOUT_S:
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

    timeout = HTTP_TIMEOUT_S

    def setup(self) -> None:
        """Reads the head."""
        super().setup()
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
