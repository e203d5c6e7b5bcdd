"""Arbitrary bytes as texts, in files and on the wire: refused by name, or stored and put back."""

# ruff: noqa: ANN401 - values of any type

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from support.tried import SEED, Tried, times
from support.worlds import START_TS, as_of, new_world
from thinrow.client import Pointers, Projection, connect, read_thin_rows
from thinrow.client.online import connect_online
from thinrow.core.ids import ID_BYTES_MAX
from thinrow.errors import InputError
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from support.worlds import World

pytestmark = pytest.mark.timeout(3600)
SCHEMA = """
[user]
id = "string"
[event]
id = "string"
[item]
name = { type = "string", sparse = true }
names = { type = "list<string>", length_max = 2, sparse = true }
brand = { type = "string", sparse = true, codes = "vocabulary" }
"""
IDS = ("user_id", "event_id")
TRAITS = ("name", "names", "brand")
ROWS_AT_ONCE = 500
BYTES_MIN = 12
"""Fewest bytes of a text, so that a run of as many letters stands for it within a message."""
NO_TEXTS = [
    *(b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xed\xa0\xbd\xed\xb8\x80"),  # halves of surrogate pairs
    *(b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf"),  # longer than they need be
    *(b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xff\xfe", b"\x80", b"\xbf"),
    *("é".encode()[:1], "漢".encode()[:2], "😀".encode()[:3]),  # cut short
]
TEXTS = [
    *("\0", "\x1b[2J", "\r\n", "\u2028", "\x7f", "\x85", "'; --", "[red]", "<b>", "../", "%00"),
    *("\ufeff", "\ufffe", "\uffff", "\U0010ffff", "\ufffd", "\ud7ff", "\ue000", "\U00010000"),
    *("\u202e", "\u200b", "e\u0301", "é", "ß", "İ", "👩\u200d👩", "漢", "😀", "\u0661", " ", "\t"),
]


def hostile(rng: random.Random) -> bytes:
    """Bytes that are no text, or one that few expect."""
    parts = [rng.choice(TEXTS).encode() for _ in range(rng.randrange(1, 5))]
    kind = rng.randrange(4)
    if kind == 0:
        parts.insert(rng.randrange(len(parts)), rng.choice(NO_TEXTS))
    elif kind == 1:
        parts.append(rng.randbytes(rng.randrange(1, 8)))
    elif kind == 2 and not rng.randrange(4):
        parts *= rng.choice((40, 400))
    return b"".join(parts).ljust(BYTES_MIN, b".")


def text_of(data: bytes) -> str | None:
    """The text; None for bytes that Python does not take for one."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def fits(data: bytes, place: str) -> bool:
    """True if the bytes are a text that may stand in a place."""
    return text_of(data) is not None and (place not in IDS or len(data) <= ID_BYTES_MAX)


def raw(values: Sequence[bytes]) -> pa.StringArray:
    """Bytes as texts of Arrow, which takes them as they are."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(values), pa.py_buffer(ends), pa.py_buffer(b"".join(values))
    )


def lists(values: pa.StringArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values)


def events(place: str, data: Sequence[bytes], first: int) -> pa.Table:
    """An event of each text in one column, of users and events of their own."""
    numbers = range(first, first + len(data))
    columns: dict[str, Any] = {
        "user_id": [f"user {number}" for number in numbers],
        "event_ts": [START_TS + number for number in numbers],
        "event_id": [f"event {number}" for number in numbers],
    }
    texts = raw(data)
    return pa.table(columns | {place: lists(texts) if place == "names" else texts})


def thin_rows(place: str, data: bytes) -> pa.Table:
    """A thin row with a text as its user or in its mutable event."""
    texts = raw([data])
    given = {"event_ts": pa.array([START_TS]), "arrival_ts": pa.array([START_TS])}
    if place != "user_id":
        given[place] = lists(texts) if place == "names" else texts
    snapshots = pa.ListArray.from_arrays(
        pa.array([0, 1], pa.int32()), pa.StructArray.from_arrays([*given.values()], [*given])
    )
    uih = pa.array([{"start_ts": 0, "end_ts": START_TS, "max_length": 0, "digest": 0}])
    users: Any = texts if place == "user_id" else ["a"]
    columns = {"user_id": users, "request_ts": [START_TS], "uih": uih, "mutable": snapshots}
    return pa.table(columns)


def refused_by_name(world: World, place: str, data: bytes) -> None:
    """Fails unless every reader of files refuses the bytes, and names the column."""
    with pytest.raises(InputError, match=place if text_of(data) is None else "bytes; at most"):
        world.compact(events(place, [data], 0), 1)
    assert not (world.store / "CURRENT").exists()
    if place not in ("event_id", "brand") and text_of(data) is None:
        path = world.write("rows.parquet", thin_rows(place, data))
        with pytest.raises(InputError, match=rf"{place}\S* has bytes that are no UTF-8"):
            list(read_thin_rows(path, examples=1))


def test_texts_of_files(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    world = new_world(tmp_path, SCHEMA)
    taken: dict[str, list[bytes]] = {place: [] for place in (*IDS, *TRAITS)}
    count, refused = times(40, 2000), 0
    for _ in range(count):
        place, data = rng.choice([*taken]), hostile(rng)
        if not fits(data, place):
            refused_by_name(world, place, data)
            refused += 1
        elif data not in taken[place]:
            taken[place].append(data)
            if place not in ("event_id", "brand"):
                path = world.write("rows.parquet", thin_rows(place, data))
                [(rows, _)] = read_thin_rows(path, examples=1)
                found = rows.pointers.user(0)
                if place != "user_id":
                    assert rows.mutable is not None
                    [found] = rows.mutable.columns[place].values
                assert found == data.decode()
    tables, first = [], 0
    for place, values in taken.items():
        tables.append(events(place, values, first))
        first += len(values)
    world.compact(pa.concat_tables(tables, promote_options="default"), 1)
    right = stored_equal(world, taken)
    Tried(
        fault="Arbitrary bytes as texts in files: users, events, traits, lists, vocabularies",
        times=count,
        promised="Refused with the column's name, or stored and put back equal",
        seen=f"{refused:,} refused by name, {right:,} different ones stored and put back equal",
    ).keep()


def stored_equal(world: World, taken: dict[str, list[bytes]]) -> int:
    """Compares what the store has with what was given; returns how many texts there were."""
    first = 0
    with connect(world.store) as client:
        for place, values in taken.items():
            texts = [data.decode() for data in values]
            users = [f"user {first + row}" for row in range(len(texts))]
            first += len(texts)
            for at in range(0, len(texts), ROWS_AT_ONCE):
                given = texts[at : at + ROWS_AT_ONCE]
                named = given if place == "user_id" else users[at : at + ROWS_AT_ONCE]
                pointers = Pointers(user_ids=named, end_ts=[as_of(1)] * len(named))
                trait = "event_id" if place == "user_id" else place
                batch = client.materialize(pointers, Projection(traits=(trait,)))
                found = batch.to_lists(trait)
                if place == "user_id":  # each has an event of its own
                    assert len({row[0] for row in found if row}) == len(given)
                elif place == "names":
                    assert found == [[[text]] for text in given]
                elif place == "brand":
                    assert found == [[code] for code in client.codes("brand", given)]
                    assert min(row[0] for row in found if row) > 1
                else:
                    assert found == [[text] for text in given]
                assert [len(row or ()) for row in found] == [1] * len(given)
    return first


def test_texts_on_the_wire(tmp_path: Path) -> None:
    """Messages are altered after they were encoded, as clients of others may write them."""
    rng = random.Random(SEED)
    world = new_world(tmp_path, SCHEMA)
    config = OnlineConfig(
        store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None
    )
    count, refused, later_ts = times(120, 10_000), 0, 0
    taken: dict[str, tuple[str, str]] = {}
    with (
        OnlineServer(config) as server,
        connect_online(server.address) as online,
        grpc.insecure_channel(server.address) as channel,
    ):
        append: Any = channel.stream_stream("/thinrow.v1.OnlineService/AppendEvents")
        for number in range(count):
            place, data = rng.choice((*IDS, *TRAITS)), hostile(rng)
            message = encoded(online.events, place, number, len(data)).replace(
                b"Q" * len(data), data
            )
            is_stored = False
            try:
                [answer] = map(online_pb2.AppendEventsResponse.FromString, append(iter([message])))
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (place, data, error)
            else:
                is_stored = not answer.refused
                assert answer.appended <= is_stored
            assert is_stored == fits(data, place), (place, data)
            refused += not is_stored
            if is_stored:
                user = data.decode() if place == "user_id" else f"user {number}"
                taken[user] = place, data.decode()
                later_ts = answer.arrival_ts + 1
        users = [*taken]
        for at in range(0, len(users), ROWS_AT_ONCE):
            named = users[at : at + ROWS_AT_ONCE]
            rows = online.snapshot_batch(named, Projection(), request_ts=later_ts).thin_rows
            for user, row in zip(named, rows, strict=True):
                place, text = taken[user]
                assert row.user_id == user
                event = row.mutable[0]
                meant = [text] if place == "names" else text
                assert place == "user_id" or event[place] == meant, (place, text, event)
    Tried(
        fault="Arbitrary bytes as texts in appends on the wire: users, events, traits, lists",
        times=count,
        promised="Refused, and the service goes on; or stored and shown equal",
        seen=f"{refused:,} refused, {len(taken):,} users' texts stored and shown equal, 0 changed",
    ).keep()


def encoded(make: Any, place: str, number: int, size: int) -> bytes:
    """A message that appends an event, with letters in a place for the bytes of a text."""
    stand_in = "Q" * size
    user = stand_in if place == "user_id" and size <= ID_BYTES_MAX else f"user {number}"
    event = stand_in if place == "event_id" and size <= ID_BYTES_MAX else f"event {number}"
    traits = {place: [[stand_in] if place == "names" else stand_in]} if place in TRAITS else {}
    batch = make([user], [START_TS], traits, [event])
    if place in IDS and size > ID_BYTES_MAX:  # the client refuses to make these
        texts = batch.user_texts if place == "user_id" else batch.columns[1].strings
        texts[0] = stand_in
    return online_pb2.AppendEventsRequest(cursor=number, events=batch).SerializeToString()
