"""Lists through the online half: from any container, exact, within their limit, and logged."""

# ruff: noqa: ANN401 - values of any type

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from support.logged import Clock, config_in, features_of, published
from support.peak import MIB, peak_of
from support.worlds import START_TS, new_world
from thinrow.client import Projection
from thinrow.client.logger import ThinRow, ThinRowLogger, mutable_type
from thinrow.client.online import connect_online
from thinrow.core.pointers import MutableColumn
from thinrow.errors import InputError, RequestError
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thinrow.client.online import OnlineClient

SCHEMA = """
[lists]
tags = { type = "list<string>", length_max = 3, sparse = true }
codes = { type = "list<int16>", length_max = 300, sparse = true, default = [] }
weights = { type = "list<float32>", length_max = 2 }
[counted]
seen = { type = "int64", unit = "us", sparse = true }
day = { type = "int32", unit = "d", sparse = true }
price = { type = "int64", scale = 2, sparse = true }
brand = { type = "string", sparse = true, codes = { buckets = 1000 } }
"""
LISTS: dict[str, list[Any]] = {
    "tags": [["a", "é", ""], None, []],
    "codes": [[-32768, 32767], [], list(range(300))],
    "weights": [[0.5, -0.0], [], [1.0]],
}
KINDS = {"tags": pa.string(), "codes": pa.int64(), "weights": pa.float64()}
TIMES = [START_TS, START_TS + 1, START_TS + 2]
WANTED = Projection(traits=tuple(LISTS))


