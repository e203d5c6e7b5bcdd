"""One server of a cluster, called as it is: the client would send each user to another group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np
from support.worlds import ALL, shown
from thinrow.client import Batch, Pointers
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import ThinRows
from thinrow.core.wire.response import Response
from thinrow.materialization.service import SERVICE
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from support.worlds import Answers

__all__ = ["Unrouted"]

TIMEOUT_S = 60


class Unrouted:
    """A connection to one server, until the block ends. Its methods raise grpc.RpcError."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def materialize(self, pointers: Pointers, map_version: int = 0) -> Answers:
        """Returns what the server says of each example; a router sends the map's version."""
        piece = BatchLookup(ThinRows(pointers), ALL).whole()
        request = wire.MaterializeRequest.FromString(piece.request())
        request.map_version = map_version
        response = wire.MaterializeResponse.FromString(self._call("Materialize", request))
        is_elsewhere = np.array(response.statuses) == wire.STATUS_ELSEWHERE
        for place in np.flatnonzero(is_elsewhere).tolist():
            response.statuses[place] = wire.STATUS_NOT_READY  # the other is for routers alone
        piece.answered(Response.read(response.SerializeToString()))
        found = shown(Batch.from_answers([piece.lookup.answer()]))
        for example in piece.examples[is_elsewhere].tolist():
            found[example] = wire.STATUS_ELSEWHERE, found[example][1]
        return found

    def inspect(self, user: int, as_of_ts: int) -> wire.InspectResponse:
        """Shows a user's history."""
        request = wire.InspectRequest(user_id=user, as_of_ts=as_of_ts)
        return wire.InspectResponse.FromString(self._call("Inspect", request))

    def describe_cluster(self) -> wire.DescribeClusterResponse:
        """Returns the server's map, and what it has open."""
        encoded = self._call("DescribeCluster", wire.DescribeClusterRequest())
        return wire.DescribeClusterResponse.FromString(encoded)

    def _call(self, method: str, request: Any) -> bytes:  # noqa: ANN401 - a message
        call: Any = self._channel.unary_unary(f"/{SERVICE}/{method}")
        response: bytes = call(request.SerializeToString(), timeout=TIMEOUT_S)
        return response
