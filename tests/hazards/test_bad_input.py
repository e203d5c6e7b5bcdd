"""Mistakes of users: one sentence that says what to do, the right exit status, nothing lost."""

# ruff: noqa: ANN401 - options go through as they are

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.worlds import (
    ALL,
    DAY_MS,
    OWN_HOST,
    START_TS,
    World,
    as_of,
    built_world,
    days,
    leftovers,
    new_world,
    pointers_to,
    read_store,
    shown,
    some_events,
    thinrow,
)
from thinrow.cli.app import app
from thinrow.client import ClientConfig, Pointers, Projection, connect, read_thin_rows
from thinrow.errors import (
    AnswerTooLargeError,
    InputError,
    RequestError,
    StoreMissingError,
    UnknownTenantError,
)
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.v1 import materialization_pb2 as wire
from thinrow.v1.materialization_pb2_grpc import MaterializationServiceStub
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from thinrow.client import Client

MISTAKE, FAILED = 2, 1
EVENTS = some_events(12, users=3)


def refused(*arguments: object, says: str | tuple[str, ...], status: int = MISTAKE) -> str:
    """Runs a command that must end in one sentence with these words; returns it."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return check_refusal(result.exit_code, result.stderr, repr(result.exception), says, status)


def check_refusal(
    exit_code: int, stderr: str, exception: str, says: str | tuple[str, ...], status: int
) -> str:
    reported = stderr.strip()
    assert exit_code == status, (exit_code, reported, exception)
    assert "Traceback" not in reported
    assert reported.startswith("Error: "), reported
    assert reported.endswith((".", ")")), reported
    assert "\n" not in reported, reported
    for words in (says,) if isinstance(says, str) else says:
        assert words in reported, reported
    return reported


def compact(world: World, *events: Path, day: int = 3) -> list[object]:
    return [
        *("compact", *events, "--store", world.store, "--schema", world.schema),
        *("--watermark", as_of(day)),
    ]


@pytest.fixture
def fresh(tmp_path: Path) -> World:
    return new_world(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store for tests that change nothing in it."""
    return built_world(tmp_path_factory.mktemp("world"))


# Events.


def replaced(name: str, values: pa.Array | list[Any]) -> pa.Table:
    return EVENTS.set_column(EVENTS.column_names.index(name), name, pa.array(values))


def first_replaced(name: str, value: object, kind: pa.DataType | None = None) -> pa.Table:
    values = [value, *EVENTS[name].to_pylist()[1:]]
    return replaced(name, pa.array(values, kind or EVENTS.schema.field(name).type))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (EVENTS.drop_columns(["user_id"]), "no column user_id"),
        (EVENTS.drop_columns(["event_ts"]), "no column event_ts"),
        (EVENTS.drop_columns(["brand"]), ("no column brand", "sparse = true or a default")),
        (first_replaced("user_id", None), ("user_id has 1 nulls", "every event needs one")),
        (first_replaced("event_ts", None), ("event_ts has 1 nulls", "every row needs one")),
        (first_replaced("brand", None), ("brand has 1 nulls", "sparse = true")),
        (replaced("user_id", [1.0] * 12), ("user_id is double", "must be an integer")),
        (replaced("user_id", ["1"] * 12), ("user_id is string", "must be an integer")),
        (
            first_replaced("user_id", 2**63, pa.uint64()),
            ("user_id does not fit into int64", "9223372036854775808", "the same bits"),
        ),
        (replaced("event_ts", [1.5] * 12), ("event_ts is double", "int64 milliseconds")),
        (replaced("event_id", [0.5] * 12), ("event_id is double", "must be an integer")),
        (replaced("item_id", ["x"] * 12), ("item_id is string", "must be an integer")),
        (replaced("brand", list(range(12))), ("brand is int64", "the schema says string")),
        (
            first_replaced("rating", 128, pa.int16()),
            ("rating does not fit into int8", "128"),
        ),
        (replaced("item_id", [1.5] * 12), ("item_id does not fit into int64", "1.5")),
        (replaced("item_id", [2.0**53] * 12), ("item_id is double", "rounds integers from")),
        (replaced("brand", [b"\xff"] * 12), ("brand does not fit into", "UTF8")),
        (replaced("price", ["1"] * 12), ("price is string", "the schema says float64")),
        (replaced("price", [2**53 + 1] * 12), ("price", "does not fit into", "9007199254740993")),
        (
            EVENTS.append_column("arrival_ts", pa.array(["then"] * 12)),
            ("arrival_ts is string", "int64 milliseconds"),
        ),
    ],
)
def test_events_of_the_wrong_shape(
    fresh: World, table: pa.Table, says: str | tuple[str, ...]
) -> None:
    path = fresh.write("events.parquet", table)
    assert str(path) in refused(*compact(fresh, path), says=says)
    assert leftovers(fresh.store) == []
    with pytest.raises(StoreMissingError):
        read_store(fresh.store, pointers_to(days(3)))


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ([[0.0, 1.0]] * 12, ("vectors of length [2]", "the schema says 3")),
        ([[0.0, 1.0, 2.0]] * 11 + [[0.0]], ("vectors of length [1, 3]", "the schema says 3")),
        ([[0.0, 1.0, None]] * 12, "nulls inside vectors"),
        ([None] + [[0.0, 1.0, 2.0]] * 11, ("vector has 1 nulls", "sparse = true")),
        ([["1", "2", "3"]] * 12, ("vector is list", "the schema says a list of 3 float32")),
        ([1.0] * 12, ("vector is double", "the schema says a list of 3 float32")),
    ],
)
def test_vectors_of_the_wrong_size(
    tmp_path: Path, vectors: list[Any], says: str | tuple[str, ...]
) -> None:
    world = new_world(tmp_path, '[g]\nvector = { type = "float32", size = 3 }\n')
    table = EVENTS.append_column("vector", pa.array(vectors))
    refused(*compact(world, world.write("events.parquet", table)), says=says)