@contextmanager
def online(folder: Path) -> Iterator[OnlineClient]:
    world = new_world(folder, SCHEMA)
    config = OnlineConfig(
        store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[OnlineClient]:
    with online(tmp_path / "world") as client:
        yield client


def ragged(values: list[Any], dtype: str) -> np.ndarray[Any, Any]:
    """An object array of arrays, as pandas has lists."""
    array = np.empty(len(values), object)
    array[:] = [None if value is None else np.array(value, dtype) for value in values]
    return array


def columns(values: list[Any], dtype: Any) -> MutableColumn:
    there = [value is not None for value in values]
    flat = [element for value in values for element in value or ()]
    offsets = np.cumsum([0, *(len(value or ()) for value in values)])
    return MutableColumn(np.array(flat, dtype), np.array(there), offsets)


WAYS: dict[str, dict[str, Any]] = {
    "python": LISTS,
    "tuples": {name: [v and tuple(v) for v in values] for name, values in LISTS.items()},
    "numpy": {
        "tags": ragged(LISTS["tags"], "U2"),
        "codes": ragged(LISTS["codes"], ">i8"),
        "weights": ragged(LISTS["weights"], "f8"),
    },
    "arrow": {n: pa.array(LISTS[n], pa.list_(kind)) for n, kind in KINDS.items()},
    "views": {n: pa.array(LISTS[n], pa.list_view(kind)) for n, kind in KINDS.items()},
    "polars": {name: pl.Series(name, values) for name, values in LISTS.items()},
    "columns": {
        name: columns(LISTS[name], dtype)
        for name, dtype in {"tags": object, "codes": "i8", "weights": "f2"}.items()
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_lists_from_any_container(client: OnlineClient, way: str) -> None:
    """The same before the first generation, in the thin row, and after a second append."""
    for user in (1, 2):
        appended = client.append([user] * 3, TIMES, WAYS[way], [1, 2, 3])
        seen = client.snapshot(user, WANTED, request_ts=appended.arrival_ts + 1)
        found = {name: seen.batch.to_lists(name)[0] for name in LISTS}
        assert repr(found) == repr(LISTS)
        for name, values in LISTS.items():
            assert repr([event[name] for event in seen.thin_row.mutable]) == repr(values)
    # Of equal events without an id both stay, in the order of their lists.
    again = {name: [values[0], values[2], values[0]] for name, values in LISTS.items()}
    appended = client.append([3] * 3, [START_TS] * 3, again)
    seen = client.snapshot(3, WANTED, request_ts=appended.arrival_ts + 1)
    assert seen.batch.to_lists("tags") == [[[], ["a", "é", ""], ["a", "é", ""]]]


def test_an_array_of_two_dimensions_has_lists_of_one_length(client: OnlineClient) -> None:
    masked = np.ma.masked_array([["a"], ["b"]], [[False], [True]])
    traits = {"weights": np.array([[1, 2], [3, 4]]), "tags": masked}
    client.append([1, 1], TIMES[:2], traits)
    seen = client.snapshot(1, WANTED, request_ts=client.describe().now_ts + 500)
    assert seen.batch.to_lists("weights") == [[[1.0, 2.0], [3.0, 4.0]]]
    assert seen.batch.to_lists("tags") == [[["a"], None]]


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("tags", [["a"] * 4], "a list of 4 elements; the schema says length_max = 3"),
        ("tags", pa.array([["a"] * 4]), "a list of 4 elements; the schema says length_max = 3"),
        ("tags", columns([["a"] * 4], object), "a list of 4 elements"),
        ("tags", [["a", None]], "an absent value within a list"),
        ("tags", ["abc"], "'abc' where a list must be"),
        ("tags", [{"a"}], "where a list must be"),
        ("tags", [[1]], "1 is no text"),
        ("codes", [[1, None]], "an absent value within a list"),
        ("codes", [[1, float("nan")]], "an absent value within a list"),
        ("codes", [[1.5]], "1.5 cannot be stored as int16"),
        ("codes", [[32768]], "32768 cannot be stored as int16"),
        ("codes", [[[1]]], "is no number"),
        ("codes", [np.zeros((1, 1))], r"an array of shape \(1, 1\) where a flat one must be"),
        ("codes", np.array([7]), r"the shape \(1,\), where every event has a list"),
        ("codes", 7, "7"),
        ("codes", [[1], [2]], "2 values for 1 events"),
        ("weights", [None], "lack weights, which every event needs"),
        ("weights", [[1e300]], "cannot be stored as float32"),
        ("weights", [[datetime(2024, 1, 1, tzinfo=UTC)]], "is no number"),
        ("codes", MutableColumn(np.arange(2), None, np.array([0, 1])), "must ascend from 0 to 2"),
        (
            "codes",
            MutableColumn(np.arange(2), np.array([False]), np.array([0, 2])),
            "elements of an event without a list",
        ),
    ],
)
def test_lists_that_are_refused(client: OnlineClient, name: str, values: Any, says: str) -> None:
    with pytest.raises((InputError, RequestError), match=f"{name}.*{says}|{says}"):
        client.append([1], [START_TS], {"weights": [[]], name: values})
    assert not client.snapshot(1, WANTED).thin_row.mutable


def lists_column(**fields: Any) -> wire.Column:
    column = {
        "trait": "codes",
        "type": wire.TRAIT_TYPE_INT16,
        "bases": [0],
        "widths": b"\2",
        "data": b"\1\0\2\0",
        "list_length_max": 300,
        "list_lengths": b"\2\0",
    }
    return wire.Column(**{**column, **fields})


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "longer than its limit": ({"list_lengths": b"\x2d\1"}, "a list that is longer than its limit"),
    "another limit": ({"list_length_max": 4096}, "lists of at most 4096; the schema says"),
    "no list": ({"list_length_max": 0, "list_lengths": b"", "vector_size": 1}, "the schema says"),
    "a vector of lists": ({"vector_size": 2}, "with vector_size 2 and lists"),
    "another type": ({"type": wire.TRAIT_TYPE_INT32}, "comes as TRAIT_TYPE_INT32"),
    "too few lengths": ({"list_lengths": b"\2"}, "too few or many lengths"),
    "too many lengths": ({"list_lengths": b"\2\0\0\0"}, "too few or many lengths"),
    "more elements than data": ({"list_lengths": b"\3\0"}, "codes"),
    "fewer elements than data": ({"list_lengths": b"\1\0"}, "codes"),
    "elements of none": ({"nullable": True, "present": b"\0"}, "an event without a list"),
    "wider words": ({"widths": b"\4", "data": bytes(8)}, "words of 4 bytes, but TRAIT_TYPE_INT16"),
    "words out of range": ({"bases": [65000], "data": b"\xff\xff\xff\xff"}, "no int16"),
    "a text that is not there": (
        {
            "trait": "tags",
            "type": wire.TRAIT_TYPE_STRING,
            "list_length_max": 3,
            "list_lengths": b"\2",
            "widths": b"\1",
            "data": b"\0\1",
            "strings": ["a"],
        },
        "tags has a value that does not exist",
    ),
}


