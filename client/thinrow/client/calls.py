"""The calls whose messages are bytes: what protobuf would copy is encoded and read elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    import grpc

__all__ = ["materialize", "materialize_stream"]

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name


def materialize(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Materialize."""
    return channel.unary_unary(f"/{SERVICE}/Materialize")


def materialize_stream(channel: grpc.Channel) -> grpc.StreamStreamMultiCallable[bytes, bytes]:
    """MaterializeStream."""
    return channel.stream_stream(f"/{SERVICE}/MaterializeStream")
