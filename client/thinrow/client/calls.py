"""The calls whose answers stay encoded, for `Response` to read without copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    import grpc

__all__ = ["materialize", "materialize_stream"]

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name


def materialize(
    channel: grpc.Channel,
) -> grpc.UnaryUnaryMultiCallable[wire.MaterializeRequest, bytes]:
    """Materialize, answered in bytes."""
    return channel.unary_unary(f"/{SERVICE}/Materialize", wire.MaterializeRequest.SerializeToString)


def materialize_stream(
    channel: grpc.Channel,
) -> grpc.StreamStreamMultiCallable[wire.MaterializeStreamRequest, bytes]:
    """MaterializeStream, answered in bytes."""
    return channel.stream_stream(
        f"/{SERVICE}/MaterializeStream", wire.MaterializeStreamRequest.SerializeToString
    )
