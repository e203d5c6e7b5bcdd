"""Idle streams of either service, and the status with which a drain ends them."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.worlds import days
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2, online_pb2_grpc
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Call = Callable[[Iterator[Any]], Any]

BATCH = wire.MaterializeStreamRequest(request=wire.MaterializeRequest(user_ids=[1], end_ts=days(3)))
SNAPSHOT = online_pb2.SnapshotStreamRequest(
    requests=[online_pb2.StreamedRequest(request=online_pb2.SnapshotRequest(user_id=1))]
)
APPEND = online_pb2.AppendEventsRequest(events=online_pb2.EventBatch())
LIST = reflection_pb2.ServerReflectionRequest(list_services="")


def streams_of(channel: grpc.Channel, service: str) -> dict[str, tuple[Call, Any]]:
    """The service's bidirectional streams, and a message for each."""
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    streams: dict[str, tuple[Call, Any]] = {
        "ServerReflectionInfo": (reflection.ServerReflectionInfo, LIST)
    }
    if service == "materialization":
        stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
        streams["MaterializeStream"] = (stub.MaterializeStream, BATCH)
    else:
        online = online_pb2_grpc.OnlineServiceStub(channel)  # type: ignore[no-untyped-call]
        streams["SnapshotStream"] = (online.SnapshotStream, SNAPSHOT)
        streams["AppendEvents"] = (online.AppendEvents, APPEND)
    return streams


class Idle:
    """One open stream on which `messages` were answered."""

    def __init__(self, method: Call, messages: list[Any]) -> None:
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.call = method(iter(self._outgoing.get, None))
        for message in messages:
            self._outgoing.put(message)
            next(self.call)

    def failure(self) -> grpc.RpcError:
        """Waits until the stream has failed."""
        with pytest.raises(grpc.RpcError) as caught:
            next(self.call)
        self._outgoing.put(None)
        return caught.value

    def given_up(self) -> grpc.RpcError:
        """Waits until gRPC tries the stream no more, and returns its error.

        By the status alone: gRPC 1.85 never completes a read that begins between two attempts.
        """
        assert self.call.code() is not grpc.StatusCode.OK
        self._outgoing.put(None)
        assert isinstance(self.call, grpc.RpcError)
        return self.call

    def check_ended_by_drain(self) -> None:
        check_unavailable(self.failure())


def check_unavailable(error: grpc.RpcError) -> None:
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(error.trailing_metadata())["thinrow-error"] == "UNAVAILABLE"
    assert "stopping" in error.details()
