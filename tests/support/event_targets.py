"""Fuzz target of messages of a topic of events."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from support.event_topics import encoded
from support.mutation import altered_bytes
from support.online_worlds import some_events
from support.scenarios import CROWD, schema_toml
from support.topic_replicas import SCHEMA
from support.worlds import START_TS
from thinrow.online.records import RecordFormat
from thinrow.online.topic.decoding import MessageDecoder
from thinrow.schema import parse_schema
from thinrow.v1 import event_topic_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NESTED = (b"\x0b" * 99 + b"\x0c" * 99, b"\x0b" * 102 + b"\x0c" * 102, b"\x0b" * 50_000)
"""Groups within groups: as deep as they may be, deeper, and without an end."""
UNKNOWN = (b"\x78\x01", b"\x7a\x02ab", b"\x79" + bytes(8), b"\x7d" + bytes(4), *NESTED)
"""Fields that messages of this version lack, of each wire type."""
SIZES = (b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x80\x00")
"""Sizes of 4 GiB and 8 EiB, and a zero of two bytes."""


class EventTarget:
    """Arbitrary bytes as messages of events: read as protobuf reads them, or refused alone."""

    def __init__(self, folder: Path) -> None:  # noqa: ARG002 - it needs no store
        self.seen: Counter[str] = Counter()
        self._decoder = MessageDecoder(RecordFormat(parse_schema(schema_toml(SCHEMA)), 0), 1)
        rng = random.Random(1)
        self._messages = [some_message(rng) for _ in range(40)]
        self._other = self._messages[0]

    def close(self) -> None:
        """Nothing stays open."""

    def altered(self, rng: random.Random) -> bytes:
        data = rng.choice(self._messages)
        for _ in range(rng.choice((0, 1, 1, 2))):
            at = rng.randrange(len(data) + 1)
            act = rng.random()
            if act < 0.2:  # between fields of the message, where it is valid
                data += rng.choice((*UNKNOWN, rng.choice(self._messages)))
            elif act < 0.3:
                data = data[:at] + rng.choice((*UNKNOWN, *SIZES)) + data[at:]
            else:
                data = altered_bytes(data, rng, self._messages)
        return data

    def __call__(self, data: bytes) -> None:
        alone = self._rows([data])[0]
        together = self._rows([self._other, data, self._other])
        assert together == [*self._rows([self._other]), alone, *self._rows([self._other])]
        self.seen["answered" if isinstance(alone, list) else "refused"] += 1
        if isinstance(alone, str):
            assert alone.endswith("."), alone
            return
        try:
            message = wire.UserEvents.FromString(data)
        except DecodeError:
            self.seen["refused by protobuf alone"] += 1
            return
        # What protobuf writes of what it read means the same.
        assert self._rows([message.SerializeToString()]) == [alone]

    def _rows(self, values: Sequence[bytes]) -> list[str | list[tuple[bytes, bytes | None, bytes]]]:
        """The events of each message, or why it was refused."""
        found: list[str | list[tuple[bytes, bytes | None, bytes]]] = []
        for part in self._decoder.decode(values, [0] * len(values)):
            batch, first = part.batch, 0
            rows = list(zip(batch.users, batch.ids, batch.records, strict=True))
            for count in part.counts:
                found.append(part.refused or rows[first : first + count])
                first += count
        return found


def some_message(rng: random.Random) -> bytes:
    """A valid message."""
    user = rng.choice(CROWD)
    events = [replace(event, user_id=user) for event in some_events(rng, SCHEMA, START_TS)]
    return encoded(user, events, SCHEMA)
