"""Snapshots from the responses of the online service, each byte of which is decoded once.

The native reader takes the immutable part from its bytes, so protobuf leaves it encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from thinrow.core.lookup.batch import Batch
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import MutableEvents, Pointers, ThinRows
from thinrow.core.thin_row import EventView, ThinRow
from thinrow.core.wire.columns import from_wire
from thinrow.core.wire.response import Response
from thinrow.v1 import materialization_pb2, online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message
    from thinrow.core.lookup.coding import Coder
    from thinrow.core.pointers import Projection

__all__ = ["Snapshot", "Snapshots", "decode_batch", "decode_stream", "read_snapshots"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The history that one request sees."""

    batch: Batch
    """The sequence for inference, as one example; check its status first."""
    thin_row: ThinRow
    """The row to log, if the status is STATUS_OK."""


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The histories that several requests at one moment see."""

    batch: Batch
    """The sequences for inference, an example per user."""
    thin_rows: tuple[ThinRow, ...]
    """The row to log for each user whose status is STATUS_OK."""


def _decoder(message: type[Message]) -> Callable[[bytes], Any]:
    """Returns the decoder of a message in which each field `immutable` is of the type bytes."""
    found = POOL.FindMessageTypeByName(message.DESCRIPTOR.full_name)
    return message_factory.GetMessageClass(found).FromString


def _pool() -> descriptor_pool.DescriptorPool:
    """Returns the contract of the online service with bytes instead of that message."""
    file = descriptor_pb2.FileDescriptorProto.FromString(online_pb2.DESCRIPTOR.serialized_pb)
    for message in file.message_type:
        for field in message.field:
            if field.name == "immutable":
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
                field.ClearField("type_name")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(materialization_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _classes(descriptors: Iterable[Descriptor]) -> Iterator[type[Message]]:
    """Yields the classes of messages, and of those within them."""
    for descriptor in descriptors:
        yield message_factory.GetMessageClass(descriptor)
        yield from _classes(descriptor.nested_types)


POOL = _pool()
CLASSES = tuple(
    _classes(
        descriptor
        for file in (materialization_pb2.DESCRIPTOR, online_pb2.DESCRIPTOR)
        for descriptor in POOL.FindFileByName(file.name).message_types_by_name.values()
    )
)
"""Every class of the pool, kept permanently. protobuf makes the class of a message within another
when it is first read, and frees it with the last such message: two threads that do so crash.
"""

decode_batch: Callable[[bytes], online_pb2.SnapshotBatchResponse]
decode_batch = _decoder(online_pb2.SnapshotBatchResponse)
decode_stream: Callable[[bytes], online_pb2.SnapshotStreamResponse]
decode_stream = _decoder(online_pb2.SnapshotStreamResponse)


def read_snapshots(
    answer: online_pb2.SnapshotResponse | online_pb2.SnapshotBatchResponse,
    user_ids: Sequence[int | str],
    digests: Sequence[int],
    lengths: Sequence[int],
    projection: Projection | str,
    coder: Coder,
) -> tuple[Batch, tuple[ThinRow, ...]]:
    """Returns the histories in a response, and the thin rows that name them.

    Args:
        answer: Decoded by `decode_batch` or `decode_stream`.
        user_ids: The users of the request, as people know them.
        digests: One for each user.
        lengths: Mutable events of each user.
        projection: That of the request.
        coder: Looks up the codes of values of mutable events.

    Raises:
        ThinRowError: The response contradicts the request or itself.
    """
    users = len(user_ids)
    arrival_ts = np.array(answer.mutable.arrival_ts, np.int64)
    columns = from_wire(answer.mutable.columns, len(arrival_ts))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    mutable = MutableEvents(offsets, arrival_ts, columns)
    pointers = Pointers(
        user_ids=list(user_ids),
        start_ts=np.full(users, answer.start_ts),
        end_ts=np.full(users, answer.end_ts),
        max_lengths=np.full(users, answer.max_length),
        digests=np.array(digests, np.uint64),
        request_ts=np.full(users, answer.request_ts),
    )
    # Training puts the thin row back with the same code.
    lookup = BatchLookup(ThinRows(pointers, mutable), projection, coder)
    lookup.add(np.arange(users), Response.read(cast("bytes", answer.immutable)))
    rows = tuple(
        ThinRow(
            user_id=user_id if isinstance(user_id, str) else int(user_id),
            request_ts=answer.request_ts,
            start_ts=answer.start_ts,
            end_ts=answer.end_ts,
            max_length=answer.max_length,
            digest=int(digest),
            mutable=EventView(mutable, place),
        )
        for place, (user_id, digest) in enumerate(zip(user_ids, digests, strict=True))
    )
    return Batch.from_answers([lookup.answer()]), rows
