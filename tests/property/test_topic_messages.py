"""Messages of a topic: any events come back as they were, and bad bytes are refused alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.event_topics import encoded, partition
from support.id_kinds import EVENT_IDS, KINDS, known_id
from support.online_worlds import some_events
from support.scenarios import CROWD, examples, schema_toml, schemas
from support.worlds import START_TS
from thinrow.core.wire.columns import as_column
from thinrow.online.records import Batch, RecordFormat, batch_of
from thinrow.online.topic import messages
from thinrow.online.topic.decoding import Decoded, MessageDecoder
from thinrow.online.topic.messages import encode_messages, partition_of
from thinrow.online.users import named_users
from thinrow.schema import EVENT_TS, parse_schema
from thinrow.v1.event_topic_pb2 import UserEvents

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest
    from support.oracle import Event, Schema

PARTITIONS = 7


def batch(events: Sequence[Event], schema: Schema, record_format: RecordFormat) -> Batch:
    """The records of events, without messages."""
    given = {
        trait.name: as_column(trait.form, [event.traits.get(trait.name) for event in events])
        for trait in record_format.schema.carried.traits
    }
    given["event_ts"] = as_column(
        EVENT_TS.form,
        [event.event_ts for event in events],
    )
    given["event_id"] = as_column(
        record_format.schema.event_id.form, [event.event_id for event in events]
    )
    known = [known_id(event.user_id, schema.user_ids) for event in events]
    texts = [user for user in known if isinstance(user, str)]
    ids = [np.uint64(user % (1 << 64)).astype(np.int64) for user in known if isinstance(user, int)]
    users = named_users([int(user) for user in ids], texts, record_format.schema.user_ids)
    return batch_of(users, record_format.checked(given, len(events)), record_format)


def by_user(found: Sequence[tuple[bytes, bytes | None, bytes]]) -> dict[bytes, list[Any]]:
    users: dict[bytes, list[Any]] = {}
    for user, event_id, record in found:
        users.setdefault(user, []).append((event_id, record))
    return users


def rows(part: Batch) -> list[tuple[bytes, bytes | None, bytes]]:
    return list(zip(part.users, part.ids, part.records, strict=True))


@examples(60)
@given(st.data())
def test_any_events_come_back(data: st.DataObject) -> None:
    schema = replace(
        data.draw(schemas(coded=True)),
        user_ids=data.draw(st.sampled_from(KINDS)),
        event_ids=data.draw(st.sampled_from([*EVENT_IDS])),
    )
    rng = data.draw(st.randoms(use_true_random=True))
    record_format = RecordFormat(parse_schema(schema_toml(schema)), 0)
    events = [event for _ in range(4) for event in some_events(rng, schema, START_TS)]
    sent = batch(events, schema, record_format)
    made = encode_messages(sent, record_format)
    values = [message.value for message in made]
    placed = [partition_of(message.user_key, PARTITIONS) for message in made]
    decoder = MessageDecoder(record_format, PARTITIONS)
    parts = list(decoder.decode(values, placed))
    assert not any(part.refused for part in parts)
    found = [row for part in parts for row in rows(part.batch)]
    assert by_user(found) == by_user(rows(sent))
    # The protobuf library reads the same, also what it leaves out: unset fields and other bytes.
    parsed = [UserEvents.FromString(value) for value in values]
    parts = list(decoder.decode([one.SerializeToString() for one in parsed], placed))
    assert [row for part in parts for row in rows(part.batch)] == found
    # Another producer's bytes mean the same.
    others = [encoded(event.user_id, [event], schema) for event in events]
    numbers = [partition(event.user_id, schema.user_ids, PARTITIONS) for event in events]
    parts = list(decoder.decode(others, numbers))
    assert not any(part.refused for part in parts)
    assert [row for part in parts for row in rows(part.batch)] == rows(sent)


def each(parts: Sequence[Decoded]) -> list[Any]:
    """Rows of each message; None of one that was refused."""
    found: list[Any] = []
    for part in parts:
        assert len(part.counts) == part.messages
        all_rows = rows(part.batch)
        at = 0
        for count in part.counts:
            found.append(None if part.refused else all_rows[at : at + count])
            at += count
        assert at == len(all_rows)
    return found


@examples(40)
@given(st.data())
def test_bad_bytes_are_refused_whatever_comes_with_them(data: st.DataObject) -> None:
    schema = replace(
        data.draw(schemas()),
        user_ids=data.draw(st.sampled_from(KINDS)),
        event_ids=data.draw(st.sampled_from([*EVENT_IDS])),
    )
    rng = data.draw(st.randoms(use_true_random=True))
    record_format = RecordFormat(parse_schema(schema_toml(schema)), 0)
    values, placed = [], []
    for _ in range(30):
        user = rng.choice(CROWD)
        events = [replace(event, user_id=user) for event in some_events(rng, schema, START_TS)]
        value = bytearray(encoded(user, events, schema))
        for _ in range(rng.choice((0, 0, 1, 3))):
            match rng.randrange(3):
                case 0:
                    value[rng.randrange(len(value))] = rng.randrange(256)
                case 1:
                    del value[rng.randrange(len(value)) :]
                    value += b"\0"
                case _:
                    at = rng.randrange(len(value))
                    value[at:at] = value[rng.randrange(len(value)) :][:9]
        values.append(bytes(value))
        placed.append(partition(user, schema.user_ids, PARTITIONS))
    decoder = MessageDecoder(record_format, PARTITIONS)
    alone = [
        each(list(decoder.decode([value], [number])))[0]
        for value, number in zip(values, placed, strict=True)
    ]
    assert each(list(decoder.decode(values, placed))) == alone


def test_batches_are_cut_to_the_limits_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    record_format = RecordFormat(parse_schema('[g]\nx = "int64"\n'), 0)
    columns = {
        "event_ts": as_column(EVENT_TS.form, [START_TS] * 2500),
        "event_id": as_column(record_format.schema.event_id.form, list(range(2500))),
        "x": as_column(record_format.schema.traits[0].form, list(range(2500))),
    }
    whole = batch_of([5] * 2500, record_format.checked(columns, 2500), record_format)
    number = partition_of(5, PARTITIONS)
    decoder = MessageDecoder(record_format, PARTITIONS)
    for bytes_max, count in ((messages.MESSAGE_BYTES_MAX, 3), (10_000, 5)):
        monkeypatch.setattr(messages, "MESSAGE_BYTES_MAX", bytes_max)
        made = [message.value for message in encode_messages(whole, record_format)]
        assert len(made) >= count and max(map(len, made)) <= bytes_max
        parts = list(decoder.decode(made, [number] * len(made)))
        assert [row for part in parts for row in rows(part.batch)] == rows(whole)
    [refused] = decoder.decode([made[0] + made[1] * 100], [number])
    assert refused.refused
