"""Files as people have them, through compaction, backfill, slim, verify and materialize."""

# ruff: noqa: ANN401 - values of any type

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.worlds import DAY_MS, START_TS, as_of, days, new_world, pointers_to, read_store
from thinrow.cli.app import app
from thinrow.client import Projection, connect, read_thin_rows, row_count
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.compaction.users import read_user_ids
from thinrow.core.files import history_columns
from thinrow.core.files.arrow import plain
from thinrow.errors import InputError
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig, SlimConfig
from thinrow.jobs.materialize import materialize
from thinrow.jobs.slim import slim
from thinrow.jobs.verify import verify
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path

    from support.worlds import Answers, World

SCHEMA = """
[item]
item_id = { type = "int64", key = true }
brand = { type = "string", sparse = true }
"""
WANTED = Projection(traits=("item_id", "brand", "event_id"))


def events_of(*items: int, **columns: Any) -> pa.Table:
    """One event of user 1 for each item, an hour apart from START_TS on."""
    times = [START_TS + 3_600_000 * item for item in items]
    ids = {"user_id": [1] * len(items), "event_ts": times, "item_id": list(items)}
    return pa.table({**ids, **columns})


def put(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def compacted(world: World, events: Any, **options: Any) -> Answers:
    """The history of user 1 after two days, cut daily."""
    config = {"store": world.store, "schema": world.schema, "watermark_ts": as_of(2), "shards": 1}
    compact(CompactionConfig(events=events, **{"cadence_ms": DAY_MS, **config, **options}))
    return read_store(world.store, pointers_to(days(2), [1]), WANTED)


def backfilled(world: World, requests: Any, events: Any) -> Path:
    rows = world.folder / "rows.parquet"
    backfill(BackfillConfig(requests=requests, store=world.store, events=events, rows=rows))
    return rows


def requests_of(*hours: int, **columns: Any) -> pa.Table:
    times = [START_TS + 3_600_000 * hour for hour in hours]
    return pa.table({"user_id": [1] * len(hours), "request_ts": times, **columns})


def fat_of(world: World, rows: Any, *columns: str) -> pa.Table:
    """Materializes thin rows from a server, in this process."""
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as server, connect(server.address) as client:
        materialize(
            client, rows, Projection(traits=columns or ("event_ts", "item_id")), fat_path(world)
        )
        verify(client, rows, fat_path(world))
    return pq.read_table(fat_path(world), partitioning=None)


def fat_path(world: World) -> Path:
    return world.folder / "fat.parquet"


def test_columns_of_nulls_are_as_if_absent(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    nulls = dict.fromkeys(("arrival_ts", "event_id", "brand"), pa.nulls(2))
    events = put(tmp_path / "events.parquet", events_of(3, 5, **nulls))
    [(_, row)] = compacted(world, events)
    assert row == {"item_id": [3, 5], "brand": [None, None], "event_id": [None, None]}
    rows = backfilled(world, put(tmp_path / "r.parquet", requests_of(4, x=pa.nulls(1))), events)
    [mutable] = pq.read_table(rows)["mutable"].to_pylist()
    [event] = mutable
    # Readers derive the rest: no id, and the arrival that is the event's own time.
    assert event == {"event_ts": event["event_ts"], "item_id": 3, "brand": None}
    for name, says in (
        ("user_id", "user_id has only nulls; every event needs one"),
        ("event_ts", "event_ts has only nulls; every event needs one"),
        ("item_id", "item_id has 2 nulls; mark the trait sparse"),
    ):
        table = events_of(3, 5)
        table = table.set_column(table.column_names.index(name), name, pa.nulls(2))
        with pytest.raises(InputError, match=says):
            compacted(new_world(tmp_path / name, SCHEMA), put(tmp_path / "bad.parquet", table))
    for name in ("user_id", "request_ts"):
        table = requests_of(4)
        table = table.set_column(table.column_names.index(name), name, pa.nulls(1))
        with pytest.raises(InputError, match=rf"bad\.parquet: {name} .*null"):
            backfilled(world, put(tmp_path / "bad.parquet", table), events)


def test_requests_without_rows_give_rows_of_the_declared_types(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    events = put(tmp_path / "events.parquet", events_of(3, 5))
    compacted(world, events)
    requests = requests_of(4, label=pa.array(["a"]), score=pa.array([1], pa.int8()))
    full = pq.read_schema(backfilled(world, put(tmp_path / "r.parquet", requests), events))
    put(tmp_path / "none.parquet", requests.slice(0, 0))
    rows = backfilled(world, tmp_path / "none.parquet", events)
    assert pq.read_schema(rows).equals(full)
    assert list(read_thin_rows(rows, examples=5)) == [] and row_count(rows) == 0
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as server, connect(server.address) as client:
        with ThinRowLoader(rows, server.address, WANTED) as loader:
            assert list(loader) == []
        with pytest.raises(InputError, match="holds no rows, so there is nothing to write"):
            materialize(client, rows, WANTED, fat_path(world))
    other = backfilled(world, tmp_path / "r.parquet", events).rename(tmp_path / "full.parquet")
    rows = backfilled(world, tmp_path / "none.parquet", events)
    assert row_count([rows, other]) == 1
    assert fat_of(world, [rows, other])["item_id"].to_pylist() == [[3]]


def test_hive_partitions_come_through_every_command(tmp_path: Path) -> None:
    """Keys give the columns that files lack: of events a trait, of requests a label."""
    world = new_world(tmp_path, SCHEMA)
    put(tmp_path / "events/events.parquet", events_of(2))
    put(tmp_path / "events/brand=a%20b/p.parquet", events_of(3, 5))
    put(tmp_path / "events/brand=c/p.parquet", events_of(30))
    for name in ("_SUCCESS", ".part.crc"):
        (tmp_path / "events" / name).touch()
    [(_, row)] = compacted(world, tmp_path / "events")
    assert row["item_id"] == [2, 3, 5, 30] and row["brand"] == [None, "a b", "a b", "c"]
    put(tmp_path / "requests/dt=2024-01-02/p.parquet", requests_of(25))
    put(tmp_path / "requests/dt=2024-01-03/p.parquet", requests_of(49))
    put(tmp_path / "thin/p.parquet", requests_of(4))
    rows = backfilled(world, tmp_path / "requests", tmp_path / "events/**/*.parquet")
    table = pq.read_table(rows)
    assert table["dt"].to_pylist() == [date(2024, 1, 2), date(2024, 1, 3)]
    for day, part in enumerate((table.slice(0, 1), table.slice(1, 1))):
        put(tmp_path / f"rows/split={day}/p.parquet", part)
    fat = fat_of(world, tmp_path / "rows", "event_ts", "item_id", "brand")
    assert fat["split"].to_pylist() == [0, 1]
    assert fat["item_id"].to_pylist() == [[2, 3, 5], [2, 3, 5, 30]]
    for day in range(2):
        put(tmp_path / f"fat/split={day}/p.parquet", fat.slice(day, 1).drop_columns("split"))
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as server, connect(server.address) as client:
        report = verify(client, tmp_path / "rows", tmp_path / "fat")
    assert report.rows == 2 and not report.rows_that_differ
    assert {"dt", "split"} <= set(report.beside)
    out: dict[str, Any] = {"events": tmp_path / "e.parquet", "rows": tmp_path / "r.parquet"}
    slim(SlimConfig(fat=tmp_path / "fat", schema=world.schema, **out))
    assert pq.read_table(out["rows"])["split"].to_pylist() == [0, 1]
    assert sorted(pq.read_table(out["events"])["item_id"].to_pylist()) == [2, 3, 5, 30]


def test_columns_with_dots_come_through(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    table = events_of(3, 5, **{"item_id.raw": pa.array(["x", "y"]), "geo.country": [1, 2]})
    events = put(tmp_path / "events.parquet", table)
    [(_, row)] = compacted(world, events)
    assert row["item_id"] == [3, 5]
    geo = pa.array([{"country": "struct"}])
    beside = {"geo.country": pa.array(["de"]), "geo": geo, "user_id.x": pa.array([7])}
    rows = backfilled(world, put(tmp_path / "requests.parquet", requests_of(25, **beside)), events)
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as server:
        for columns in (None, ("geo.country", "user_id.x")):
            options = LoaderConfig(columns=columns)
            with ThinRowLoader(rows, server.address, WANTED, options) as loader:
                [batch] = loader
            assert {"geo.country", "user_id.x"} <= set(batch.columns)
            assert list(batch.columns["geo.country"]) == ["de"]
            numbers = batch.columns["user_id.x"]
            assert isinstance(numbers, torch.Tensor) and numbers.tolist() == [7]
    fat = fat_of(world, rows)
    assert fat["geo.country"].to_pylist() == ["de"] and fat["geo"].to_pylist() == geo.to_pylist()
    out: dict[str, Any] = {"events": tmp_path / "e.parquet", "rows": tmp_path / "r.parquet"}
    slim(SlimConfig(fat=fat_path(world), schema=world.schema, **out))
    assert pq.read_table(out["rows"])["geo.country"].to_pylist() == ["de"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    events = put(tmp_path / "events.parquet", events_of(3, 5))
    compacted(world, events)

    def doubled(name: str, table: pa.Table, column: str) -> Path:
        names = [*table.column_names, column]
        return put(tmp_path / name, pa.Table.from_arrays([*table.columns, table[column]], names))

    bad = doubled("bad.parquet", events_of(7, 8), "item_id")
    requests = put(tmp_path / "requests.parquet", requests_of(25))
    twice = doubled("twice.parquet", requests_of(25, label=[1]), "label")
    lists = {name: [[value]] for name, value in (("event_ts", START_TS), ("item_id", 1))}
    fat = doubled("fat2.parquet", requests_of(25, **lists), "item_id")
    out: dict[str, Any] = {"events": tmp_path / "e.parquet", "rows": tmp_path / "r.parquet"}
    for run, name in (
        (lambda: compacted(new_world(tmp_path / "new", SCHEMA), bad), "item_id"),
        (lambda: backfilled(world, requests, bad), "item_id"),
        (lambda: backfilled(world, twice, events), "label"),
        (lambda: slim(SlimConfig(fat=fat, schema=world.schema, **out)), "item_id"),
        (lambda: read_user_ids(doubled("users.parquet", requests_of(1), "user_id")), "user_id"),
    ):
        with pytest.raises(InputError, match=f"has two columns named '{name}'; rename one"):
            run()


LAYOUTS = [
    *(pa.string_view(), pa.large_string(), pa.binary_view(), pa.large_binary()),
    *(pa.dictionary(pa.int16(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_events_and_requests_come_in_any_layout(tmp_path: Path, layout: pa.DataType) -> None:
    world = new_world(tmp_path, SCHEMA)
    texts = ["x", None, "é"]
    brand = (
        pa.array(texts, pa.string()).cast(layout)
        if "dict" not in str(layout)
        else pa.array(texts, layout)
    )
    codes = pa.array([3, 5, 30]).dictionary_encode()
    table = events_of(3, 5, 30, brand=brand)
    table = table.set_column(table.column_names.index("item_id"), "item_id", codes)
    events = put(tmp_path / "events.parquet", table)
    [(_, row)] = compacted(world, events)
    assert row["item_id"] == [3, 5, 30] and row["brand"] == texts
    requests = put(tmp_path / "requests.parquet", requests_of(4, 25, 40, session=brand))
    rows = backfilled(world, requests, events)
    table = pq.read_table(rows)
    assert plain(table["session"]).cast(pa.string()).to_pylist() == texts
    assert [[e["brand"] for e in row] for row in table["mutable"].to_pylist()] == [["x"], [], ["é"]]
    [chunk] = RowFiles(rows, order="files").source().chunks(9)
    assert chunk.columns["session"].cast(pa.string()).to_pylist() == texts


def test_files_of_different_columns(tmp_path: Path) -> None:
    """Events may lack sparse traits and have others; requests must agree in what passes."""
    world = new_world(tmp_path, SCHEMA)
    put(tmp_path / "events/a.parquet", events_of(3, junk=["x"]))
    put(tmp_path / "events/b.parquet", events_of(5, brand=["b"], event_id=[9]))
    [(_, row)] = compacted(world, tmp_path / "events")
    assert row == {"item_id": [3, 5], "brand": [None, "b"], "event_id": [None, 9]}
    put(tmp_path / "requests/a.parquet", requests_of(4, label=[1]))
    put(tmp_path / "requests/b.parquet", requests_of(25, label=pa.array([2], pa.int8())))
    rows = backfilled(world, tmp_path / "requests", tmp_path / "events")
    assert pq.read_table(rows)["label"].to_pylist() == [1, 2]
    put(tmp_path / "requests/c.parquet", requests_of(26, dwell=[1]))
    with pytest.raises(InputError, match=r"a\.parquet lacks the column 'dwell', which .*c\.p"):
        backfilled(world, tmp_path / "requests", tmp_path / "events")


def test_users_to_erase_come_from_any_place(tmp_path: Path) -> None:
    for part, user in enumerate((7, 9)):
        put(tmp_path / f"users/part={part}/p.parquet", pa.table({"user_id": [user]}))
    put(tmp_path / "one.pq", pa.table({"user_id": [8]}))
    (tmp_path / "users.txt").write_text("1\n-2\n")
    (tmp_path / "plain").write_text("3")
    for named, expected in (
        (tmp_path / "users", [7, 9]),
        (f"file://{tmp_path}/users", [7, 9]),
        (tmp_path / "users/*/*.parquet", [7, 9]),
        (tmp_path / "users/part=1", [9]),
        (tmp_path / "one.pq", [8]),
        (tmp_path / "users.txt", [1, -2]),
        (tmp_path / "plain", [3]),
        (None, []),
    ):
        assert read_user_ids(named).tolist() == expected
    world = new_world(tmp_path / "world", SCHEMA)
    [(_, row)] = compacted(world, put(tmp_path / "events.parquet", events_of(3)))
    assert row["item_id"] == [3]
    put(tmp_path / "gone/p.parquet", pa.table({"user_id": [1]}))
    command = ["compact", tmp_path / "events.parquet", "--store", world.store]
    command += ["--schema", world.schema, "--watermark", as_of(3), "--erase", tmp_path / "gone"]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    [(_, row)] = read_store(world.store, pointers_to(days(3), [1]), WANTED)
    assert not row["item_id"]


def test_text_beyond_one_array_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of 32-bit offsets end at 2 GiB; here at 12 bytes."""
    world = new_world(tmp_path, SCHEMA)
    brands = ["abcd", None, "é", "abcd", "", "xyz"]
    events = put(tmp_path / "events.parquet", events_of(1, 2, 3, 4, 5, 6, brand=brands))
    compacted(world, events, cadence_ms=3_600_000)
    rows = backfilled(world, put(tmp_path / "r.parquet", requests_of(*range(8))), events)
    monkeypatch.setattr(history_columns, "TEXT_BYTES_MAX", 13)
    fat = fat_of(world, rows, "event_ts", "item_id", "brand")
    expected = [brands[: max(hour - 1, 0)] for hour in range(8)]
    assert fat["brand"].to_pylist() == expected
    assert fat["brand"].type == pa.list_(pa.string())
    monkeypatch.setattr(history_columns, "TEXT_BYTES_MAX", 9)
    with pytest.raises(InputError, match=r"A history has 10 bytes of brand, .*--sequence-length"):
        fat_of(world, rows, "event_ts", "item_id", "brand")
