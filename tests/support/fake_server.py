"""A server whose answers a test makes itself, and callers of it."""

from __future__ import annotations

import threading
import time
from concurrent import futures
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import numpy as np
from thinrow.client import Pointers, Projection
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import materialization_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.client import Batch


PROJECTION = Projection(sequence_length=5)


class Fake(materialization_pb2_grpc.MaterializationServiceServicer):
    """Gives user u the one event u, unless reported to misbehave."""

    def __init__(self) -> None:
        self.received: list[list[int]] = []
        self.metadata: dict[str, str | bytes] = {}
        self.examples_max = 1_000
        self.pause_s = 0.0
        self.failures: list[tuple[grpc.StatusCode, str]] = []
        self.die_after: int | None = None
        self.skew = 0

    def Materialize(  # noqa: N802
        self, request: wire.MaterializeRequest, context: grpc.ServicerContext
    ) -> wire.MaterializeResponse:
        self.metadata = dict(context.invocation_metadata())
        users = list(request.user_ids)
        self.received.append(users)
        if self.failures:
            code, name = self.failures.pop()
            context.set_trailing_metadata((("thinrow-error", name),))
            context.abort(code, f"because of {name}")
        if len(users) > self.examples_max:
            context.set_trailing_metadata((("thinrow-error", "ANSWER_TOO_LARGE"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "request fewer examples")
        time.sleep(self.pause_s)
        column = wire.Column(
            trait="t",
            type=wire.TRAIT_TYPE_INT64,
            vector_size=1,
            bases=[0],
            widths=b"\x08",
            data=np.array(users, np.int64).tobytes(),
        )
        return wire.MaterializeResponse(
            generation=1,
            statuses=[wire.STATUS_OK] * len(users),
            view_starts=range(len(users)),
            view_lengths=[1] * len(users),
            block_lengths=[len(users)],
            columns=[column],
            sequence_length=PROJECTION.sequence_length,
            truncation=wire.TRUNCATION_NEWEST,
        )

    def MaterializeStream(  # noqa: N802
        self, requests: Iterator[wire.MaterializeStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[wire.MaterializeStreamResponse]:
        for message in requests:
            if self.die_after is not None:
                self.die_after -= 1
                if self.die_after < 0:
                    self.die_after = None
                    context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            yield wire.MaterializeStreamResponse(
                cursor=message.cursor + self.skew,
                response=self.Materialize(message.request, context),
            )

    def DescribeStore(  # noqa: N802
        self,
        request: wire.DescribeStoreRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> wire.DescribeStoreResponse:
        return wire.DescribeStoreResponse(generation=7)

    def Inspect(  # noqa: N802
        self,
        request: wire.InspectRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> wire.InspectResponse:
        return wire.InspectResponse(event_count=request.user_id + request.as_of_ts)


@contextmanager
def serving(fake: Fake, address: str = "localhost:0") -> Iterator[tuple[grpc.Server, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    materialization_pb2_grpc.add_MaterializationServiceServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield server, f"localhost:{port}"
    finally:
        server.stop(None).wait()


def inputs(count: int, examples: int = 3) -> Iterator[Pointers]:
    for batch in range(count):
        users = range(batch * examples, (batch + 1) * examples)
        yield Pointers(user_ids=users, end_ts=[9] * examples)


def users(batches: list[Batch]) -> list[int]:
    return [user for batch in batches for [user] in batch.to_lists("t")]  # type: ignore[misc]


_older_threads: frozenset[threading.Thread] = frozenset()


def ignore_threads_of_others() -> None:
    """Leaves out of `own_threads` those that run now: servers of other modules in this process."""
    global _older_threads
    _older_threads = frozenset(threading.enumerate())


def own_threads() -> list[threading.Thread]:
    """Returns the threads of ThinRow and gRPC that started with this test."""
    return [
        thread
        for thread in threading.enumerate()
        if ("thinrow" in thread.name or "consume_request_iterator" in thread.name)
        and thread not in _older_threads
    ]


def assert_no_thread_left() -> None:
    until = time.monotonic() + 60
    while own_threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert not own_threads()
