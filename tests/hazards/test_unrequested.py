"""Messages that a server sends faster than they are used, or that no one requested."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from support.declared_sizes import REFUSED_BYTES_MAX, constant_answer
from support.peak import MIB, peak_of
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.client.received import AHEAD_MESSAGES_MAX, received
from thinrow.errors import ThinRowError
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_messages_are_read_only_a_little_ahead() -> None:
    read = 0

    def call() -> Iterator[int]:
        nonlocal read
        for number in range(500):
            read += 1
            yield number

    for number, message in enumerate(received(call(), 60, lambda: None)):
        assert message == number
        assert read <= number + 1 + AHEAD_MESSAGES_MAX
    assert read == 500


def test_a_caller_that_leaves_ends_the_thread() -> None:
    messages = received(iter(range(500)), 60, lambda: None)
    assert next(messages) == 0
    readers = [thread for thread in threading.enumerate() if thread.name == "thinrow-received"]
    messages.close()
    for reader in readers:
        reader.join(60)
        assert not reader.is_alive()


def test_a_stream_of_answers_that_no_one_requested() -> None:
    def flood(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        for data in requests:
            request = wire.MaterializeStreamRequest.FromString(data)
            response = wire.MaterializeResponse.FromString(constant_answer(request.request))
            for _number in range(1000):
                yield wire.MaterializeStreamResponse(
                    cursor=request.cursor, response=response
                ).SerializeToString()

    server = grpc.server(ThreadPoolExecutor(4))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(flood)
    server.add_registered_method_handlers(
        "thinrow.v1.MaterializationService", {"MaterializeStream": handler}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pointers = Pointers(user_ids=range(3), end_ts=[9] * 3)
    config = ClientConfig(requests_in_flight=1)
    try:
        with connect(f"127.0.0.1:{port}", config) as client:
            batches = client.stream([pointers] * 3, Projection(traits=("x",)))
            assert len(next(batches)) == 3
            for thread in threading.enumerate():
                if thread.name == "thinrow-stream":
                    thread.join(60)
                    assert not thread.is_alive()
            with pytest.raises(ThinRowError, match="1 requests have more answers"):
                next(batches)
    finally:
        server.stop(0).wait()


DESCRIBING = """
import grpc
from concurrent.futures import ThreadPoolExecutor
from thinrow.client import connect
from thinrow.client.online import connect_online
server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_send_message_length", -1)])
def methods(service, **answers):
    server.add_registered_method_handlers(service, {
        name: grpc.unary_unary_rpc_method_handler(lambda request, context, data=data: data)
        for name, data in answers.items()
    })
part = bytes([0x12]) + b"\\x00"
parts = part * 8_000_000
group = b"\\x42\\x80\\xc8\\xd0\\x07" + parts
methods("thinrow.v1.MaterializationService", DescribeStore=group, Inspect=b"\\x3a\\x00" * 8_000_000)
methods("thinrow.v1.OnlineService", DescribeTier=b"\\x32\\x00" * 8_000_000)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
client, online = connect(f"127.0.0.1:{port}"), connect_online(f"127.0.0.1:{port}")
"""


@pytest.mark.parametrize(
    "call", ["client.describe_store()", "client.inspect(1)", "online.describe()"]
)
def test_an_answer_of_millions_of_parts(call: str) -> None:
    peak = peak_of(call, DESCRIBING)
    assert "Error" in peak.outcome, peak
    assert peak.grown_bytes < 16 * MIB * 4 + REFUSED_BYTES_MAX, peak
