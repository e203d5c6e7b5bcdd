"""Encoding of requests: natively, because protobuf takes arrays number by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow import _native as native
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.pointers import Pointers, Projection

__all__ = ["TRUNCATIONS", "field_head", "on_stream", "to_request", "to_wire_projection"]

TRUNCATIONS: dict[str, wire.Truncation] = {
    "newest": wire.TRUNCATION_NEWEST,
    "head": wire.TRUNCATION_HEAD,
}


REQUEST = wire.MaterializeRequest.DESCRIPTOR.fields_by_name
STREAMED = wire.MaterializeStreamRequest.DESCRIPTOR.fields_by_name["request"].number
LENGTH_DELIMITED = 2


def to_request(
    pointers: Pointers,
    mutable_lengths: NDArray[np.int64],
    projection: Projection | str,
    map_version: int = 0,
) -> bytes:
    """Encodes a MaterializeRequest, without arrays of default values and without mutable events."""
    head = wire.MaterializeRequest(map_version=map_version)
    if isinstance(projection, str):
        head.tenant = projection
    else:
        head.projection.CopyFrom(to_wire_projection(projection))
    if pointers.user_texts is not None:
        head.user_texts.extend(pointers.user_texts.tolist())
    elif pointers.user_id_kind == "uint64":
        head.user_id_kind = wire.ID_KIND_UINT64
    users = b"" if pointers.user_texts is not None else pointers.user_ids.tobytes()
    parts = [
        head.SerializeToString(),
        packed("user_ids", users),
        packed("end_ts", native.varints(pointers.end_ts)),
    ]
    if pointers.start_ts.any():
        parts.append(packed("start_ts", native.varints(pointers.start_ts)))
    if pointers.max_lengths.any():
        parts.append(packed("max_lengths", native.varints(pointers.max_lengths)))
    if pointers.digests.any():
        parts.append(packed("digests", pointers.digests.tobytes()))
    if not np.array_equal(pointers.request_ts, pointers.end_ts):
        parts.append(packed("request_ts", native.varints(pointers.request_ts)))
    if mutable_lengths.any():
        parts.append(packed("mutable_lengths", native.varints(mutable_lengths)))
    return b"".join(parts)


def on_stream(cursor: int, request: bytes, traceparent: str) -> bytes:
    """Encodes a MaterializeStreamRequest."""
    head = wire.MaterializeStreamRequest(cursor=cursor, traceparent=traceparent)
    return head.SerializeToString() + delimited(STREAMED, request)


def packed(name: str, content: bytes) -> bytes:
    """Returns a repeated field of MaterializeRequest from its encoded elements."""
    return delimited(REQUEST[name].number, content) if content else b""


def delimited(number: int, content: bytes) -> bytes:
    """Encodes a length-delimited field."""
    return field_head(number, len(content)) + content


def field_head(number: int, length: int) -> bytes:
    """Encodes what precedes the content of a length-delimited field, of a number below 16."""
    head = bytearray([number << 3 | LENGTH_DELIMITED])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


def to_wire_projection(projection: Projection) -> wire.Projection:
    """Returns a projection as a message."""
    return wire.Projection(
        sequence_length=projection.sequence_length,
        truncation=TRUNCATIONS[projection.truncation],
        feature_groups=projection.feature_groups,
        traits=projection.traits,
        as_served=projection.as_served,
    )
