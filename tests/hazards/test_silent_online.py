"""Online servers that fall silent on a stream, and callers that are slower than their server."""

from __future__ import annotations

import itertools
import threading
from concurrent import futures
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from support.fake_server import assert_no_thread_left
from thinrow.client import ClientConfig
from thinrow.client.online import OnlineClient, connect_online
from thinrow.client.received import AHEAD_MESSAGES_MAX, received
from thinrow.errors import DeadlineError, UnavailableError
from thinrow.v1 import online_pb2, online_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = ClientConfig(request_deadline_s=0.5)
TIMEOUT_S = 60.0


class Silent(online_pb2_grpc.OnlineServiceServicer):
    """Sends some answers, then nothing until the test is over."""

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.over = threading.Event()

    def AppendEvents(  # noqa: N802
        self,
        requests: Iterator[online_pb2.AppendEventsRequest],
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> Iterator[online_pb2.AppendEventsResponse]:
        for request in itertools.islice(requests, self.answers):
            yield online_pb2.AppendEventsResponse(cursor=request.cursor, appended=1)
        self.over.wait()

    def ExportEvents(  # noqa: N802
        self,
        request: online_pb2.ExportEventsRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> Iterator[online_pb2.ExportEventsResponse]:
        for number in range(self.answers):
            yield online_pb2.ExportEventsResponse(from_ts=number)
        self.over.wait()


@contextmanager
def silent(answers: int) -> Iterator[OnlineClient]:
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    fake = Silent(answers)
    online_pb2_grpc.add_OnlineServiceServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with connect_online(f"127.0.0.1:{port}", CONFIG) as client:
            yield client
    finally:
        fake.over.set()
        server.stop(None).wait()


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_appends_to_a_silent_server_end(answers: int) -> None:
    with silent(answers) as client:
        acknowledged = []
        with pytest.raises(DeadlineError, match=r"silent for 0\.5 s"):
            for result in client.append_all([online_pb2.EventBatch()] * 5):
                acknowledged.append(result)  # noqa: PERF402 - what came before the error counts
        assert len(acknowledged) == answers


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_an_export_from_a_silent_server_ends(answers: int) -> None:
    with silent(answers) as client:
        exported = client.export(online_pb2.ExportEventsRequest(watermark_ts=1))
        assert [next(exported).from_ts for _ in range(answers)] == list(range(answers))
        with pytest.raises(DeadlineError, match=r"silent for 0\.5 s"):
            next(exported)


def test_a_caller_that_sends_nothing_may_wait() -> None:
    """Silence counts only while the server owes an answer."""
    with silent(2) as client:
        more, batches = threading.Event(), [online_pb2.EventBatch()] * 2

        def slowly() -> Iterator[online_pb2.EventBatch]:
            yield batches[0]
            assert more.wait(TIMEOUT_S)
            yield batches[1]

        answers = client.append_all(slowly())
        assert next(answers).appended == 1
        threading.Timer(3 * CONFIG.request_deadline_s, more.set).start()
        assert next(answers).appended == 1
        answers.close()


def test_a_slow_caller_slows_its_server_down() -> None:
    """Read-ahead of a stream does not grow with the length of the stream."""
    pulled = threading.Semaphore(0)

    def messages() -> Iterator[int]:
        for number in itertools.count():
            pulled.release()
            yield number

    with closing(received(messages(), TIMEOUT_S, lambda: None)) as taken:
        assert next(taken) == 0
        for _ in range(1 + AHEAD_MESSAGES_MAX):
            assert pulled.acquire(timeout=TIMEOUT_S)
        assert not pulled.acquire(timeout=0.1)
        assert next(taken) == 1
        assert pulled.acquire(timeout=TIMEOUT_S)
    assert_no_thread_left()


@pytest.mark.parametrize("method", ["DescribeTier", "ExportEvents"])
def test_a_stub_that_outlives_its_client_says_so(method: str) -> None:
    with silent(0) as client:
        stub = client.stub
    request = {
        "DescribeTier": online_pb2.DescribeTierRequest(),
        "ExportEvents": online_pb2.ExportEventsRequest(),
    }[method]
    with pytest.raises(UnavailableError, match="was closed"):
        getattr(stub, method)(request)