@pytest.mark.parametrize(("fields", "says"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_columns_of_lists(client: OnlineClient, fields: dict[str, Any], says: str) -> None:
    """The server trusts no client: it checks limits and lengths itself."""
    good = client.events([1], [START_TS], {"weights": [[]]})
    good.columns.append(lists_column(**fields))
    request = online_pb2.AppendEventsRequest(cursor=1, events=good)
    [answer] = client.stub.AppendEvents(iter([request]))
    assert says in answer.refused, answer
    assert not client.snapshot(1, WANTED).thin_row.mutable


def test_lists_of_equal_elements_cannot_fill_the_servers_memory() -> None:
    """Some 33 KiB declare 16,384 lists of 4,096 equal elements: half a gigabyte."""
    peak = peak_of(
        "read()",
        """
import numpy as np
from thinrow.core.wire.columns import from_wire
from thinrow.online.config import OnlineConfig
from thinrow.v1 import materialization_pb2 as wire

column = wire.Column(trait="x", type=4, bases=[7], widths=bytes(1), list_length_max=4096,
                     list_lengths=np.full(16384, 4096, "<u2").tobytes())
def read():
    return from_wire([column], 16384, OnlineConfig(store="x").batch_bytes_max)
""",
    )
    assert peak.outcome.startswith("AnswerTooLargeError: "), peak
    assert peak.grown_bytes < 16 * MIB, peak


def test_large_batches_of_lists_are_refused_by_their_records(client: OnlineClient) -> None:
    """Shared texts travel once; their records do not."""
    text, events = "x" * 4000, 2000
    traits = {"weights": [[]] * events, "tags": [[text] * 3] * events}
    with pytest.raises(RequestError, match="records of 2000 events would take 24,"):
        client.append([1] * events, [START_TS] * events, traits)


# The logger


COUNTED: dict[str, tuple[Any, Any]] = {
    "event_ts": (datetime.fromtimestamp(START_TS / 1000, UTC), START_TS),
    "arrival_ts": (np.datetime64(START_TS + 1, "ms"), START_TS + 1),
    "event_id": (None, None),
    "tags": (("a", ""), ["a", ""]),
    "codes": (np.array([1, 2]), [1, 2]),
    "weights": ([0.5], [0.5]),
    "seen": (datetime(2024, 1, 2, 3, 4, 5, 678, tzinfo=UTC), 1704164645000678),
    "day": (date(1969, 12, 31), -1),
    "price": (Decimal("9.99"), 999),
    "brand": ("a", 930),
}


def test_the_logger_takes_mappings_as_append_takes_traits(
    client: OnlineClient, tmp_path: Path
) -> None:
    """Times, decimals, texts with codes and lists; beside snapshots of columns, in one file."""
    mutable = mutable_type(client.describe())
    given = {name: value for name, (value, _) in COUNTED.items()}
    counts = {name: value for name, (_, value) in COUNTED.items()}
    absent = {**counts, "tags": None, "seen": None, "day": None, "price": None, "codes": []}
    traits = {name: [given[name]] for name in given if name not in ("arrival_ts", "event_id")}
    appended = client.append([1], traits.pop("event_ts"), traits)
    seen = client.snapshot(1, Projection(), request_ts=appended.arrival_ts + 1).thin_row
    rows = [(given, counts), (counts, counts), (absent, absent)]
    clock = Clock(seen.request_ts)
    with ThinRowLogger(config_in(tmp_path, mutable=mutable), clock=clock) as logger:
        for number, (event, _) in enumerate(rows):
            row = ThinRow(
                user_id=number,
                request_ts=clock.now_ts,
                start_ts=0,
                end_ts=0,
                max_length=0,
                digest=0,
                mutable=(event, event),
            )
            logger.log(f"r{number}", row, features_of(1))
        logger.log("seen", seen, features_of(1))
        wrong = ThinRow(
            user_id=1,
            request_ts=clock.now_ts,
            start_ts=0,
            end_ts=0,
            max_length=0,
            digest=0,
            mutable=({**given, "price": Decimal("9.999")},),
        )
        receipt = logger.log("wrong", wrong, features_of(1))
        with pytest.raises(InputError, match=r"mutable.price does not fit: 9.999 is no whole"):
            receipt.wait()
        with pytest.raises(InputError):
            logger.flush()
        clock.now_ts += 1000
        logger.drain(10)
    found = {row["request_id"]: row["mutable"] for row in published(tmp_path)}
    for number, (_, expected) in enumerate(rows):
        assert found[f"r{number}"] == [expected] * 2
    assert found["seen"] == [{**counts, "arrival_ts": appended.arrival_ts}]
