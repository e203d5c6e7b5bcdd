"""Replicas that accept calls and never answer."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.fake_server import Fake, serving
from thinrow.client import ClientConfig, Projection

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc
    from thinrow.v1 import materialization_pb2 as wire


# Short for the silent one; the last replica has all of the deadline, however busy the machine.
CONFIG = ClientConfig(
    examples_per_request=4,
    requests_in_flight=3,
    silence_timeout_s=0.3,
    connect_timeout_s=0.5,
    backoff_max_s=0.1,
)


PROJECTION = Projection(sequence_length=5)


class Silent(Fake):
    """Answers some requests of a stream, then none; and no call."""

    def __init__(self, answers: int = 0) -> None:
        super().__init__()
        self.answers = answers
        self.ended = threading.Event()

    def MaterializeStream(  # noqa: N802
        self, requests: Iterator[wire.MaterializeStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[wire.MaterializeStreamResponse]:
        for answer in super().MaterializeStream(requests, context):
            if not self.answers:
                self.ended.wait()
                return
            self.answers -= 1
            yield answer


@contextmanager
def accepting() -> Iterator[str]:
    """A TCP port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def silent(answers: int) -> Iterator[str]:
    fake = Silent(answers)
    with serving(fake) as (_, target):
        try:
            yield target
        finally:
            fake.ended.set()
