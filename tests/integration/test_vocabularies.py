"""Traits with codes = "vocabulary", from events to embeddings, by every way."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import thinrow
import torch
from support.store_contents import contents
from support.worlds import (
    ALL,
    DAY_MS,
    START_TS,
    World,
    as_of,
    days,
    new_world,
    pointers_to,
    read_store,
    running_server,
)
from thinrow.cli.app import app
from thinrow.client import Client, Projection, connect, read_thin_rows
from thinrow.client.logger import mutable_type
from thinrow.client.online import connect_online
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.compaction.compact import compact
from thinrow.core.pointers import MutableColumn, MutableEvents, Pointers, ThinRows
from thinrow.errors import InputError, RequestError, SchemaError, ThinRowError
from thinrow.jobs.export import export_events
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.schema import evolve, from_stored, parse_schema, to_stored
from thinrow.store.rollback import rollback
from thinrow.v1 import materialization_pb2, online_pb2
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thinrow.client.online import OnlineClient

SCHEMA = """
[item]
item_id = "int64"
brand = { type = "string", sparse = true, codes = "vocabulary", values_max = 100 }
hash = { type = "uint64", codes = "vocabulary" }
"""
BRANDS = [["b", None, "a", "", "é"], ["b", "zz", "0", None]]
"""Events of user 1 on days 0 and 1."""
CODES = [[4, 0, 3, 2, 5], [4, 7, 6, 0]]
"""2 to 5 by the first run in the order of UTF-8 bytes, 6 and 7 by the second."""
HASHES = [[2**64 - 1, 0, 5, 5, 2**63], [0, 1, 2, 3]]
HASH_CODES = [[5, 2, 3, 3, 4], [2, 6, 7, 8]]


def events(day: int) -> pa.Table:
    count = len(BRANDS[day])
    return pa.table(
        {
            "user_id": [1] * count,
            "event_ts": [START_TS + day * DAY_MS + n for n in range(count)],
            "item_id": list(range(count)),
            "brand": pa.array(BRANDS[day], pa.string()),
            "hash": pa.array(HASHES[day], pa.uint64()),
        }
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One generation, of day 0."""
    world = new_world(tmp_path, SCHEMA)
    world.compact(events(0), 1)
    return world


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(part) for part in arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output + result.stderr
    return result.output


