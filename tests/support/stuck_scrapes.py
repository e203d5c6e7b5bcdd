"""A metrics port with a large page, its threads, and peers that keep its connections."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from unittest import mock

from prometheus_client import CollectorRegistry, Gauge
from thinrow.access import http_server
from thinrow.access.address import split_address
from thinrow.access.config import HTTP_CONNECTIONS_MAX
from thinrow.access.metrics_endpoint import MetricsEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

PEERS = 4 * HTTP_CONNECTIONS_MAX
DEADLINE_S = 60.0
THREADS_MAX = HTTP_CONNECTIONS_MAX + 2
"""A connection that was ended may still be on its way out."""
STUCK = {
    "silent": b"",
    "half a line": b"GET /metrics HT",
    "half a header": b"GET /metrics HTTP/1.0\r\nX: ",
    "reads nothing": b"GET /metrics HTTP/1.0\r\n\r\n",
}
ENDLESS_HEAD = b"GET /metrics HTTP/1.0\r\n" + b"X: " + b"y" * (1 << 20)


@contextmanager
def padded_endpoint(timeout_s: float = http_server.HTTP_TIMEOUT_S) -> Iterator[MetricsEndpoint]:
    """An endpoint where connections may give way at once, with a page larger than any buffer."""
    registry = CollectorRegistry()
    gauge = Gauge("padded", "A series of many bytes.", ["label"], registry=registry)
    for number in range(8):
        gauge.labels(f"{number}" * (1 << 20)).set(1)
    with mock.patch.object(http_server, "HTTP_GRACE_S", 0.0):
        made = MetricsEndpoint(registry, "127.0.0.1:0", timeout_s)
        try:
            yield made
        finally:
            made.close()


def threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def connected(endpoint: MetricsEndpoint, stack: ExitStack, sent: bytes) -> socket.socket:
    peer = stack.enter_context(socket.create_connection(split_address(endpoint.address)))
    peer.settimeout(DEADLINE_S)
    peer.sendall(sent)
    return peer


def send_endless_head(endpoint: MetricsEndpoint, stack: ExitStack) -> None:
    peer = connected(endpoint, stack, b"")
    with suppress(OSError):  # the server ends it while more is sent
        peer.sendall(ENDLESS_HEAD)
        peer.recv(64)


def check_scrapes(endpoint: MetricsEndpoint) -> None:
    for path in ("metrics", "status"):
        address = f"http://{endpoint.address}/{path}"
        with urllib.request.urlopen(address, timeout=DEADLINE_S) as page:
            assert page.status == 200
            assert b"padded" in page.read() or path == "status"


def check_all_ended() -> None:
    end_s = time.monotonic() + DEADLINE_S
    while threads() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not threads()