def corrupt(path: Path) -> None:
    """Damages the data, not the footer: it opens, and fails when it is read."""
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage",
    [
        corrupt,
        cut_short,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("user_id,event_ts\n1,2\n", encoding="utf-8"),
    ],
)
def test_a_damaged_file(fresh: World, damage: Callable[[Path], object]) -> None:
    good = fresh.write("good.parquet", EVENTS)
    path = fresh.write("events.parquet", some_events())
    damage(path)
    reported = refused(*compact(fresh, good, path), says="cannot be read as Parquet")
    assert str(path) in reported
    assert leftovers(fresh.store) == []


def test_no_such_events(fresh: World) -> None:
    (fresh.folder / "empty").mkdir()
    refused(*compact(fresh, fresh.folder / "none.parquet"), says="There is no file")
    refused(*compact(fresh, fresh.folder / "empty"), says="has no *.parquet files")


def test_no_events_at_all_are_fine(fresh: World) -> None:
    fresh.compact(EVENTS.slice(0, 0), 3)
    assert read_store(fresh.store, pointers_to(days(3), [1])) == [
        (wire.STATUS_OK, {name: [] for name in ("event_ts", "item_id", "brand", "rating", "price")})
    ]


def test_unsorted_everything(tmp_path: Path) -> None:
    """Rows, columns and files in any order, of other types that hold the same."""
    events = some_events()
    expected = read_store(built_world(tmp_path / "one").store, pointers_to(days(1, 2, 3)[2:]))
    world = new_world(tmp_path / "other")
    order = np.random.default_rng(0).permutation(len(events))
    shuffled = events.take(pa.array(order)).select(sorted(events.column_names))
    (world.folder / "events").mkdir()
    for n in range(3):
        part = shuffled.slice(150 * n, 150)
        part = part.set_column(0, "brand", part["brand"].dictionary_encode())
        times = part["event_ts"].cast(pa.timestamp("ms")).cast(pa.timestamp("ns", "Asia/Tokyo"))
        part = part.set_column(part.column_names.index("event_ts"), "event_ts", times)
        world.write(f"events/{9 - n}.parquet", part, compression="gzip", row_group_size=7)
    result = CliRunner().invoke(app, list(map(str, compact(world, world.folder / "events"))))
    assert result.exit_code == 0, result.output
    assert read_store(world.store, pointers_to(days(3))) == expected


def test_unknown_columns_are_named(fresh: World) -> None:
    table = EVENTS.append_column("colour", pa.array(["red"] * 12))
    table = table.append_column("size", pa.array([1] * 12))
    path = fresh.write("events.parquet", table)
    result = CliRunner().invoke(app, list(map(str, compact(fresh, path))))
    assert result.exit_code == 0
    assert "Not in the schema, so not stored: colour, size" in result.stdout