def thin_rows(world: World) -> Path:
    """Rows of two requests, backfilled by the store as it is now: before day 1, and within it."""
    both = world.write("both.parquet", pa.concat_tables([events(0), events(1)]))
    times = [as_of(0) + DAY_MS // 2, as_of(2) - 5]
    requests = world.write("requests.parquet", pa.table({"user_id": [1, 1], "request_ts": times}))
    rows = world.folder / "rows.parquet"
    command("backfill", requests, *("--events", both), *("--store", world.store), "--out", rows)
    return rows


@contextmanager
def clients(store: Path) -> Iterator[list[Client]]:
    """A client of a server, and one of the store in this process."""
    with (
        Server(ServerConfig(store=store, listen="127.0.0.1:0", metrics=None)) as server,
        connect(server.address) as remote,
        connect(store) as local,
    ):
        yield [remote, local]


def test_an_event_reads_alike_from_row_and_store(world: World) -> None:
    rows = thin_rows(world)
    [(thin, table)] = read_thin_rows(rows, examples=8)
    mutable = pq.read_schema(rows).field("mutable").type.value_type
    assert mutable.field("brand").type == pa.large_string()
    with clients(world.store) as both:
        for client in both:
            batch = client.materialize(thin, ALL)
            assert batch.to_lists("brand") == [CODES[0], CODES[0] + [4, 1, 1, 0]]
            assert batch.to_lists("hash") == [HASH_CODES[0], HASH_CODES[0] + [2, 1, 1, 1]]
            assert batch.values["brand"].dtype == np.int32
            assert (
                mutable_type(client.describe_store()).value_type.field("brand").type
                == mutable.field("brand").type
            )
            world.compact(events(1), 2) if client is both[0] else None
    whole = read_store(world.store, pointers_to(days(2), users=[1]))[0][1]
    assert whole is not None
    assert (whole["brand"], whole["hash"]) == (CODES[0] + CODES[1], HASH_CODES[0] + HASH_CODES[1])
    with clients(world.store) as both:
        for client in both:
            for batch in client.stream([thin, thin], ALL):
                assert batch.to_lists("brand") == [CODES[0], whole["brand"]]
                assert batch.to_lists("hash") == [HASH_CODES[0], whole["hash"]]
    assert table.column_names == ["user_id", "request_ts"]


def test_an_embedding_takes_every_batch(world: World) -> None:
    rows = thin_rows(world)
    wanted = Projection(traits=("brand", "hash"))
    seen = []
    for _ in range(2):
        with connect(world.store) as client:
            groups = client.describe_store().feature_groups
        sizes = {t.name: t.vocabulary.codes_end for group in groups for t in group.traits}
        with ThinRowLoader(rows, world.store, wanted, LoaderConfig(batch_examples=2)) as loader:
            for batch in loader:
                for trait in wanted.traits:
                    codes = batch.values[trait]
                    embedding = torch.nn.Embedding(sizes[trait], 3, padding_idx=0)
                    assert embedding(codes).shape == (len(codes), 3)
                seen.append(int(batch.values["brand"].max()))
        world.compact(events(1), 2) if len(seen) == 1 else None
    assert seen == [5, 7]


def test_commands_show_values_and_codes(world: World) -> None:
    path = world.write("day-1.parquet", events(1))
    report = command(
        "compact", path, *("--store", world.store), *("--watermark", START_TS + 2 * DAY_MS)
    )
    assert (
        "Vocabulary of brand: 6 of at most 100 values, 2 of them new; an embedding needs 8 rows"
        in report
    )
    shown = command("inspect", "--server", world.store, "--user", 1)
    for cell in ("zz (7)", "é (5)", f"{2**64 - 1} (5)"):
        assert cell in shown
    out = world.folder / "brands.parquet"
    assert "6 values of brand" in command(
        *("store", "vocabulary", "--store", world.store), *("--trait", "brand", "--out", out)
    )
    table = pq.read_table(out)
    assert table.column("value").to_pylist() == ["", "a", "b", "é", "0", "zz"]
    assert table.column("code").to_pylist() == [2, 3, 4, 5, 6, 7]
    wrong = CliRunner().invoke(
        app, ["store", "vocabulary", "--store", str(world.store), "--trait", "x", "--out", str(out)]
    )
    assert wrong.exit_code == 2 and "brand, hash" in " ".join(wrong.stderr.split())


def test_slim_verify_and_materialize(world: World) -> None:
    """Fat rows with texts; what is materialized has codes, and is verified, too."""
    log = pa.concat_tables([events(0), events(1)]).drop_columns(["user_id"])
    columns = {
        name: pa.array([log[name].to_pylist()], pa.list_(log[name].type))
        for name in log.column_names
    }
    ids = {"user_id": [1], "request_ts": [as_of(2) - 5]}
    fat = world.write("fat.parquet", pa.table({**ids, **columns}))
    new = new_world(world.folder / "new", SCHEMA)
    out, rows = new.folder / "e.parquet", new.folder / "r.parquet"
    command("slim", fat, "--schema", new.schema, "--out-events", out, "--out-rows", rows)
    assert pq.read_schema(out).field("brand").type == pa.large_string()
    new.compact(pq.read_table(out), 2, cadence_ms=DAY_MS)
    whole = new.folder / "whole.parquet"
    command("materialize", rows, "--server", new.store, "--out", whole)
    [codes] = pq.read_table(whole).column("brand").to_pylist()
    assert codes[:2] == [5, 0] and set(codes) == {0, *range(2, 8)}
    command("verify", rows, "--server", new.store, "--against", fat)
    command("verify", rows, "--server", new.store, "--against", whole)
    # Without a word of the file, integers are codes of texts, and values of a trait of integers.
    unsaid = pq.read_table(whole).replace_schema_metadata({b"thinrow:codes": b"\xff"})
    texts = world.write("texts.parquet", unsaid.drop_columns(["hash"]))
    command("verify", rows, "--server", new.store, "--against", texts)
    path = world.write("unsaid.parquet", unsaid)
    result = CliRunner().invoke(
        app, ["verify", str(rows), "--server", str(new.store), "--against", str(path)]
    )
    assert result.exit_code == 1 and "hash" in result.output
    columns["brand"] = pa.array([["b", *columns["brand"].to_pylist()[0][1:-1], "never seen"]])
    other = world.write("other.parquet", pa.table({**ids, **columns}))
    result = CliRunner().invoke(
        app, ["verify", str(rows), "--server", str(new.store), "--against", str(other)]
    )
    assert result.exit_code == 1 and "brand" in result.output


def test_sizes_are_metrics(world: World) -> None:
    with running_server(world.store) as server:
        series = server.scrape()
        assert series['thinrow_vocabulary_values{trait="brand"}'] == 4
        assert series['thinrow_vocabulary_values_max{trait="brand"}'] == 100
        with connect(server.address) as client:
            assert client.codes("brand", ["a", "new", "a"]) == [3, 1, 3]
            assert client.codes("hash", [0, 2**64 - 1, 1]) == [2, 5, 1]
            for trait, values in (("item_id", [1]), ("brand", [1]), ("hash", ["a"])):
                with pytest.raises(RequestError, match="vocabulary"):
                    client.codes(trait, values)


APPENDED = [("b", 5), (None, 0), ("new", 9)]
"""brand and hash of events that arrive online."""


@contextmanager
def online(world: World) -> Iterator[OnlineClient]:
    config = OnlineConfig(
        store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None, poll_s=0.02
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        yield client


def append(client: OnlineClient, kind: str = "lists") -> int:
    """Appends what is appended, for user 1; returns a moment that sees it."""
    brands, hashes = zip(*APPENDED, strict=True)
    traits: dict[str, Any] = {"item_id": [0, 1, 2], "brand": brands, "hash": hashes}
    if kind == "arrow":
        traits |= {"brand": pa.array(brands), "hash": pa.array(hashes, pa.uint64())}
    return client.append([1] * 3, [START_TS, START_TS + 1, START_TS + 2], traits).arrival_ts + 1


def handed_over(world: World, client: OnlineClient, watermark_ts: int) -> Path:
    """Exports, compacts and waits until the generation serves."""
    path = world.folder / f"export-{watermark_ts}.parquet"
    export_events(client, watermark_ts, path)
    generation = compact(replace(world.compaction([path], 0), watermark_ts=watermark_ts)).generation
    while client.describe().generation != generation:
        time.sleep(0.01)
    return path


@pytest.mark.parametrize("kind", ["lists", "arrow"])
def test_online_events_have_values_and_batches_have_codes(world: World, kind: str) -> None:
    """A value is 1 until a generation has it; the thin row has it, and later reads its code."""
    with online(world) as client:
        request_ts = append(client, kind)
        for projection in (ALL, Projection(traits=("hash", "brand"))):
            seen = client.snapshot(1, projection, request_ts=request_ts)
            [both] = client.snapshot_batch([1], projection, request_ts=request_ts).thin_rows
            assert both == seen.thin_row
            assert seen.batch.to_lists("brand") == [CODES[0] + [4, 0, 1]]
            assert seen.batch.to_lists("hash") == [HASH_CODES[0] + [3, 2, 1]]
            assert seen.batch.values["brand"].dtype == np.int32
        mutable = [(event["brand"], event["hash"]) for event in seen.thin_row.mutable]
        assert mutable == APPENDED
        assert mutable_type(client.describe()).value_type.field("brand").type == pa.large_string()
        exported = handed_over(world, client, request_ts)
        assert pq.read_table(exported).column("brand").to_pylist() == ["b", None, "new"]
        assert pq.read_schema(exported).field("hash").type == pa.uint64()
        append(client)
        later = client.snapshot(1, ALL, request_ts=client.describe().now_ts + 100)
        assert later.thin_row.end_ts == request_ts
        assert later.batch.to_lists("brand") == [CODES[0] + [4, 0, 6] * 2]
        values = materialization_pb2.LookUpCodesRequest(trait="item_id", integers=[1])
        with pytest.raises(grpc.RpcError, match="no trait with a vocabulary"):
            client.stub.LookUpEventCodes(online_pb2.LookUpEventCodesRequest(values=values))
    row = seen.thin_row
    pointers = Pointers(
        user_ids=[1], start_ts=[row.start_ts], end_ts=[row.end_ts], request_ts=[row.request_ts]
    )
    carried = MutableEvents(
        np.array([0, 3]),
        np.array([event["arrival_ts"] for event in row.mutable]),
        {
            "event_ts": MutableColumn(np.array([event["event_ts"] for event in row.mutable])),
            "item_id": MutableColumn(np.array([0, 1, 2])),
            "brand": MutableColumn(
                np.array(["b", "", "new"], object), np.array([True, False, True])
            ),
            "hash": MutableColumn(np.array([5, 0, 9], np.uint64)),
        },
    )
    with connect(world.store) as trainer:
        batch = trainer.materialize(ThinRows(pointers, carried), ALL)
    assert batch.to_lists("brand") == [CODES[0] + [4, 0, 6]]


def test_before_the_first_generation_every_value_is_unknown(tmp_path: Path) -> None:
    new = new_world(tmp_path, SCHEMA)
    with online(new) as client:
        request_ts = append(client)
        seen = client.snapshot(1, ALL, request_ts=request_ts)
        assert seen.batch.to_lists("brand") == [[1, 0, 1]]
        assert seen.batch.to_lists("hash") == [[1, 1, 1]]
        described = {t.name: t for group in client.describe().feature_groups for t in group.traits}
        assert described["brand"].vocabulary.codes_end == 2
        handed_over(new, client, request_ts)
        assert client.snapshot(1, ALL).batch.to_lists("brand") == [[2, 0, 3]]


CITY = """
[shop]
city = { type = "string", sparse = true, codes = "vocabulary", values_max = 3 }
"""


def test_a_fill_extends_vocabularies(world: World) -> None:
    """New values get codes behind the last one, in order, and later runs go on behind those."""
    keys = {"user_id": [1] * 4, "event_ts": events(0)["event_ts"][:4], "item_id": [0, 1, 2, 3]}
    brands = pa.array(["y", None, "b", "x"])
    hashes = pa.array([7, 5, 6, 7], pa.uint64())
    values = world.write("values.parquet", pa.table({**keys, "brand": brands, "hash": hashes}))
    report = command("fill", "item", values, "--store", world.store)
    assert (
        "Vocabulary of brand: 6 of at most 100 values, 2 of them new; an embedding needs 8 rows"
        in report
    )
    filled = ([7, 0, 4, 6, 5], [7, 3, 6, 7, 4])
    with clients(world.store) as both:
        for client in both:
            batch = client.materialize(pointers_to(days(1), users=[1]), ALL)
            assert (batch.to_lists("brand"), batch.to_lists("hash")) == ([filled[0]], [filled[1]])
            assert client.codes("brand", ["x", "y", "z"]) == [6, 7, 1]
    world.compact(events(1), 2)
    [(_, answer)] = read_store(world.store, pointers_to(days(2), users=[1]))
    assert answer is not None
    assert answer["brand"] == [*filled[0], 4, 9, 8, 0]
    assert answer["hash"] == [*filled[1], 2, 8, 9, 10]
    rollback(world.store, 1, "remove")
    command("fill", "item", values, "--store", world.store)
    [(_, again)] = read_store(world.store, pointers_to(days(1), users=[1]))
    assert again is not None and (again["brand"], again["hash"]) == filled


def test_a_fill_joins_by_the_values_of_a_vocabulary(world: World) -> None:
    """Values that no event has are no codes of the store, and differ from one another."""
    (world.folder / "city.toml").write_text(CITY, encoding="utf-8")
    values = world.write(
        "cities.parquet",
        pa.table({"brand": ["b", "new", "é", "zz", "a"], "city": ["y", "y", None, "z", "x"]}),
    )
    arguments = ("fill", "shop", values, "--store", world.store)
    report = command(*arguments, "--schema", world.folder / "city.toml")
    assert "Vocabulary of city: 3 of at most 3 values, 3 of them new" in report
    assert "Rows that match no event: such as brand 'new'; brand 'zz'" in report
    assert "the traits: such as brand None; brand ''" in report
    [(_, answer)] = read_store(world.store, pointers_to(days(1), users=[1]))
    assert answer is not None
    assert (answer["brand"], answer["city"]) == (CODES[0], [3, 0, 2, 0, 0])
    numbers = {"hash": pa.array([5, 2**64 - 1], pa.uint64()), "city": ["z", "x"]}
    command("fill", "shop", world.write("n.parquet", pa.table(numbers)), "--store", world.store)
    [(_, answer)] = read_store(world.store, pointers_to(days(1), users=[1]))
    assert answer is not None and answer["city"] == [2, 0, 4, 4, 0]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"brand": ["b"], "city": ["w"]}, "vocabulary of city would have 4 values"),
        ({"brand": [4], "city": ["x"]}, "brand is int64"),
        ({"brand": ["b"], "city": [2]}, "city is int64"),
        ({"brand": ["b", None], "city": ["x", "x"]}, "brand has 1 nulls; every row needs one"),
        ({"brand": ["é", "é"], "city": ["x", "y"]}, "rows with brand 'é' have different values"),
        ({"brand": ["new"], "city": ["x"]}, "None of the 1 rows matches an event by brand"),
        ({"item_id": [1], "hash": pa.array([None], pa.uint64())}, "hash has 1 nulls"),
    ],
)
def test_a_fill_that_a_vocabulary_cannot_take_changes_nothing(
    world: World, columns: dict[str, Any], says: str
) -> None:
    (world.folder / "city.toml").write_text(CITY, encoding="utf-8")
    first = world.write("first.parquet", pa.table({"brand": ["b", "u", "v"], "city": [*"xyz"]}))
    command(
        *("fill", "shop", first, "--store", world.store, "--schema", world.folder / "city.toml")
    )
    before = contents(world.store)
    values = world.write("values.parquet", pa.table(columns))
    how = ["item", "--by", "item_id"] if "hash" in columns else ["shop"]
    result = CliRunner().invoke(app, ["fill", *how, str(values), "--store", str(world.store)])
    assert result.exit_code != 0 and says in " ".join(result.stderr.split())
    assert contents(world.store) == before


