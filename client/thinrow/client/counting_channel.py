"""A channel that counts the parts of each response before protobuf decodes it.

A column takes two bytes in a message and a hundred or more once protobuf has decoded it, so the
size of a response alone does not bound its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinrow import _native as native
from thinrow.core.wire.malformed import require
from thinrow.core.wire.sizes import COLUMNS_MAX
from thinrow.v1 import materialization_pb2 as store
from thinrow.v1 import online_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from thinrow.client.closable import ClosableChannel

__all__ = ["CountingChannel"]

MUTABLE = (
    wire.SnapshotResponse.MUTABLE_FIELD_NUMBER,
    wire.MutableEvents.COLUMNS_FIELD_NUMBER,
)
IMMUTABLE = (
    wire.SnapshotResponse.IMMUTABLE_FIELD_NUMBER,
    store.MaterializeResponse.COLUMNS_FIELD_NUMBER,
)
ANSWERS = (wire.SnapshotStreamResponse.ANSWERS_FIELD_NUMBER,)
RESPONSE = (*ANSWERS, wire.StreamedAnswer.RESPONSE_FIELD_NUMBER)
GROUP_TRAITS = store.FeatureGroup.TRAITS_FIELD_NUMBER
STORE_GROUPS = (store.DescribeStoreResponse.FEATURE_GROUPS_FIELD_NUMBER,)
TIER_GROUPS = (wire.DescribeTierResponse.FEATURE_GROUPS_FIELD_NUMBER,)
TIER_PARTITIONS = (wire.DescribeTierResponse.PARTITIONS_FIELD_NUMBER,)
EVENTS = (store.InspectResponse.EVENTS_FIELD_NUMBER,)
PATHS: dict[str, Sequence[tuple[int, ...]]] = {
    "DescribeStore": (STORE_GROUPS, (*STORE_GROUPS, GROUP_TRAITS)),
    "DescribeTier": (TIER_GROUPS, (*TIER_GROUPS, GROUP_TRAITS), TIER_PARTITIONS),
    "Inspect": (EVENTS, (*EVENTS, store.InspectedEvent.TRAITS_FIELD_NUMBER)),
    "Snapshot": (MUTABLE, IMMUTABLE),
    "SnapshotBatch": (MUTABLE, IMMUTABLE),
    "SnapshotStream": (ANSWERS, RESPONSE + MUTABLE, RESPONSE + IMMUTABLE),
    "ExportEvents": (
        (wire.ExportEventsResponse.EVENTS_FIELD_NUMBER, wire.EventBatch.COLUMNS_FIELD_NUMBER),
    ),
}
"""Paths of the repeated messages in the responses of each method."""
PARTS_MAX = 64 * COLUMNS_MAX
"""Limit on the parts of one response: a stream's message answers 64 requests, each in columns."""
VALUES_MAX = 1 << 22
"""Limit on the values in a response of Inspect."""


class CountingChannel:
    """The methods of a channel that a generated stub calls."""

    def __init__(self, channel: ClosableChannel) -> None:
        self._channel = channel

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        """Returns the channel's factory for calls of one kind, such as unary_unary."""
        make = getattr(self._channel, kind)

        def call(method: str, *, response_deserializer: Callable[[bytes], Any], **rest: Any) -> Any:  # noqa: ANN401
            name = method.rpartition("/")[2]
            most = VALUES_MAX if name == "Inspect" else PARTS_MAX
            decode = counting(response_deserializer, PATHS.get(name, ()), most)
            return make(method, response_deserializer=decode, **rest)

        return call


def counting(
    decode: Callable[[bytes], Any], paths: Sequence[tuple[int, ...]], most: int
) -> Callable[[bytes], Any]:
    """Returns a deserializer that raises MalformedError for more than `most` parts."""
    if not paths:
        return decode
    listed = [list(path) for path in paths]

    def counted(message: bytes) -> Any:  # noqa: ANN401
        for path in listed:
            count = native.count_fields(message, path)
            require(count <= most, f"it has {count:,} parts")
        return decode(message)

    return counted
