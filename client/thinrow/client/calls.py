"""Calls whose messages stay bytes, so that protobuf does not copy every column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    import grpc
    from thinrow.client.closable import ClosableChannel

__all__ = ["describe_cluster", "materialize", "materialize_stream"]

SERVICE = wire.DESCRIPTOR.services_by_name["MaterializationService"].full_name


def describe_cluster(channel: ClosableChannel) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Returns the method DescribeCluster of encoded messages, which are checked once decoded."""
    calls: grpc.UnaryUnaryMultiCallable[bytes, bytes]
    calls = channel.unary_unary(f"/{SERVICE}/DescribeCluster")
    return calls


def materialize(channel: ClosableChannel) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Returns the method Materialize of encoded messages."""
    calls: grpc.UnaryUnaryMultiCallable[bytes, bytes]
    calls = channel.unary_unary(f"/{SERVICE}/Materialize")
    return calls


def materialize_stream(channel: ClosableChannel) -> grpc.StreamStreamMultiCallable[bytes, bytes]:
    """Returns the method MaterializeStream of encoded messages."""
    calls: grpc.StreamStreamMultiCallable[bytes, bytes]
    calls = channel.stream_stream(f"/{SERVICE}/MaterializeStream")
    return calls
