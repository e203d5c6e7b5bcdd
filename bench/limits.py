"""Upper bounds of the machine for the same work: copy memory, send bytes, get values.

Run as a script, this file is the server of bare bytes.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from expected import Examples
    from sides import Tensors
    from thinrow.store.generation import Generation

METHOD = "/limit/Stream"
MESSAGE_BYTES_MAX = 1 << 28
RING_SLOTS = 5
"""Number of batches that a loader of default configuration has memory for."""


class MemoryCopy:
    """Copies as many bytes as the final tensors have, into warm memory, with all cores."""

    name = "memory copy"
    pids: Sequence[int] = ()

    def __init__(self, examples: Examples) -> None:
        self.batch_events = [int(examples.lengths[places].sum()) for places in examples.places]
        shape = (len(examples.traits), max(self.batch_events))
        self.source = torch.ones(shape, dtype=torch.int64)
        self.ring = [torch.ones(shape, dtype=torch.int64) for _ in range(RING_SLOTS)]
        self.nbytes = 8 * shape[0] * sum(self.batch_events)

    def batches(self) -> Iterator[Tensors]:
        """Makes nothing anyone wants."""
        for number, events in enumerate(self.batch_events):
            target = self.ring[number % RING_SLOTS]
            for trait, values in enumerate(self.source):
                target[trait, :events].copy_(values[:events])
        yield from ()


class BareStream:
    """Messages of the number and size of the thin rows' answers, through gRPC alone."""

    name = "bare gRPC stream"

    def __init__(self, address: str, pid: int, messages: int, message_bytes: int) -> None:
        self.pids: Sequence[int] = (pid,)
        self.address = address
        self.request = struct.pack("<qq", messages, message_bytes)
        self.nbytes = messages * message_bytes

    def batches(self) -> Iterator[Tensors]:
        """Takes the bytes and drops them."""
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            received = sum(len(message) for message in channel.unary_stream(METHOD)(self.request))
        assert received == self.nbytes
        yield from ()


class BareGets:
    """The same keys from RocksDB, through rocksdict alone."""

    name = "bare RocksDB gets"
    pids: Sequence[int] = ()

    def __init__(self, generation: Generation, recorded: list[tuple[str, list[bytes]]]) -> None:
        databases = {str(shard.path): shard._database for shard in generation.shards.values()}
        self.gets = [(databases[path], keys) for path, keys in recorded]

    def batches(self) -> Iterator[Tensors]:
        """Gets the values and drops them."""
        for database, keys in self.gets:
            database.get(keys)
        yield from ()


@contextmanager
def bare_server() -> Iterator[tuple[str, int]]:
    """Address and process of a server of bare bytes."""
    server = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"127.0.0.1:{int(server.stdout.readline())}", server.pid
    finally:
        server.terminate()
        server.wait()


def send(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
    """Return the requested messages."""
    messages, message_bytes = struct.unpack("<qq", request)
    message = bytes(message_bytes)
    for _ in range(messages):
        yield message


if __name__ == "__main__":
    serving = grpc.server(
        ThreadPoolExecutor(2), options=[("grpc.max_send_message_length", MESSAGE_BYTES_MAX)]
    )
    handler = grpc.unary_stream_rpc_method_handler(send)
    serving.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("limit", {"Stream": handler}),)
    )
    print(serving.add_insecure_port("127.0.0.1:0"), flush=True)
    serving.start()
    serving.wait_for_termination()
