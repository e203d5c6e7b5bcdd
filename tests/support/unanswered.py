"""An online service whose threads fail, in silence."""

from __future__ import annotations

from concurrent import futures
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
from thinrow.client.online import OnlineClient, connect_online
from thinrow.online.config import OnlineConfig
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2, online_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pytest
    from support.worlds import World


def online_config(world: World) -> OnlineConfig:
    return OnlineConfig(
        store=world.store,
        data=world.folder / "online",
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
    )


def failing_at(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int) -> None:
    """Lets one call of a method raise MemoryError."""
    real: Callable[..., object] = getattr(owner, method)
    calls = 0

    def sometimes(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(owner, method, sometimes)


class Quiet(online_pb2_grpc.OnlineServiceServicer):
    """Answers streams in part, and ends them with OK."""

    def __init__(self, cursors: Sequence[int]) -> None:
        self.cursors = cursors

    def AppendEvents(  # noqa: N802
        self,
        requests: Iterator[online_pb2.AppendEventsRequest],
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> Iterator[online_pb2.AppendEventsResponse]:
        next(requests)
        for cursor in self.cursors:
            yield online_pb2.AppendEventsResponse(cursor=cursor, appended=1)

    def SnapshotStream(  # noqa: N802
        self,
        messages: Iterator[online_pb2.SnapshotStreamRequest],
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> Iterator[online_pb2.SnapshotStreamResponse]:
        next(messages)
        if self.cursors:
            yield online_pb2.SnapshotStreamResponse(
                answers=[online_pb2.StreamedAnswer(cursor=cursor) for cursor in self.cursors]
            )

    def DescribeTier(  # noqa: N802
        self,
        request: online_pb2.DescribeTierRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> online_pb2.DescribeTierResponse:
        trait = wire.Trait(name="item_id", type=wire.TRAIT_TYPE_INT64, vector_size=1)
        group = wire.FeatureGroup(name="item", traits=[trait])
        return online_pb2.DescribeTierResponse(feature_groups=[group])


@contextmanager
def quiet(cursors: Sequence[int]) -> Iterator[OnlineClient]:
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    online_pb2_grpc.add_OnlineServiceServicer_to_server(Quiet(cursors), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with connect_online(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        server.stop(None).wait()
