"""The metrics port: stuck and slow peers take few threads, and lock out nobody."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Gauge
from thinrow.access import http_server
from thinrow.access.address import split_address
from thinrow.access.config import HTTP_CONNECTIONS_MAX
from thinrow.access.metrics_endpoint import MetricsEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

PEERS = 4 * HTTP_CONNECTIONS_MAX
DEADLINE_S = 60.0


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsEndpoint]:
    """An endpoint where connections may give way at once, with a page larger than any buffer."""
    monkeypatch.setattr(http_server, "HTTP_GRACE_S", 0.0)
    registry = CollectorRegistry()
    gauge = Gauge("padded", "A series of many bytes.", ["label"], registry=registry)
    for number in range(8):
        gauge.labels(f"{number}" * (1 << 20)).set(1)
    made = MetricsEndpoint(registry, "127.0.0.1:0")
    yield made
    made.close()


def threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def connected(endpoint: MetricsEndpoint, stack: ExitStack, sent: bytes) -> socket.socket:
    peer = stack.enter_context(socket.create_connection(split_address(endpoint.address)))
    peer.sendall(sent)
    return peer


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


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /metrics HT", b"GET /metrics HTTP/1.0\r\nX: ", b"GET /metrics HTTP/1.0\r\n\r\n"],
    ids=["silent", "half a line", "half a header", "reads nothing"],
)
def test_stuck_peers_take_few_threads_and_give_way(endpoint: MetricsEndpoint, sent: bytes) -> None:
    with ExitStack() as stack:
        most = 0
        for _ in range(PEERS):
            connected(endpoint, stack, sent)
            most = max(most, threads())
        check_scrapes(endpoint)
        # One that was ended may still be on its way out.
        assert max(most, threads()) <= HTTP_CONNECTIONS_MAX + 2


def test_a_peer_that_drips_is_ended(
    endpoint: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HTTP_TIMEOUT_S", 0.5)
    with ExitStack() as stack:
        peer = connected(endpoint, stack, b"GET /metrics HTTP/1.0\r\n")
        peer.settimeout(DEADLINE_S)
        stop = threading.Event()

        def drip() -> None:
            try:
                while not stop.wait(0.1):
                    peer.sendall(b"X")
            except OSError:
                return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert peer.recv(1) == b"", "ended by the server, without an answer"
        except ConnectionResetError:
            pass
        finally:
            stop.set()
            dripping.join()
        check_all_ended()


def test_a_head_without_an_end_is_read_to_a_limit(endpoint: MetricsEndpoint) -> None:
    with ExitStack() as stack:
        head = b"GET /metrics HTTP/1.0\r\n" + b"X: " + b"y" * (1 << 20)
        peer = stack.enter_context(socket.create_connection(split_address(endpoint.address)))
        peer.settimeout(DEADLINE_S)
        with suppress(OSError):  # the server ends it while more is sent
            peer.sendall(head)
            peer.recv(64)
        check_scrapes(endpoint)
        check_all_ended()


def test_young_connections_do_not_give_way(
    endpoint: MetricsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HTTP_GRACE_S", DEADLINE_S)
    with ExitStack() as stack:
        first = connected(endpoint, stack, b"GET /nothing HTTP/1.0\r\n")
        for _ in range(HTTP_CONNECTIONS_MAX - 1):
            connected(endpoint, stack, b"")
        end_s = time.monotonic() + DEADLINE_S
        while threads() < HTTP_CONNECTIONS_MAX and time.monotonic() < end_s:
            time.sleep(0.01)
        late = connected(endpoint, stack, b"")
        late.settimeout(DEADLINE_S)
        assert late.recv(1) == b"", "no place"
        first.sendall(b"\r\n")
        assert first.recv(16).startswith(b"HTTP/1.0 404")
