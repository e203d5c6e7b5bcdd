"""Snapshots from the responses of the online service, each byte of which is decoded once.

The native reader takes the immutable part from its bytes, so protobuf leaves it encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from thinrow.core.files.column_arrays import joined_columns
from thinrow.core.lookup.batch import Batch
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import MutableEvents, Pointers, ThinRows
from thinrow.core.runs import offsets_of
from thinrow.core.thin_row import EventView, ThinRow
from thinrow.core.wire.columns import from_wire
from thinrow.core.wire.malformed import require
from thinrow.core.wire.response import Response
from thinrow.errors import ThinRowError
from thinrow.v1 import materialization_pb2, online_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message
    from numpy.typing import NDArray
    from thinrow.core.lookup.coding import Coder
    from thinrow.core.pointers import MutableColumn, Projection

__all__ = [
    "BatchPart",
    "Snapshot",
    "Snapshots",
    "decode_batch",
    "decode_stream",
    "read_snapshot",
    "read_snapshots",
]

Events: TypeAlias = "tuple[NDArray[np.int64], dict[str, MutableColumn]]"
"""Arrivals and columns of mutable events."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The history that one request sees."""

    batch: Batch
    """The sequence for inference, as one example; check its status first."""
    thin_row: ThinRow
    """The row to log, if the status is STATUS_OK."""
    as_of_ts: int
    """Latest moment that the server could answer exactly, ms: the thin row's `request_ts`, unless
    the request gave an earlier one."""
    lag_ms: int
    """Time from then until the server answered; 0 for a server whose log is no topic."""


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The histories that several requests see."""

    batch: Batch
    """The sequences for inference, an example per user."""
    thin_rows: tuple[ThinRow, ...]
    """The row to log for each user whose status is STATUS_OK."""
    as_of_ts: NDArray[np.int64]
    """Shape (users,): latest moment at which the server of each user could answer exactly, ms."""
    lag_ms: NDArray[np.int64]
    """Shape (users,): time from then until the server answered; 0 without a topic."""


class BatchPart(NamedTuple):
    """One server's answer about some users of a batch."""

    places: Sequence[int]
    """Their places in the batch, ascending."""
    answer: online_pb2.SnapshotBatchResponse
    """Decoded by `decode_batch`."""


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


def read_snapshot(
    answer: online_pb2.SnapshotResponse,
    user_id: int | str,
    projection: Projection | str,
    coder: Coder,
) -> Snapshot:
    """Returns the history in a response about one user.

    Args:
        answer: Decoded by `decode_stream`.
        user_id: The user, as people know them.
        projection: That of the request.
        coder: Looks up the codes of values of mutable events.

    Raises:
        ThinRowError: The response contradicts the request or itself.
    """
    arrival_ts, columns = _events(answer.mutable)
    mutable = MutableEvents(np.array([0, len(arrival_ts)], np.int64), arrival_ts, columns)
    pointers = Pointers(
        user_ids=[user_id],
        start_ts=np.full(1, answer.start_ts),
        end_ts=np.full(1, answer.end_ts),
        max_lengths=np.full(1, answer.max_length),
        digests=np.array([answer.digest], np.uint64),
        request_ts=np.full(1, answer.request_ts),
    )
    lookup = _lookup(pointers, mutable, projection, coder)
    lookup.add(np.zeros(1, np.int64), Response.read(cast("bytes", answer.immutable)))
    batch = Batch.from_answers([lookup.answer()])
    as_of_ts = answer.as_of_ts or answer.request_ts
    return Snapshot(
        batch, _row(user_id, answer, answer.digest, mutable, 0), as_of_ts, answer.lag_ms
    )