# Schema files.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ("No feature groups", "[item]")),
        ("[item", "Not a TOML file"),
        ('[a]\nuih_status = "int8"', ("a.uih_status", "remove the line")),
        ('[a]\nrequest_ts = "int64"', ("a.request_ts", "remove the line")),
        ('[a]\nx = { type = "float32", default = 1e39 }', ("a.x", "a number that fits")),
        ('item_id = "int64"', ("item_id stands outside of a feature group", "[item]")),
        ("[item]", ("[item] has no traits", "list at least one")),
        ('["my item"]\na = "int8"', ("'my item' is not a name", "letters, digits and _")),
        ('[g]\n"" = "int8"', ("'' is not a name", "letters, digits and _")),
        ('[g]\n1a = "int8"', ("g.1a: '1a' is not a name", "not a digit first")),
        (f'[g]\n{"a" * 129} = "int8"', "longer than 128 letters"),
        ('[g]\na = "int8"\n[h]\na = "int8"', ("h.a: g.a has that name already", "unique")),
        ('[g]\nuser_id = "int64"', ("g.user_id: every event has user_id already", "remove")),
        ('[g]\nvisible_ts = "int64"', ("every event has visible_ts already", "remove")),
        ('[g]\na = "integer"', ("g.a: unknown type 'integer'", "int8", "categorical")),
        ("[g]\na = 8", ("g.a: write a =", '"int64"')),
        ("[g]\na = { type = 8 }", ("g.a: unknown type 8", "use one of")),
        ("[g]\na = { sparse = true }", ("g.a: no type", '{ type = "int64" }')),
        ('[g]\na = { type = "int8", nullable = true }', ("unknown 'nullable'", "sparse")),
        ('[g]\na = { type = "int8", sparse = 1 }', ("g.a: sparse is true or false")),
        ('[g]\na = { type = "int8", key = "yes" }', ("g.a: key is true or false")),
        ('[g]\na = { type = "float32", size = 0 }', ("g.a: size", "from 1 to 4096")),
        ('[g]\na = { type = "float32", size = 1.5 }', ("g.a: size", "whole number")),
        ('[g]\na = { type = "bool", size = 2 }', ("g.a: only traits of integers", "have a size")),
        ('[g]\na = { type = "int8", default = 128 }', ("g.a: the default", "-128 to 127")),
        ('[g]\na = { type = "uint8", default = -1 }', ("g.a: the default", "0 to 255")),
        ('[g]\na = { type = "int8", default = true }', ("g.a: the default", "whole number")),
        ('[g]\na = { type = "string", default = 0 }', ("default of a string is text")),
        ('[g]\na = { type = "bool", default = 0 }', ("default of a bool is true or false")),
        ('[g]\na = { type = "float32", default = nan }', ("is a number that fits, not NaN")),
        (f'[g]\na = {{ type = "float64", default = 1{"0" * 400} }}', "default of a float64"),
        ('[g]\na = { type = "float32", default = "0" }', ("default of a float32 is a number")),
        ("\n".join(f'[g{n}]\na{n} = "int8"' for n in range(201)), ("201", "at most 200")),
    ],
)
def test_a_wrong_schema_file(fresh: World, text: str, says: str | tuple[str, ...]) -> None:
    fresh.schema.write_text(text, encoding="utf-8")
    path = fresh.write("events.parquet", EVENTS)
    assert str(fresh.schema) in refused(*compact(fresh, path), says=says)


def test_no_schema_file(fresh: World) -> None:
    path = fresh.write("events.parquet", EVENTS)
    fresh.schema.unlink()
    refused(*compact(fresh, path), says=("Cannot read the schema file", "No such file"))
    fresh.schema.write_bytes(b"[g]\n\xff = 'int8'")
    refused(*compact(fresh, path), says="Cannot read the schema file")


# Compaction's other input.


def test_watermarks_only_go_on(tmp_path: Path) -> None:
    world = built_world(tmp_path)
    before = read_store(world.store, pointers_to(days(3)))
    path = world.folder / "events-3.parquet"
    other = world.write("other.parquet", EVENTS)
    same = CliRunner().invoke(app, list(map(str, compact(world, path))))
    assert same.exit_code == 0
    assert "Generation 1 was already built by this very run." in same.stdout
    refused(*compact(world, other), says=("published with other input", "later --watermark"))
    refused(
        *(*compact(world, path), "--lookback", "1d"),
        says=("published with other input or options", "later --watermark"),
    )
    refused(*compact(world, path, day=2), says=("already has watermark", "later --watermark"))
    refused(*(*compact(world, path, day=4), "--shards", 3), says=("has 2 shards", "leave --shards"))
    assert read_store(world.store, pointers_to(days(3))) == before
    assert leftovers(world.store) == []


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--watermark", 0, "--watermark is 0; it must be above 0"),
        ("--cadence", "0d", "--cadence is 0; it must be above 0"),
        ("--lookback", "0s", "--lookback is 0; it must be above 0"),
        ("--shards", 0, "--shards is 0; it must be above 0"),
        ("--shards", 5000, "--shards is 5000; it must be at most 512"),
        ("--keep", 0, "--keep is 0; it must be above 0"),
    ],
)
def test_options_out_of_range(built: World, option: str, value: object, says: str) -> None:
    refused(*compact(built, built.folder), option, value, says=says)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--watermark", "yesterday", "is no time"),
        ("--watermark", 2**63, "does not fit"),
        ("--cadence", "1 day", "is no duration"),
        ("--cadence", "-1d", "is no duration"),
        ("--lookback", "99999999999999w", "is no duration"),
    ],
)
def test_options_that_cannot_be_read(built: World, option: str, value: object, says: str) -> None:
    # The command line's own library reports these: its usage, then a box.
    arguments = [*compact(built, built.folder), option, value]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == MISTAKE
    assert says in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("cadence", ["1d", "1ms"])
def test_a_watermark_in_nanoseconds(fresh: World, cadence: str) -> None:
    # A slip of units must not fill the memory with cuts.
    path = fresh.write("events.parquet", EVENTS)
    arguments = compact(fresh, path)
    arguments[-1] = START_TS * 1_000_000
    says = ("is read as milliseconds", "nanoseconds", f"give {START_TS} (2023-11-14T00:00:00.000Z)")
    refused(*arguments, "--cadence", cadence, says=says)
    assert not fresh.store.exists()


