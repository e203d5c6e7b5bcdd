"""The metrics port: stuck and slow peers take few threads, and lock out no one."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.stuck_scrapes import (
    DEADLINE_S,
    PEERS,
    STUCK,
    THREADS_MAX,
    check_all_ended,
    check_scrapes,
    connected,
    padded_endpoint,
    send_endless_head,
    threads,
)
from thinrow.access import http_server
from thinrow.access.config import HTTP_CONNECTIONS_MAX
from thinrow.access.metrics_endpoint import MetricsEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.access.metrics_endpoint import MetricsEndpoint


@pytest.fixture
def endpoint() -> Iterator[MetricsEndpoint]:
    with padded_endpoint() as made:
        yield made


@pytest.mark.parametrize("sent", STUCK.values(), ids=STUCK)
def test_stuck_peers_take_few_threads_and_give_way(endpoint: MetricsEndpoint, sent: bytes) -> None:
    with ExitStack() as stack:
        most = 0
        for _ in range(PEERS):
            connected(endpoint, stack, sent)
            most = max(most, threads())
        check_scrapes(endpoint)
        assert max(most, threads()) <= THREADS_MAX


def test_a_peer_that_drips_is_ended() -> None:
    with padded_endpoint(timeout_s=0.5) as endpoint, ExitStack() as stack:
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


def test_a_head_without_an_end_is_read_to_a_limit() -> None:
    with padded_endpoint(timeout_s=3.0) as endpoint, ExitStack() as stack:
        send_endless_head(endpoint, stack)
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
