"""Histories as Arrow data: what Polars, DuckDB and pandas see, and how a reader ends."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.thin_rows import rows_table, write_rows
from support.worlds import ALL, World, built_world, days, some_events
from thinrow.client import Client, ClientConfig, Projection, connect
from thinrow.client.arrow import ReadConfig, read
from thinrow.errors import InputError, RequestError, ThinRowError, UnavailableError, UsageError
from thinrow.jobs.materialize import materialize
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WANTED = Projection(traits=("event_ts", "item_id", "brand", "rating", "price"))
SMALL = ReadConfig(batch_rows=7, lookup_rows=30)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with Server(ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)) as server:
        yield server.address


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Files of rows of which some are not OK: their pointer reaches past the watermark."""
    folder = tmp_path_factory.mktemp("rows")
    found = write_rows(folder, [60, 0, 45])
    early = rows_table(20, seed=9, end_ts=days(4)[0])
    pq.write_table(early, folder / "rows-99.parquet")
    return found


def fat(address: str, rows: str, folder: Path) -> pa.Table:
    """Returns the fat rows that `thinrow materialize` writes for the same rows."""
    with connect(address) as client:
        report = materialize(client, rows, WANTED, folder / "fat.parquet")
    assert set(report.statuses) == {"OK", "NOT_READY"}
    return pq.read_table(folder / "fat.parquet", partitioning=None)


def test_engines_see_what_materialize_writes(address: str, rows: str, tmp_path: Path) -> None:
    expected = fat(address, rows, tmp_path).to_pylist()
    assert [row["uih_status"] for row in expected].count("NOT_READY") == 20

    def reader() -> pa.RecordBatchReader:
        return read(rows, address, WANTED, config=SMALL)

    assert reader().read_all().to_pylist() == expected
    frame = pl.from_arrow(reader())
    assert isinstance(frame, pl.DataFrame)
    assert frame.to_dicts() == expected
    histories = reader()  # DuckDB finds it by its name
    counted = (
        duckdb.connect()
        .execute(
            "select uih_status, count(*), sum(len(item_id)), sum(list_sum(price)) "
            "from histories group by 1 order by 1"
        )
        .fetchall()
    )
    ok = [row for row in expected if row["uih_status"] == "OK"]
    [unready, found] = counted
    assert unready == ("NOT_READY", 20, None, None)
    assert found[:3] == ("OK", len(ok), sum(len(row["item_id"]) for row in ok))
    assert found[3] == pytest.approx(sum(sum(row["price"]) for row in ok))
    assert histories is not None
    shown = reader().read_pandas(types_mapper=pd.ArrowDtype)
    assert shown["row"].tolist() == [row["row"] for row in expected]
    assert shown["brand"][0] == expected[0]["brand"]


def test_rows_in_memory_are_read_like_files(world: World, rows: str) -> None:
    wanted = read(rows, world.store, WANTED).read_all()
    table = pq.read_table(rows.replace("rows-*.parquet", ""))
    for given in (table, pl.from_arrow(table), table.to_reader(max_chunksize=9)):
        found = read(given, world.store, WANTED, config=SMALL).read_all()
        assert found.to_pylist() == wanted.to_pylist()
    chosen = read(table, world.store, WANTED, columns=["label", "row"]).read_all()
    assert chosen.column_names[:3] == ["label", "row", "uih_status"]
    assert chosen["row"].to_pylist() == wanted["row"].to_pylist()


def test_no_rows_have_the_columns_of_some(world: World, tmp_path: Path) -> None:
    some = read(rows_table(3), world.store, ALL)
    pq.write_table(rows_table(0), tmp_path / "none.parquet")
    for given in (rows_table(0), str(tmp_path / "none.parquet")):
        none = read(given, world.store, ALL).read_all()
        assert len(none) == 0 and none.schema == some.schema
    assert some.read_all().schema == some.schema
    assert some.schema.field("uih_status").type == pa.string()