def read_snapshots(
    parts: Sequence[BatchPart],
    user_ids: Sequence[int | str],
    projection: Projection | str,
    coder: Coder,
) -> Snapshots:
    """Returns the histories in the responses about a batch, in the order of its users.

    Args:
        parts: One for each server; together they have each user once.
        user_ids: The users of the request, as people know them.
        projection: That of the request.
        coder: Looks up the codes of values of mutable events.

    Raises:
        ThinRowError: A response contradicts the request or itself, or two differ in their schemas.
    """
    users = len(user_ids)
    table = np.zeros((7, users), np.int64)
    start_ts, end_ts, max_lengths, request_ts, as_of_ts, lag_ms, lengths = table
    digests = np.zeros(users, np.uint64)
    events = [_events(part.answer.mutable) for part in parts]
    firsts = np.zeros(users, np.int64)
    first = 0
    for (places, answer), (arrival_ts, _) in zip(parts, events, strict=True):
        mine = np.array(places, np.int64)
        require(
            len(answer.mutable_lengths) == len(answer.digests) == len(mine)
            and sum(answer.mutable_lengths) == len(arrival_ts),
            f"it has {len(answer.digests)} digests and {len(answer.mutable_lengths)} lengths for "
            f"{len(mine)} users",
        )
        digests[mine] = np.array(answer.digests, np.uint64)
        lengths[mine] = answer.mutable_lengths
        firsts[mine] = first + offsets_of(lengths[mine])[:-1]
        first += len(arrival_ts)
        start_ts[mine], end_ts[mine] = answer.start_ts, answer.end_ts
        max_lengths[mine], request_ts[mine] = answer.max_length, answer.request_ts
        as_of_ts[mine] = answer.as_of_ts or answer.request_ts
        lag_ms[mine] = answer.lag_ms
    arrivals, columns = _joined(events)
    if len(parts) == 1:
        mutable = MutableEvents(offsets_of(lengths), arrivals, columns)
    else:
        pool = MutableEvents(np.array([0, len(arrivals)], np.int64), arrivals, columns)
        mutable = pool.select(firsts, lengths)
    pointers = Pointers(
        user_ids=list(user_ids),
        start_ts=start_ts,
        end_ts=end_ts,
        max_lengths=max_lengths,
        digests=digests,
        request_ts=request_ts,
    )
    lookup = _lookup(pointers, mutable, projection, coder)
    rows: list[ThinRow | None] = [None] * users
    for places, answer in parts:
        lookup.add(np.array(places, np.int64), Response.read(cast("bytes", answer.immutable)))
        for place, digest in zip(places, answer.digests, strict=True):
            rows[place] = _row(user_ids[place], answer, digest, mutable, place)
    batch = Batch.from_answers([lookup.answer()])
    return Snapshots(batch, tuple(row for row in rows if row is not None), as_of_ts, lag_ms)


def _lookup(
    pointers: Pointers, mutable: MutableEvents, projection: Projection | str, coder: Coder
) -> BatchLookup:
    """Prepares the lookup; training puts a thin row back with the same code."""
    return BatchLookup(ThinRows(pointers, mutable), projection, coder)


def _row(
    user_id: int | str,
    answer: online_pb2.SnapshotResponse | online_pb2.SnapshotBatchResponse,
    digest: int,
    mutable: MutableEvents,
    place: int,
) -> ThinRow:
    return ThinRow(
        user_id=user_id if isinstance(user_id, str) else int(user_id),
        request_ts=answer.request_ts,
        start_ts=answer.start_ts,
        end_ts=answer.end_ts,
        max_length=answer.max_length,
        digest=int(digest),
        mutable=EventView(mutable, place),
    )


def _events(mutable: online_pb2.MutableEvents) -> Events:
    """Decodes mutable events."""
    arrival_ts = np.array(mutable.arrival_ts, np.int64)
    return arrival_ts, from_wire(mutable.columns, len(arrival_ts))


def _joined(parts: Sequence[Events]) -> Events:
    """Joins the events of several responses; those without events have no columns.

    Raises:
        ThinRowError: Their columns differ.
    """
    parts = [part for part in parts if len(part[0])] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    names = {tuple(columns) for _, columns in parts}
    if len(names) > 1:
        raise ThinRowError(
            "Two servers answered by different schemas, since one took up a generation before the "
            "other; repeat the request."
        )
    return np.concatenate([arrival_ts for arrival_ts, _ in parts]), {
        name: joined_columns([columns[name] for _, columns in parts]) for name in names.pop()
    }