def test_mutable_values_of_another_kind_are_refused(world: World) -> None:
    rows = thin_rows(world)
    table = pq.read_table(rows)
    kind = table.schema.field("mutable").type.value_type
    fields = [f if f.name != "brand" else f.with_type(pa.float64()) for f in kind]
    lists = [
        [{**event, "brand": 0.5} for event in row] for row in table.column("mutable").to_pylist()
    ]
    changed = pa.array(lists, pa.list_(pa.struct(fields)))
    path = world.write("changed.parquet", table.set_column(3, "mutable", changed))
    [(thin, _)] = read_thin_rows(path, examples=8)
    with connect(world.store) as client, pytest.raises(InputError, match="'brand' has float64"):
        client.materialize(thin, ALL)


def test_rollback_does_not_give_a_code_another_value(world: World) -> None:
    """The values of a generation that a rollback removed keep their codes."""
    world.compact(events(1), 2)
    rollback(world.store, 1, "remove")
    other = events(1).set_column(3, "brand", pa.array(["new", "zz", "x", "y"]))
    report = world.compact(other, 2)
    assert report.vocabularies[0].values == 9
    answer = read_store(world.store, pointers_to(days(2), users=[1]))[0][1]
    assert answer is not None and answer["brand"] == [*CODES[0], 8, 7, 9, 10]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('type = "float32", codes = "vocabulary"', "single strings and integers"),
        ('type = "list<string>", length_max = 3, codes = "vocabulary"', "single strings"),
        ('type = "int64", size = 2, codes = "vocabulary"', "single strings and integers"),
        ('type = "string", codes = "vocabulary", default = ""', "no default"),
        ('type = "int64", codes = "vocabulary", unit = "ms"', "no default, unit"),
        ('type = "string", codes = "vocabulary", key = true', "no key"),
        ('type = "string", codes = "vocabulary", values_max = 0', "values_max is"),
        ('type = "string", values_max = 5', "have values_max"),
        ('type = "string", codes = "words"', 'codes = "vocabulary"'),
    ],
)
def test_schemas_that_mean_nothing_are_refused(line: str, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        parse_schema(f"[g]\nx = {{ {line} }}\n")


def test_only_the_limit_of_a_stored_vocabulary_may_change() -> None:
    first, second, other = (
        parse_schema(f'[g]\nx = {{ type = "{kind}", codes = "vocabulary", values_max = {most} }}\n')
        for kind, most in (("string", 5), ("string", 9), ("int64", 9))
    )
    assert from_stored(to_stored(first)) == first
    assert evolve(first, second).traits[0].values_max == 9
    with pytest.raises(SchemaError, match=r'type = "string", codes = "vocabulary"'):
        evolve(first, other)


def test_a_new_trait_reads_as_absent_in_old_events(world: World) -> None:
    schema = SCHEMA + 'city = { type = "string", sparse = true, codes = "vocabulary" }\n'
    world.schema.write_text(schema, encoding="utf-8")
    world.compact(events(1).append_column("city", pa.array(["x", "y", None, "x"])), 2)
    answer = read_store(world.store, pointers_to(days(2), users=[1]))[0][1]
    assert answer is not None and answer["city"] == [0] * 5 + [2, 3, 0, 2]


def test_a_limit_below_what_is_stored_is_refused(world: World) -> None:
    world.schema.write_text(SCHEMA.replace("values_max = 100", "values_max = 3"), encoding="utf-8")
    says = "vocabulary of brand has 4 values, and the schema says values_max = 3"
    with pytest.raises(ThinRowError, match=says):
        world.compact(events(1).slice(0, 0), 2)
    rows = {"user_id": [1], "event_ts": events(0)["event_ts"][:1], "item_id": [0]}
    values = world.write("values.parquet", pa.table(rows | {"hash": pa.array([0], pa.uint64())}))
    with pytest.raises(ThinRowError, match=says):
        thinrow.fill("item", values, store=world.store, schema=world.schema, by="event_ts")


def test_a_value_past_the_limit_is_refused_by_name(world: World) -> None:
    schema = SCHEMA.replace("values_max = 100", "values_max = 5")
    world.schema.write_text(schema, encoding="utf-8")
    with pytest.raises(ThinRowError, match=r"vocabulary of brand would have 6 .* values_max = 5"):
        world.compact(events(1), 2)
    assert read_store(world.store, pointers_to(days(1), users=[1]))
