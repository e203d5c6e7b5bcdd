"""Messages of a topic of events, as `thinrow online` produces them, and their partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash
from thinrow.errors import RequestError
from thinrow.schema import TraitType
from thinrow.v1 import event_topic_pb2 as topic_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.online.records import Batch, RecordFormat
    from thinrow.schema import Trait

__all__ = [
    "MESSAGE_BYTES_MAX",
    "MESSAGE_EVENTS_MAX",
    "UserMessage",
    "encode_messages",
    "partition_of",
    "value_field",
]

MESSAGE_EVENTS_MAX = 1024
"""Most events in one message."""
MESSAGE_BYTES_MAX = 900_000
"""Largest value of a message; brokers take 1 MiB, its head included, by default."""


@dataclass(frozen=True, slots=True)
class UserMessage:
    """A message to produce."""

    user_key: int
    """The user's key, by which their partition is found."""
    key: bytes
    """The user's id as text, UTF-8."""
    value: bytes
    """An encoded UserEvents."""


def partition_of(user_key: int, partitions: int) -> int:
    """Returns a user's partition: XXH3 of the key's eight little-endian bytes, modulo their number.

    The function of `thinrow.core.shards.shard_of`, for one user.
    """
    hashed: int = xxhash.xxh3_64_intdigest(user_key.to_bytes(8, "little", signed=True))
    return hashed % partitions


def value_field(trait: Trait) -> str:
    """Returns the field of a TraitValue that holds an element of a trait."""
    if trait.type is TraitType.STRING:
        return "text"
    return "number" if trait.type.is_float else "integer"


def encode_messages(batch: Batch, record_format: RecordFormat) -> list[UserMessage]:
    """Encodes a batch as messages; each user's events keep their order.

    Raises:
        RequestError: An event is larger than a message may be.
    """
    rows_of: dict[bytes, list[int]] = {}
    for row, user in enumerate(batch.users):
        rows_of.setdefault(batch.texts[row].encode() if batch.texts else user, []).append(row)
    fields = record_format.to_topic(list(batch.records))
    messages = []
    for user, rows in rows_of.items():
        user_key = int.from_bytes(batch.users[rows[0]], "big", signed=True)
        if batch.texts:
            head = topic_pb2.UserEvents(user_text=user.decode())
        else:
            head = topic_pb2.UserEvents(user_id=user_key)
            is_unsigned = record_format.schema.user_ids == "uint64"
            user = b"%d" % (user_key % (1 << 64) if is_unsigned else user_key)
        messages += [
            UserMessage(user_key, user, value)
            for value in _values(head.SerializeToString(), [fields[row] for row in rows])
        ]
    return messages


def _values(head: bytes, fields: Sequence[bytes]) -> Iterator[bytes]:
    """Yields the fewest values that the limits on a message allow, in order."""
    parts = [head]
    size = len(head)
    for field in fields:
        if len(head) + len(field) > MESSAGE_BYTES_MAX:
            raise RequestError(
                f"An event takes {len(head) + len(field):,} bytes as a message of the topic, which "
                f"may have {MESSAGE_BYTES_MAX:,}; give it shorter texts or lists."
            )
        if size + len(field) > MESSAGE_BYTES_MAX or len(parts) > MESSAGE_EVENTS_MAX:
            yield b"".join(parts)
            parts, size = [head], len(head)
        parts.append(field)
        size += len(field)
    yield b"".join(parts)