def test_batches_are_bounded_in_rows_and_bytes(world: World) -> None:
    table = rows_table(200)
    for config in (SMALL, ReadConfig(batch_bytes_max=20_000)):
        batches = list(read(table, world.store, WANTED, config=config))
        assert sum(map(len, batches)) == 200
        assert max(map(len, batches)) <= config.batch_rows
        # Text counts as 16 bytes, here more than it has.
        assert all(
            len(batch) == 1
            or sum(batch[name].nbytes for name in WANTED.traits) <= config.batch_bytes_max
            for batch in batches
        )
        whole = pa.Table.from_batches(batches)
        assert whole.to_pylist() == read(table, world.store, WANTED).read_all().to_pylist()
    assert len(batches) > 1
    for name in ("batch_rows", "batch_bytes_max", "lookup_rows"):
        wrong: dict[str, Any] = {name: 0}
        with pytest.raises(UsageError, match=f"{name} is 0"):
            ReadConfig(**wrong)


def test_a_reader_that_is_dropped_ends_its_calls(address: str, rows: str) -> None:
    closed: list[Client] = []
    close = Client.close

    def closes(client: Client) -> None:
        close(client)
        closed.append(client)

    with mock.patch.object(Client, "close", closes):
        for batches in (0, 1):
            reader = read(rows, address, WANTED, config=SMALL)
            for _ in range(batches):
                reader.read_next_batch()
            assert len(closed) == batches
            del reader
            gc.collect()
            assert len(closed) == batches + 1
        # Engines drop a reader of which they want no more.
        with duckdb.connect() as engine:
            engine.register("histories", read(rows, address, WANTED, config=SMALL))
            assert len(engine.execute("select row from histories limit 1").fetchall()) == 1
        gc.collect()
        assert len(closed) == 3
    assert not [each for each in threading.enumerate() if each.name == "thinrow-stream"]


def test_mistakes_are_errors_of_one_sentence(world: World, address: str, tmp_path: Path) -> None:
    table = rows_table(5)
    unserved = ClientConfig(retry_deadline_s=0, connect_timeout_s=1)
    cases: list[tuple[type[ThinRowError], str, dict[str, Any]]] = [
        (RequestError, "There is no trait 'no'", {"projection": Projection(traits=("no",))}),
        (InputError, "no column 'x'; there are user_id", {"columns": ["x"]}),
        (UsageError, r"columns is the text 'row'", {"columns": "row"}),
        (InputError, "none.parquet", {"rows": tmp_path / "none.parquet"}),
        (InputError, "no column uih", {"rows": table.drop_columns("uih")}),
        (UsageError, "must be a path", {"rows": 7}),
        (
            InputError,
            "has a column brand, and fat rows",
            {"rows": table.append_column("brand", table["row"])},
        ),
        (
            UnavailableError,
            "127.0.0.1:1",
            {"target": "127.0.0.1:1", "config": ReadConfig(client=unserved)},
        ),
    ]
    for error, says, wrong in cases:
        given: dict[str, Any] = {"rows": table, "target": address, "projection": WANTED, **wrong}
        with pytest.raises(error, match=says) as caught:
            read(given.pop("rows"), given.pop("target"), given.pop("projection"), **given)
        assert "\n" not in str(caught.value)
    # Later on, too: an error passes through the reader as it is, and ends it.
    nulls = table.set_column(0, "user_id", pa.array([1, 2, 3, 4, None], pa.int64()))
    reader = read(nulls, world.store, WANTED, config=ReadConfig(lookup_rows=2))
    with pytest.raises(InputError, match="column user_id must not be null"):
        reader.read_all()


def test_a_changed_schema_is_an_error(tmp_path: Path) -> None:
    """The columns of a reader are fixed, so a trait that comes later cannot be left out unseen."""
    world = built_world(tmp_path)
    with Server(ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)) as server:
        reader = read(rows_table(10), server.address, ALL)
        text = world.schema.read_text(encoding="utf-8")
        world.schema.write_text(text + 'size = { type = "int8", sparse = true }\n')
        events = some_events(10, days=1, first_day=3)
        world.compact(events.append_column("size", pa.nulls(10, pa.int8())), 4)
        with connect(server.address) as client:
            while client.describe_store().generation < 2:
                time.sleep(0.05)
        with pytest.raises(ThinRowError, match="schema changed while its histories were read"):
            reader.read_all()
