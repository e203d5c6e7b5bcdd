"""One online server as its client sees it: the connection, its calls, and how far it has come."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import grpc
from thinrow.client.channel import open_channel
from thinrow.client.closable import CLOSED
from thinrow.client.counting_channel import CountingChannel
from thinrow.client.credentials import bearer_metadata
from thinrow.client.grpc_errors import translate
from thinrow.client.online_stream import SnapshotStream
from thinrow.client.replica_health import ServerHealth
from thinrow.client.snapshots import BatchPart, decode_batch, decode_stream
from thinrow.errors import ThinRowError, UnavailableError
from thinrow.v1 import online_pb2, online_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from thinrow.client.config import ClientConfig
    from thinrow.client.server_addresses import ServerAddress

__all__ = ["OnlineReplica"]

SERVICE = online_pb2.DESCRIPTOR.services_by_name["OnlineService"].full_name
COMMAND = "thinrow online"
FAR_MS = 1 << 62
"""Stands for a lag that is too long, until the server describes it."""


class OnlineReplica:
    """Calls one server, and repeats none of them. Thread-safe.

    Args:
        address: The server.
        config: Limits, deadlines and credentials.
    """

    def __init__(self, address: ServerAddress, config: ClientConfig) -> None:
        self.target = address.target
        """Target of its channel, for people too."""
        self.config = config
        self.health = ServerHealth()
        self.lags_ms: dict[int, int] = {}
        """Lag of each partition that it reads, as last reported."""
        self._channel = open_channel(address.target, config, address.name)
        counting = CountingChannel(self._channel)
        self._stub = online_pb2_grpc.OnlineServiceStub(counting)  # type: ignore[no-untyped-call]
        self._batch = counting.unary_unary(
            f"/{SERVICE}/SnapshotBatch",
            request_serializer=online_pb2.SnapshotBatchRequest.SerializeToString,
            response_deserializer=decode_batch,
        )
        stream = counting.stream_stream(
            f"/{SERVICE}/SnapshotStream",
            request_serializer=online_pb2.SnapshotStreamRequest.SerializeToString,
            response_deserializer=decode_stream,
        )
        self._closed = False
        self.stream = SnapshotStream(stream, lambda: bearer_metadata(config), self.failure)
        """The stream that snapshots of all threads share."""

    def __repr__(self) -> str:
        return f"OnlineReplica({self.target!r})"

    @property
    def stub(self) -> online_pb2_grpc.OnlineServiceStub:
        """The generated stub."""
        self.check_open()
        return self._stub

    @cached_property
    def methods(self) -> dict[str, Callable[..., Any]]:
        """The unary methods, by name."""
        return {
            "SnapshotBatch": self._batch,
            "DescribeTier": self._stub.DescribeTier,
            "LookUpEventCodes": self._stub.LookUpEventCodes,
        }

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of every call."""
        return bearer_metadata(self.config)

    def check_open(self) -> None:
        """Raises UnavailableError if the client was closed."""
        if self._closed:
            raise UnavailableError(CLOSED)

    def close(self) -> None:
        """Closes the connection; calls in flight fail."""
        self._closed = True
        self.stream.close()
        self._channel.close()

    def call(self, method: str, request: object, deadline_s: float) -> Any:  # noqa: ANN401
        """Makes a unary call; raises the errors of `OnlineClient`."""
        self.check_open()
        try:
            return self.methods[method](request, timeout=deadline_s, metadata=self.metadata)
        except grpc.RpcError as error:
            raise self.failure(error) from error

    def start(self, method: str, request: object, deadline_s: float) -> Any:  # noqa: ANN401
        """Starts a unary call; returns its future."""
        self.check_open()
        call = self.methods[method].future  # type: ignore[attr-defined]
        return call(request, timeout=deadline_s, metadata=self.metadata)

    def snapshot(
        self, request: online_pb2.SnapshotRequest, deadline_s: float
    ) -> online_pb2.SnapshotResponse:
        """Requests the snapshot of one user on the stream."""
        return self.stream.request(request, deadline_s)

    def snapshot_batch(
        self, request: online_pb2.SnapshotBatchRequest, deadline_s: float
    ) -> list[BatchPart]:
        """Requests the snapshots of several users, in one part."""
        users = len(request.user_ids) or len(request.user_texts)
        return [BatchPart(range(users), self.call("SnapshotBatch", request, deadline_s))]

    def for_appends(
        self,
        tried: Collection[OnlineReplica],  # noqa: ARG002 - as of several servers
    ) -> OnlineReplica:
        """Returns the server to append to: this one."""
        self.check_open()
        return self

    def failure(self, error: grpc.RpcError) -> ThinRowError:
        """Converts the error of a call to one of `thinrow.errors`."""
        if self._closed:
            return UnavailableError(CLOSED)
        return translate(error, self.target, COMMAND)

    def take(self, described: online_pb2.DescribeTierResponse) -> None:
        """Records the description of the server."""
        self.lags_ms = {each.number: each.lag_ms for each in described.partitions}
        self.health.answered()

    def lags(self, partitions: Collection[int], lag_ms: int = FAR_MS) -> None:
        """Records the lag of partitions; too long if none is given."""
        for number in partitions:
            if number in self.lags_ms:
                self.lags_ms[number] = lag_ms