def test_a_cadence_of_too_many_cuts(fresh: World) -> None:
    path = fresh.write("events.parquet", EVENTS)
    says = ("--cadence would cut", "milliseconds")
    refused(*compact(fresh, path), "--cadence", "1ms", says=says)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("users.txt", b"1\ntwo\n", ("not a list of user ids", "two")),
        ("users.txt", b"1.0\n", "not a list of user ids"),
        ("users.txt", b"9223372036854775808\n", "not a list of user ids"),
        ("users.txt", b"\xff\xfe1\x00", "Cannot read the users to erase"),
        ("users.parquet", b"1\n2\n", "cannot be read as Parquet"),
        ("users.parquet", pa.table({"user": [1]}), "no column user_id"),
        ("users.parquet", pa.table({"user_id": [1.0]}), "must be an integer"),
        ("users.parquet", pa.table({"user_id": [1, None]}), "has 1 nulls"),
        ("users.parquet", pa.table({"user_id": pa.array([2**63], pa.uint64())}), "fit into int64"),
        ("none.txt", None, "Cannot read the users to erase"),
        ("none.parquet", None, "There is no file"),
    ],
)
def test_a_bad_list_of_users_to_erase(
    built: World, tmp_path: Path, name: str, content: bytes | pa.Table | None, says: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(content, path)
    events = built.write("more.parquet", EVENTS)
    reported = refused(*compact(built, events, day=4), "--erase", path, says=says)
    assert str(path) in reported


def test_a_damaged_list_of_users_to_erase(built: World, tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user_id": range(1000)}), path)
    corrupt(path)
    events = built.write("more.parquet", EVENTS)
    reported = refused(
        *compact(built, events, day=4), "--erase", path, says="cannot be read as Parquet"
    )
    assert str(path) in reported


def test_a_store_that_is_a_file(fresh: World) -> None:
    events = fresh.write("events.parquet", EVENTS)
    fresh.store.write_text("not a folder", encoding="utf-8")
    reported = refused(*compact(fresh, events), says=str(fresh.store), status=FAILED)
    assert "File exists" in reported
    command = compact(fresh, events)
    command[command.index(fresh.store)] = "/proc/none/store"
    refused(*command, says="Cannot read or write /proc/none/store", status=FAILED)


# Backfill.


def requests_of(world: World, **columns: Any) -> Path:
    table = {"user_id": [1, 2], "request_ts": [as_of(1) + 5, as_of(2) + 7], "label": ["a", "b"]}
    return world.write("requests.parquet", pa.table({**table, **columns}))


def backfill(world: World, requests: Path, *options: object) -> list[object]:
    events = world.folder / "events-3.parquet"
    rows = world.folder / "rows.parquet"
    command = ["backfill", requests, "--store", world.store, "--events", events]
    return [*command, "--out", rows, *options]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store cut daily, as backfill needs it."""
    world = new_world(tmp_path_factory.mktemp("cut"))
    world.compact(some_events(), 3, cadence_ms=DAY_MS)
    return world


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"request_ts": [1.0, 2.0]}, ("request_ts is double", "int64 milliseconds")),
        ({"request_ts": [None, as_of(1)]}, ("request_ts has 1 nulls", "every row needs one")),
        ({"user_id": ["1", "2"]}, ("user_id is string", "must be an integer")),
        ({"user_id": [1, None]}, ("user_id has 1 nulls", "every row needs one")),
        ({"user_id": pa.array([1, 2**63], pa.uint64())}, ("user_id", "int64")),
        ({"uih": [1, 2]}, ("already has a column uih", "rename it")),
        ({"mutable": [1, 2]}, ("already has a column mutable", "rename it")),
        ({"request_ts": [as_of(1), as_of(9)]}, ("only reaches", "compact up to --watermark")),
    ],
)
def test_bad_requests(cut: World, columns: dict[str, Any], says: str | tuple[str, ...]) -> None:
    refused(*backfill(cut, requests_of(cut, **columns)), says=says)
    assert not (cut.folder / "rows.parquet").exists()
    assert not list(cut.folder.glob(".rows*"))


def test_requests_that_cannot_be_read(cut: World) -> None:
    path = cut.write("requests.parquet", pa.table({"user_id": [1]}))
    refused(*backfill(cut, path), says="no column request_ts")
    refused(*backfill(cut, cut.folder / "none.parquet"), says="There is no file")
    requests = {"user_id": [1] * 500, "request_ts": [as_of(1)] * 500, "label": list(range(500))}
    for name in requests:
        path = cut.write("requests.parquet", pa.table(requests), use_dictionary=False)
        place = pq.ParquetFile(path).metadata.row_group(0)
        (start,) = (
            place.column(n).data_page_offset
            for n in range(place.num_columns)
            if place.column(n).path_in_schema == name
        )
        data = bytearray(path.read_bytes())
        data[start : start + 12] = b"\xff" * 12
        path.write_bytes(data)
        reported = refused(*backfill(cut, path), says="cannot be read as Parquet")
        assert str(path) in reported
    assert not list(cut.folder.glob(".rows*"))


@pytest.mark.parametrize("cadence", ["7h", "2d", "1ms"])
def test_a_cadence_that_does_not_fit(cut: World, cadence: str) -> None:
    says = ("was not cut at every multiple", "give the --cadence that compact was given")
    requests = requests_of(cut, request_ts=days(2, 3))
    refused(*backfill(cut, requests), "--cadence", cadence, says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--cadence", "0d"), "--cadence is 0; it must be above 0"),
        (("--lookback", "0d"), "--lookback is 0; it must be above 0"),
        (("--max-length", "-1"), "--max-length is -1; it must be at least 0"),
    ],
)
def test_backfill_out_of_range(cut: World, options: tuple[str, str], says: str) -> None:
    refused(*backfill(cut, requests_of(cut)), *options, says=says)


def test_backfill_without_a_store(cut: World, tmp_path: Path) -> None:
    command = backfill(cut, requests_of(cut))
    command[command.index(cut.store)] = tmp_path / "none"
    refused(*command, says=("There is no folder", "thinrow compact"))


def test_a_place_that_cannot_be_written(cut: World) -> None:
    (cut.folder / "file").write_text("", encoding="utf-8")
    (cut.folder / "folder").mkdir(exist_ok=True)
    for rows in (cut.folder / "file" / "rows.parquet", cut.folder / "folder"):
        command = backfill(cut, requests_of(cut))
        command[command.index("--out") + 1] = rows
        refused(*command, says=("Cannot read or write", str(rows)), status=FAILED)
    assert not list(cut.folder.glob(".*"))


# Thin rows and fat rows.


@contextmanager
def serving(world: World, **limits: Any) -> Iterator[str]:
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None, **limits)
    with Server(config) as server:
        yield server.address


@pytest.fixture(scope="module")
def served(cut: World) -> Iterator[str]:
    with serving(cut) as address:
        yield address


@pytest.fixture(scope="module")
def client(served: str) -> Iterator[Client]:
    with connect(served) as client:
        yield client


@pytest.fixture(scope="module")
def thin(cut: World) -> pa.Table:
    result = CliRunner().invoke(app, list(map(str, backfill(cut, requests_of(cut)))))
    assert result.exit_code == 0, result.output
    path = cut.folder / "rows.parquet"
    table = pq.read_table(path)
    path.unlink()
    return table


def lists(table: pa.Table) -> list[list[int]]:
    histories: list[list[int]] = table["item_id"].to_pylist()
    return histories


def changed(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


UIH = {"start_ts": 0, "end_ts": 0, "max_length": 0, "digest": 0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.drop_columns(["uih"]), ("no column uih", "thinrow backfill")),
        (lambda t: t.drop_columns(["mutable"]), ("no column mutable", "thinrow backfill")),
        (lambda t: t.drop_columns(["user_id"]), ("no column user_id", "not a file of thin rows")),
        (lambda t: changed(t, "uih", pa.array([1, 2])), ("uih is int64", "must be a struct")),
        (
            lambda t: changed(t, "uih", pa.array([{**UIH, "end_ts": 0.5}] * 2)),
            ("uih.end_ts is double", "must be int64"),
        ),
        (
            lambda t: changed(t, "uih", pa.array([UIH, {**UIH, "end_ts": None}])),
            "uih.end_ts must not be null",
        ),
        (
            lambda t: changed(t, "user_id", pa.array([1, 2**63], pa.uint64())),
            ("users of this store are int64", "names them as uint64"),
        ),
        (
            lambda t: changed(t, "mutable", pa.array([[1], [2]])),
            ("mutable is list", "must be a list of structs"),
        ),
        (
            lambda t: changed(t, "mutable", pa.array([[{"event_ts": None}], []])),
            "mutable.event_ts",
        ),
        (
            lambda t: changed(t, "mutable", pa.array([[{"event_ts": as_of(1)}], []])),
            ("item_id", "mutable"),
        ),
        (lambda t: t.rename_columns(["user_id", "request_ts", "brand", *t.column_names[3:]]),
         ("has a column brand", "rename")),
        (lambda t: t.slice(0, 0), ("holds no rows", "nothing to write")),
    ],
)  # fmt: skip
def test_rows_that_are_not_thin(
    cut: World,
    served: str,
    thin: pa.Table,
    change: Callable[[pa.Table], pa.Table],
    says: str | tuple[str, ...],
) -> None:
    rows, fat = cut.write("bad_rows.parquet", change(thin)), cut.folder / "fat.parquet"
    refused("materialize", rows, "--server", served, "--out", fat, says=says)
    assert not list(cut.folder.glob("fat.parquet*"))


def test_rows_that_are_not_parquet(cut: World, served: str, thin: pa.Table) -> None:
    rows, fat = cut.write("bad_rows.parquet", thin), cut.folder / "fat.parquet"
    command = ("materialize", rows, "--server", served, "--out", fat)
    rows.write_bytes(rows.read_bytes()[:-9])
    refused(*command, says=(str(rows), "cannot be read as Parquet"))
    rows.unlink()
    refused(*command, says=str(rows))


def test_materialize_to_a_place_that_cannot_be_written(
    cut: World, served: str, thin: pa.Table
) -> None:
    rows = cut.write("good_rows.parquet", thin)
    (cut.folder / "file").write_text("", encoding="utf-8")
    (cut.folder / "folder").mkdir(exist_ok=True)
    for fat in (cut.folder / "file" / "fat.parquet", cut.folder / "folder"):
        command = ("materialize", rows, "--server", served, "--out", fat)
        refused(*command, says=("Cannot read or write", str(fat)), status=FAILED)
    assert not list(cut.folder.glob("*.new"))


def test_what_a_tenant_does_not_go_with(cut: World, served: str, thin: pa.Table) -> None:
    rows, fat = cut.write("good_rows.parquet", thin), cut.folder / "fat.parquet"
    command = ("materialize", rows, "--server", served, "--out", fat)
    refused(*command, "--tenant", "unknown", says="no tenant 'unknown'")
    refused(*command, "--tenant", "unknown", "--traits", "brand", says="give --tenant alone")
    refused(*command, "--tenant", "nobody", "--truncation", "head", says="give --tenant alone")
    refused(*command, "--traits", "colour", says=("no trait 'colour'", "the store has"))
    refused(*command, "--sequence-length", "-1", says="-length is -1; it must be at least 0")
    assert not list(cut.folder.glob("fat.parquet*"))


@pytest.mark.parametrize(
    ("change", "says", "status"),
    [
        (lambda t: t.slice(0, 1), ("has 2 rows", "has 1;", "same requests"), MISTAKE),
        (lambda t: t.take([1, 0]), ("Row 0 is of user_id 1", "sort both files alike"), MISTAKE),
        (lambda t: t.drop_columns(["user_id"]), "no column user_id", MISTAKE),
        (lambda t: t.select(["user_id", "request_ts"]), "no list column", MISTAKE),
        (
            lambda t: changed(t, "user_id", pa.array(["1", "x"])),
            ("user_id is string", "must be an integer"),
            MISTAKE,
        ),
        (
            lambda t: changed(t, "item_id", pa.array([["x"] * len(h) for h in lists(t)])),
            ("item_id is string", "cannot be compared"),
            MISTAKE,
        ),
    ],
)
def test_fat_rows_that_cannot_be_compared(
    cut: World,
    served: str,
    thin: pa.Table,
    change: Callable[[pa.Table], pa.Table],
    says: str | tuple[str, ...],
    status: int,
) -> None:
    rows, fat = cut.write("good_rows.parquet", thin), cut.folder / "right.parquet"
    result = CliRunner().invoke(
        app, ["materialize", str(rows), "--server", served, "--out", str(fat)]
    )
    assert result.exit_code == 0, result.output
    against = cut.write("bad_fat.parquet", change(pq.read_table(fat)))
    refused(*("verify", rows, "--server", served, "--against", against), says=says, status=status)


def test_fat_rows_that_cannot_be_read(cut: World, served: str, thin: pa.Table) -> None:
    rows, fat = cut.write("good_rows.parquet", thin), cut.folder / "right.parquet"
    command = ["materialize", str(rows), "--server", served, "--out", str(fat)]
    assert CliRunner().invoke(app, command).exit_code == 0
    corrupt(fat)
    command = ["verify", str(rows), "--server", served, "--against", str(fat)]
    refused(*command, says=(str(fat), "cannot be read as Parquet"))


def test_fat_rows_that_differ(cut: World, served: str, thin: pa.Table) -> None:
    rows, fat = cut.write("good_rows.parquet", thin), cut.folder / "right.parquet"
    command = ["materialize", str(rows), "--server", served, "--out", str(fat)]
    assert CliRunner().invoke(app, command).exit_code == 0
    table = pq.read_table(fat)
    prices = table["price"].to_pylist()
    prices[1][0] += 1
    wrong = cut.write("wrong.parquet", changed(table, "price", pa.array(prices)))
    verify = ["verify", str(rows), "--server", served, "--against"]
    assert CliRunner().invoke(app, [*verify, str(fat)]).exit_code == 0
    result = CliRunner().invoke(app, [*verify, str(wrong)])
    assert result.exit_code == FAILED
    assert "price[0]" in result.stdout


# Calls.


def error_of(address: str, request: wire.MaterializeRequest) -> tuple[grpc.StatusCode, str, str]:
    with grpc.insecure_channel(address) as channel:
        stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
        found = []
        for call in (
            lambda: stub.Materialize(request, timeout=60),
            lambda: list(
                stub.MaterializeStream(
                    iter([wire.MaterializeStreamRequest(cursor=1, request=request)]), timeout=10
                )
            ),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            metadata = {item.key: str(item.value) for item in raised.value.trailing_metadata()}
            name = metadata.get("thinrow-error", "")
            found.append((raised.value.code(), name, raised.value.details() or ""))
    assert found[0][:2] == found[1][:2], "a stream must say the same"
    return found[0]


TWO: dict[str, Any] = {"user_ids": [1, 2], "end_ts": [as_of(3)] * 2}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"user_ids": [1, 2], "end_ts": [5]}, "end_ts has 1 elements and user_ids has 2"),
        ({"user_ids": [1, 2]}, "end_ts has 0 elements and user_ids has 2"),
        ({"end_ts": [5]}, "end_ts has 1 elements and user_ids has 0"),
        ({"start_ts": [5]}, "start_ts has 1 elements and user_ids has 0"),
        *(
            ({**TWO, name: [1]}, f"{name} has 1 elements and user_ids has 2")
            for name in ("start_ts", "max_lengths", "digests", "request_ts", "mutable_lengths")
        ),
        ({"user_ids": [1] * 8193, "end_ts": [1] * 8193}, "8193 examples in one request"),
        ({**TWO, "projection": {"sequence_length": -1}}, "sequence_length is -1"),
        ({**TWO, "projection": {"truncation": 7}}, "no truncation 7"),
        ({**TWO, "projection": {"traits": ["colour"]}}, "no trait 'colour'"),
        ({**TWO, "projection": {"feature_groups": ["user"]}}, "no feature group 'user'"),
        ({**TWO, "tenant": "x", "projection": {}}, "not both"),
    ],
)
def test_requests_that_make_no_sense(served: str, fields: dict[str, Any], says: str) -> None:
    code, name, reported = error_of(served, wire.MaterializeRequest(**fields))
    assert (code, name) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert says in reported


def test_an_unknown_tenant(served: str, client: Client) -> None:
    code, name, reported = error_of(served, wire.MaterializeRequest(tenant="x", **TWO))
    assert (code, name) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TENANT")
    assert "no tenant 'x'" in reported
    with pytest.raises(UnknownTenantError, match="no tenant 'x'"):
        client.materialize(pointers_to(days(3)), "x")


def test_one_bad_example_spoils_no_other(client: Client) -> None:
    bad = {
        wire.STATUS_INVALID: [
            {"start_ts": as_of(3) + 1},
            {"max_lengths": -1},
            {"request_ts": as_of(3) - 1},
            {"max_lengths": -(2**63)},
            {"start_ts": 2**63 - 1},
        ],
        wire.STATUS_NOT_READY: [
            {"end_ts": as_of(3) + 1, "request_ts": as_of(9)},
            {"end_ts": 2**63 - 1, "request_ts": 2**63 - 1},
        ],
        wire.STATUS_DIGEST_MISMATCH: [{"digests": 1}, {"digests": 2**64 - 1}],
    }
    good = {"user_ids": 1, "end_ts": as_of(3), "start_ts": 0, "max_lengths": 0, "digests": 0}
    good["request_ts"] = as_of(3)
    examples, statuses = [good], [wire.STATUS_OK]
    for status, changes in bad.items():
        for change in changes:
            examples += [{**good, **change}, good]
            statuses += [status, wire.STATUS_OK]
    for last in ({"start_ts": -(2**63)}, {"max_lengths": 2**63 - 1}, {"user_ids": -(2**63)}):
        examples.append({**good, **last})
        statuses.append(wire.STATUS_OK)
    pointers = Pointers(**{name: [example[name] for example in examples] for name in good})
    answers = shown(client.materialize(pointers, ALL))
    assert [status for status, _ in answers] == statuses
    right = answers[0][1]
    assert len(right["item_id"] or ()) > 10
    for (answered, lists), example in zip(answers, examples, strict=True):
        expected = right if answered == wire.STATUS_OK and example["user_ids"] == 1 else None
        if example["user_ids"] != 1:
            expected = {name: [] for name in right}
        assert lists == (expected or dict.fromkeys(right))


def test_negative_and_huge_mutable_lengths(served: str) -> None:
    request = wire.MaterializeRequest(
        user_ids=[1, 1, 1],
        end_ts=[as_of(3)] * 3,
        mutable_lengths=[-1, 2**63 - 1, -(2**63)],
        projection=wire.Projection(sequence_length=2**63 - 1),
    )
    with grpc.insecure_channel(served) as channel:
        stub = MaterializationServiceStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.Materialize(request, timeout=60)
    assert list(answer.statuses) == [wire.STATUS_INVALID, wire.STATUS_OK, wire.STATUS_INVALID]
    assert list(answer.view_lengths) == [0, 0, 0]


def test_messages_over_the_limits(cut: World) -> None:
    pointers = pointers_to(days(1, 2, 3) * 20)
    with serving(cut) as address, connect(address) as client:
        expected = shown(client.materialize(pointers, ALL))
    with serving(cut, request_bytes_max=2_000) as address, connect(address) as client:
        many = wire.MaterializeRequest(user_ids=[1] * 999, end_ts=[as_of(3)] * 999)
        code, name, _ = error_of(address, many)
        assert (code, name) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
        with pytest.raises(RequestError):
            client.materialize(pointers, ALL)
    # Enough for the longest history, but not for many: the client retries for halves.
    for limits in ({"response_bytes_max": 6_000}, {"work_bytes_max": 24_000}):
        with serving(cut, **limits) as address, connect(address) as client:
            request = wire.MaterializeRequest(
                user_ids=pointers.user_ids, end_ts=pointers.end_ts, max_lengths=[0] * len(pointers)
            )
            code, name, reported = error_of(address, request)
            assert (code, name) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE")
            assert next(iter(limits)) in reported
            assert shown(client.materialize(pointers, ALL)) == expected
            (streamed,) = client.stream([pointers], ALL)
            assert shown(streamed) == expected
    with (
        serving(cut, response_bytes_max=500) as address,
        connect(address) as client,
        pytest.raises(AnswerTooLargeError, match="response_bytes_max"),
    ):
        client.materialize(pointers, ALL)


def test_too_much_to_send(served: str) -> None:
    config = ClientConfig(request_bytes_max=1_000, retry_deadline_s=0)
    with connect(served, config) as client, pytest.raises(RequestError):
        client.materialize(pointers_to(days(3) * 100), ALL)


@pytest.mark.parametrize("name", ["user_ids", "end_ts", "start_ts", "max_lengths", "request_ts"])
def test_arrays_that_are_no_int64(name: str) -> None:
    good: dict[str, Any] = {"user_ids": [1], "end_ts": [as_of(3)]}
    wrongs: list[Any] = [[1.5], [[1]], [2**64], [None], ["1", 1]]
    if name != "user_ids":
        wrongs += [["1"], np.array([2**63], np.uint64)]
    for wrong in wrongs:
        with pytest.raises(InputError, match=name):
            Pointers(**{**good, name: wrong})


def test_a_user_id_too_large_is_never_another_user(cut: World, thin: pa.Table) -> None:
    table = changed(thin, "user_id", pa.array([1, 2**64 - 1], pa.uint64()))
    rows = cut.write("bad_rows.parquet", table)
    [(read, _)] = read_thin_rows(rows, examples=10)
    assert [read.pointers.user(place) for place in range(2)] == [1, 2**64 - 1]
    with (
        connect(cut.store) as client,
        pytest.raises(RequestError, match=r"of this store are int64, .* names them as uint64"),
    ):
        client.materialize(read, Projection())


def test_inspect_refuses(served: str) -> None:
    refused("inspect", "--server", served, "--user", 1, "--traits", "colour", says="no trait")
    refused("inspect", "--server", served, "--user", 1, "--limit", -1, says="must be 0")
    refused("inspect", "--server", served, "--user", 1, "--limit", 99999, says="at most 10000")


# Servers.


def serve_refused(*options: object, says: str | tuple[str, ...], status: int = MISTAKE) -> None:
    # A process of its own: the command takes over the signals.
    ended = thinrow("serve", *options)
    assert not ended.stdout
    check_refusal(ended.returncode, ended.stderr, "", says, status)


def test_ports_in_use(built: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        serve_refused(
            *("--store", built.store, "--listen", address, "--metrics", "off"),
            says=(f"Cannot listen on {address}", "another --listen"),
        )
        serve_refused(
            *("--store", built.store, "--listen", "127.0.0.1:0", "--metrics", address),
            says=(f"Cannot listen on {address} (", "another --metrics"),
        )


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    options = ("--store", tmp_path / "none", "--metrics", "off")
    serve_refused(*options, says=("There is no folder", "thinrow compact"))


def test_a_server_that_is_not_there() -> None:
    # A port that no process takes in the meantime.
    with socket.create_server((OWN_HOST, 0)) as left:
        address = f"{OWN_HOST}:{left.getsockname()[1]}"
    refused(
        "inspect",
        "--server",
        address,
        "--user",
        1,
        says=(address, "check the address"),
        status=FAILED,
    )


@pytest.mark.parametrize("listen", ["7878", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"])
def test_what_is_no_address(built: World, listen: str) -> None:
    with (
        pytest.raises(Exception, match="is not HOST:PORT"),
        Server(ServerConfig(store=built.store, listen=listen, metrics=None)),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[ranker", "Cannot read the tenants file"),
        ('[ranker]\ntraits = ["colour"]', "ranker: There is no trait 'colour'"),
        ("[ranker]\nlength = 3", "ranker.length"),
        ("[ranker]\nsequence_length = -1", "ranker.sequence_length"),
        ('[ranker]\ntruncation = "oldest"', "ranker.truncation"),
        ("ranker = 3", "ranker"),
    ],
)
def test_a_bad_tenants_file(built: World, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(text, encoding="utf-8")
    config = ServerConfig(store=built.store, listen="127.0.0.1:0", metrics=None, tenants=path)
    with pytest.raises(InputError, match=says) as raised, Server(config):
        pass
    assert str(path) in str(raised.value)


def test_the_real_command_line(fresh: World) -> None:
    """Once through a process of its own, as installed."""
    ended = thinrow(*compact(fresh, fresh.folder / "none.parquet"))
    assert not ended.stdout
    check_refusal(ended.returncode, ended.stderr, "", "There is no file", MISTAKE)
