"""Fills that cannot be done: one sentence, and the store as it was; fills that are killed."""

from __future__ import annotations

import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import polars as pl
import pyarrow as pa
import pytest
import torch
from support.paths import SUPPORT
from support.small_store import copied, sample
from support.store_contents import contents
from support.thin_rows import EVENT, UIH
from support.tried import SEED, times
from support.worlds import (
    World,
    as_of,
    built_world,
    days,
    leftovers,
    new_world,
    pointers_to,
    read_store,
    some_events,
)
from thinrow.access.projection import resolve
from thinrow.cli.app import app
from thinrow.client import Projection, connect
from thinrow.client.torch.batching import AnsweredRows, to_tensors
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import ThinRows
from thinrow.core.wire.response import Response
from thinrow.errors import RequestError, SchemaError, ThinRowError, UsageError
from thinrow.filling.config import FillConfig
from thinrow.filling.fill import fill
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.request import MaterializeRequest
from thinrow.materialization.server import Server
from thinrow.store.current import require_current_folder
from thinrow.store.generation import Generation
from thinrow.store.generations import locked_store
from thinrow.store.history import HistoryPlan
from thinrow.store.keys import group_and_stripe
from thinrow.store.manifest import read_manifest
from thinrow.store.rollback import rollback
from thinrow.v1 import materialization_pb2 as wire
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVENTS = some_events()
ROWS = len(EVENTS)
EXTRA = """
[extra]
shop = { type = "string", sparse = true }
stars = { type = "int8", sparse = true, default = 0 }
"""
COLUMNS = {
    name: EVENTS[name] for name in ("user_id", "event_id", "event_ts", "item_id", "brand", "price")
}
POINTERS = pointers_to(days(3))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = built_world(tmp_path_factory.mktemp("fill") / "world")
    (world.folder / "extra.toml").write_text(EXTRA, encoding="utf-8")
    world.write("shops.parquet", shops())
    return world


def shops(**columns: pa.Array) -> pa.Table:
    """A shop for each event, by event_id."""
    given = {"user_id": COLUMNS["user_id"], "event_id": COLUMNS["event_id"]}
    return pa.table(given | {"shop": pa.array(["s"] * ROWS)} | columns)


def arguments(world: World, table: pa.Table, *options: object) -> list[str]:
    values = world.write("values.parquet", table)
    schema = ("--schema", world.folder / "extra.toml")
    given = options if "feedback" in options else ("extra", *schema, *options)
    return [*map(str, ("fill", given[0], values, "--store", world.store, *given[1:]))]


def by(*names: str, **columns: pa.Array) -> Callable[[], pa.Table]:
    return lambda: pa.table({name: COLUMNS[name] for name in names} | columns)


SHOP = pa.array(["s"] * ROWS)
NO_IDS = pa.array([None] * 3 + list(range(ROWS - 3)), pa.int64())
REFUSED: dict[str, tuple[Callable[[], pa.Table], tuple[object, ...], str]] = {
    "null user": (lambda: shops(user_id=NO_IDS), (), "user_id has 3 nulls"),
    "null event": (lambda: shops(event_id=NO_IDS), (), "event_id has 3 nulls"),
    "null value of a trait": (
        by(item_id=NO_IDS, shop=SHOP),
        (),
        "item_id has 3 nulls; every row needs one",
    ),
    "contradiction": (
        lambda: pa.table({"item_id": [7, 7], "shop": ["a", "b"]}),
        (),
        "rows with item_id 7 have different values of shop; keep one of them",
    ),
    "unknown group": (
        shops,
        ("nothing",),
        "has no group nothing",
    ),
    "key trait": (
        by("user_id", "event_id", "item_id", "brand"),
        ("item",),
        "item_id is a key of the stored digests and cannot be filled",
    ),
    "text for a number": (lambda: shops(stars=SHOP), (), "stars is string"),
    "number for text": (lambda: shops(shop=pa.array(range(ROWS))), (), "shop is int64"),
    "null for a trait without": (
        by("user_id", "event_id", price=pa.array([None] * ROWS, pa.float64())),
        ("feedback",),
        "price has 400 nulls",
    ),
    "no match": (
        lambda: pa.table({"item_id": [-1], "shop": ["a"]}),
        (),
        "None of the 1 rows matches an event by item_id; one row has item_id -1",
    ),
    "no rows": (lambda: shops().slice(0, 0), (), "has no rows"),
    "no values": (by("user_id", "event_id"), (), "has no values for the group extra"),
    "no key": (by(shop=SHOP), (), "give --by"),
    "two keys": (by("item_id", "brand", shop=SHOP), (), "several traits (item_id, brand)"),
    "float key": (by("price", shop=SHOP), ("--by", "price"), "rows are joined by a single"),
    "key of the new group": (
        lambda: pa.table({"shop": ["a"], "stars": pa.array([1], pa.int8())}),
        ("--by", "stars"),
        "--by stars names a trait that no stored event has",
    ),
    "unknown key": (by("price", shop=SHOP), ("--by", "color"), "--by color names no trait"),
    "key trait left out": (
        by("user_id", "event_ts", shop=SHOP),
        (),
        "has no column item_id; rows that are joined by event_ts need user_id, event_ts, item_id",
    ),
    "seconds": (
        lambda: pa.table(
            {
                "user_id": EVENTS["user_id"],
                "event_ts": pa.compute.divide(EVENTS["event_ts"], 1000),
                "item_id": EVENTS["item_id"],
                "shop": SHOP,
            }
        ),
        (),
        "give --time-unit s",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(world: World, case: str) -> None:
    table, options, says = REFUSED[case]
    group = [option for option in options if option in ("nothing", "item", "feedback")]
    given = [option for option in options if option not in group]
    values = world.write("values.parquet", table())
    schema = [] if group else ["--schema", world.folder / "extra.toml"]
    before = contents(world.store)
    result = CliRunner().invoke(
        app,
        [
            *("fill", *(group or ["extra"]), str(values), "--store", str(world.store)),
            *map(str, (*schema, *given)),
        ],
    )
    assert result.exit_code in (1, 2), result.output
    assert says in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "\n" not in result.stderr.strip()
    assert contents(world.store) == before
    assert leftovers(world.store) == []


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("[other]\nshop = 'string'", "has no group extra; add a table [extra]"),
        ("[extra]\nshop = 'string'", "give it sparse = true or a default"),
        ("[extra]\nshop = { type = 'string', sparse = true, key = true }", "cannot be a key"),
        ("[extra]\nprice = { type = 'float64', sparse = true }", "has the name of feedback.price"),
        (f"{EXTRA}\n[more]\na = {{ type = 'int8', sparse = true }}", "has the group more"),
        (f"{EXTRA}\n[feedback]\nprice = 'float64'", "lacks feedback.rating"),
    ],
)
def test_schema_that_changes_more(world: World, schema: str, says: str) -> None:
    file = world.folder / "other.toml"
    file.write_text(schema, encoding="utf-8")
    values = world.folder / "shops.parquet"
    config = FillConfig(group="extra", values=values, store=world.store, schema=file)
    with pytest.raises(UsageError, match=re.escape(says)):
        fill(config)


def shop_config(world: World) -> FillConfig:
    return FillConfig(
        group="extra",
        values=world.folder / "shops.parquet",
        store=world.store,
        schema=world.folder / "extra.toml",
    )


@pytest.mark.parametrize("columns", [("user_id", "event_id"), ("item_id",)])
def test_more_rows_than_memory_takes(world: World, columns: tuple[str, ...]) -> None:
    values = world.write("many.parquet", by(*columns, shop=SHOP)())
    config = FillConfig(
        group="extra", values=values, store=world.store, schema=world.folder / "extra.toml"
    )
    with (
        mock.patch("thinrow.filling.rows.VALUES_BYTES_MAX", 1000),
        pytest.raises(UsageError, match="have more than 1,000 bytes"),
    ):
        fill(config)
    assert leftovers(world.store) == []


def test_store_that_another_command_changes(world: World) -> None:
    with locked_store(world.store):
        result = CliRunner().invoke(app, arguments(world, shops()))
    assert "Another compaction is running" in result.stderr


def test_killed(world: World, tmp_path: Path) -> None:
    """The old generation or the new one serves; run again it ends as if never killed."""
    before = read_store(world.store, POINTERS)
    whole = copied(world, tmp_path / "whole")
    [steps] = re.findall(r"steps: (\d+)", started(whole, 0).stderr)
    after = read_store(whole.store, POINTERS)
    assert after != before
    # Other groups are the same, byte by byte, in the very files of the last generation.
    assert stripes_of(whole.store, but="extra") == stripes_of(world.store, but="extra")
    files = {
        path.name: path.stat().st_ino for path in whole.store.glob("generation-000001/*/*.sst")
    }
    shared = {
        path.name: path.stat().st_ino for path in whole.store.glob("generation-000002/*/*.sst")
    }
    assert files.items() <= shared.items()
    for step in sample(list(range(1, int(steps) + 1)), times(1, 1000), SEED):
        killed = copied(world, tmp_path / f"killed-{step}")
        assert started(killed, step).returncode == -signal.SIGKILL
        assert read_store(killed.store, POINTERS) in (before, after)
        fill(shop_config(killed))
        assert contents(killed.store) == contents(whole.store)
        assert leftovers(killed.store) == []
        assert len(read_manifest(require_current_folder(killed.store)).fills) == 1


def stripes_of(store: Path, but: str) -> dict[bytes, bytes]:
    """Every key and value of a store, but those of one group."""
    with Generation.open_current(store) as generation:
        numbers = {group.name: group.number for group in generation.schema.groups}
        return {
            key: value
            for number, shard in generation.shards.items()
            for key, value in shard.items(generation.manifest.shards[number].keys)
            if group_and_stripe(key)[0] != numbers.get(but)
        }


def started(world: World, step: int) -> subprocess.CompletedProcess[str]:
    """The command, killed at a step of its own; at none for 0."""
    command = ["fill", "extra", world.folder / "shops.parquet", "--store", world.store]
    command += ["--schema", world.folder / "extra.toml"]
    return subprocess.run(
        [sys.executable, SUPPORT / "steps.py", str(step), world.store, *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
        check=False,
    )


def test_compaction_keeps_values_and_knows_its_last_run(world: World, tmp_path: Path) -> None:
    filled = copied(world, tmp_path / "filled")
    fill(shop_config(filled))
    before = read_store(filled.store, POINTERS)

    def config(
        name: str, day: int, schema: Path | None = None, drop: bool = False
    ) -> CompactionConfig:
        return CompactionConfig(
            events=filled.folder / name,
            store=filled.store,
            watermark_ts=as_of(day),
            schema=schema,
            drop_filled=drop,
        )

    # The last compaction, tried again, was done: its inputs are those of the manifest.
    assert compact(config("events-3.parquet", 3)).already_published
    filled.write("next.parquet", some_events(seed=1, days=1, first_day=3))
    with pytest.raises(SchemaError, match=r"lacks extra.shop, which was filled"):
        compact(config("next.parquet", 4, filled.schema))
    compact(config("next.parquet", 4))
    assert read_store(filled.store, POINTERS) == before
    manifest = read_manifest(require_current_folder(filled.store))
    assert [record.watermark_ts for record in manifest.fills] == [as_of(3)]
    # The same rows again: new events may match them.
    assert not fill(shop_config(filled)).already_published
    assert fill(shop_config(filled)).already_published
    compact(config("next.parquet", 5, filled.schema, drop=True))
    shown = read_store(filled.store, POINTERS)
    assert all("shop" not in columns for _, columns in shown)


def test_rollback_takes_a_fill_back(world: World, tmp_path: Path) -> None:
    filled = copied(world, tmp_path / "filled")
    before = read_store(filled.store, POINTERS)
    fill(shop_config(filled))
    report = rollback(filled.store, 1, "remove")
    assert report.removed == [2]
    assert not report.erasing
    assert read_store(filled.store, POINTERS) == before
    assert fill(shop_config(filled)).record.generation == 3


# As served, and filled later.


@pytest.fixture(scope="module")
def filled(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The store with a group filled, and a generation after it."""
    filled = copied(world, tmp_path_factory.mktemp("served") / "world")
    fill(shop_config(filled))
    events = filled.write("next.parquet", some_events(seed=1, days=1, first_day=3))
    compact(CompactionConfig(events=events, store=filled.store, watermark_ts=as_of(4)))
    return filled


def test_as_served_refuses_what_was_filled(filled: World) -> None:
    tenants = filled.folder / "tenants.toml"
    tenants.write_text("[audit]\nas_served = true\n", encoding="utf-8")
    config = ServerConfig(store=filled.store, listen="127.0.0.1:0", metrics=None, tenants=tenants)
    served = Projection(as_served=True, traits=("item_id", "stars"))
    with (
        Server(config) as server,
        connect(server.address) as client,
        connect(filled.store) as local,
    ):
        for each in (client, local):
            batch = each.materialize(POINTERS, served)
            assert batch.filled == frozenset()
            assert each.materialize(POINTERS, Projection()).filled == {"shop"}
            for wanted in (
                Projection(as_served=True),
                Projection(as_served=True, traits=("shop",)),
                Projection(as_served=True, feature_groups=("extra",)),
            ):
                with pytest.raises(RequestError, match="shop was filled after events were served"):
                    each.materialize(POINTERS, wanted)
            with pytest.raises(RequestError, match="shop was filled"):
                each.inspect(1, 0, Projection(20, as_served=True))
        with pytest.raises(RequestError, match="shop was filled"):
            client.materialize(POINTERS, "audit")


def test_commands_name_what_was_filled(filled: World, tmp_path: Path) -> None:
    uih = {
        "start_ts": POINTERS.start_ts,
        "end_ts": POINTERS.end_ts,
        "max_length": POINTERS.max_lengths,
        "digest": POINTERS.digests,
    }
    kinds = [uih_type.type for uih_type in UIH]
    parts = [pa.array(values, kind) for values, kind in zip(uih.values(), kinds, strict=True)]
    pointed = {
        "user_id": POINTERS.user_ids,
        "request_ts": POINTERS.request_ts,
        "uih": pa.StructArray.from_arrays(parts, fields=list(UIH)),
        "mutable": pa.array([[]] * len(POINTERS), pa.list_(EVENT)),
    }
    rows = filled.write("rows.parquet", pa.table(pointed))
    fat = str(tmp_path / "fat.parquet")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments), "--server", str(filled.store)])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return f"{result.exit_code}: {' '.join(result.output.split())}"

    command = ("materialize", str(rows), "--out", fat)
    assert "shop was filled after events were served" in run(*command, "--as-served")
    as_served = run(*command, "--as-served", "--traits", "item_id,stars")
    assert as_served.startswith("0:")
    assert "filled" not in as_served
    assert "filled after events were served │ shop" in run(*command)
    verified = run("verify", str(rows), "--against", fat)
    assert verified.startswith("0:")
    assert "Filled after events were served, so older fat rows may differ: shop" in verified


def test_a_server_that_ignores_as_served_is_found_out(filled: World) -> None:
    lookup = BatchLookup(ThinRows(POINTERS), Projection(as_served=True)).whole()
    request = MaterializeRequest(
        BatchLookup(ThinRows(POINTERS), Projection()).whole().request(), 1 << 20
    )
    with Generation.open_current(filled.store) as generation:
        resolved = resolve("", request.projection, generation.schema, {})
        plan = HistoryPlan(generation, request, resolved.truncation, resolved.groups)
        plan.read()
        plan.resolve()
        message, _ = plan.answer(resolved.traits, 1 << 30)
    assert [c.trait for c in wire.MaterializeResponse.FromString(message).columns if c.filled] == [
        "shop"
    ]
    with pytest.raises(ThinRowError, match="shop was filled later"):
        lookup.answered(Response.read(message))


def test_people_see_what_was_filled(filled: World) -> None:
    with connect(filled.store) as client:
        groups = client.describe_store().feature_groups
        before = {t.name: t.filled_before_ts for group in groups for t in group.traits}
        assert before == {name: 0 for name in before if name != "shop"} | {"shop": as_of(3)}
        events = client.inspect(1, 0, Projection(400)).events
    marks = {
        (trait.filled, event.visible_ts < as_of(3))
        for event in events
        for trait in event.traits
        if trait.name == "shop"
    }
    assert marks == {(True, True)}  # later events lack it
    shown = CliRunner().invoke(
        app, ["inspect", "--server", str(filled.store), "--user", "1", "--limit", "200"]
    )
    assert "Filled after the events were served: shop." in shown.stdout
    listed = CliRunner().invoke(app, ["store", "list", "--store", str(filled.store)])
    assert "complete, a fill" in listed.stdout


def test_tensors_say_what_was_filled(filled: World) -> None:
    with connect(filled.store) as client:
        answers = list(client.answers([POINTERS], Projection(traits=("shop", "price"))))
    columns = pa.table({"label": range(len(POINTERS))})
    ids = torch.arange(len(POINTERS)).numpy()
    parts = [AnsweredRows(answer, columns, ids) for answer in answers]
    [batch] = to_tensors([parts], torch.int64)
    for each in (batch, batch.to("cpu"), pickle.loads(pickle.dumps(batch))):  # noqa: S301
        assert each.filled == {"shop"}


def test_a_corrected_file_of_the_same_name_and_size_is_a_fill_of_its_own(
    world: World, tmp_path: Path
) -> None:
    filled = copied(world, tmp_path / "filled")
    sizes = []
    for added in (0, 1):
        stars = pa.array([(number + added) % 5 for number in range(ROWS)], pa.int8())
        # Written in full, so that the footer is the same: no dictionary, no statistics.
        file = filled.write(
            "shops.parquet",
            shops(stars=stars),
            use_dictionary=False,
            compression="none",
            write_statistics=False,
        )
        sizes.append(file.stat().st_size)
        assert not fill(shop_config(filled)).already_published
        assert fill(shop_config(filled)).already_published
    assert sizes[0] == sizes[1]


def test_rows_are_joined_neither_by_codes_nor_to_other_users(tmp_path: Path) -> None:
    made = new_world(
        tmp_path,
        '[item]\nitem_id = { type = "int64", key = true }\n'
        'brand = { type = "string", sparse = true, codes = { buckets = 100 } }\n',
    )
    event = {"user_id": [1], "event_ts": [days(0)[0]], "item_id": [1], "brand": ["nike"]}
    made.compact(pa.table(event), 1)
    (made.folder / "extra.toml").write_text(EXTRA, encoding="utf-8")
    for columns, reason in (
        ({"brand": ["brand73"]}, "two texts may share"),
        ({"user_id": [2], "item_id": [1]}, "fill every user's events"),
    ):
        values = made.write("values.parquet", pa.table({**columns, "shop": ["a"]}))
        config = FillConfig(
            group="extra", values=values, store=made.store, schema=made.folder / "extra.toml"
        )
        with pytest.raises(UsageError, match=reason):
            fill(config)


def test_texts_of_equal_hashes_are_two_keys(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = copied(world, tmp_path / "filled")
    brands = COLUMNS["brand"].to_pylist()
    assert len({*brands}) > 1
    filled.write("shops.parquet", pa.table({"brand": [brands[0]], "shop": ["s"]}))
    monkeypatch.setattr(
        pl.Series, "hash", lambda self, _: pl.zeros(len(self), pl.UInt64, eager=True)
    )
    assert fill(shop_config(filled)).record.events == brands.count(brands[0])


def test_columns_of_every_file_count(world: World, tmp_path: Path) -> None:
    filled = copied(world, tmp_path / "filled")
    folder = filled.folder / "my values"
    folder.mkdir()
    values = shops(m=pa.array([{"note": 1}] * ROWS))
    half = ROWS // 2
    filled.write("my values/a b.parquet", values[:half])
    more = values[half:].append_column("stars", pa.array([1] * (ROWS - half), pa.int8()))
    config = replace(shop_config(filled), values=folder)
    filled.write("my values/c.parquet", more)
    with pytest.raises(
        UsageError, match=r"c\.parquet has a column stars, and .*a b\.parquet has not"
    ):
        fill(config)
    filled.write("my values/c.parquet", values[half:].append_column("zz", values["shop"][half:]))
    assert fill(config).ignored_columns == ["m", "zz"]
    shown = CliRunner().invoke(app, ["store", "list", "--store", str(filled.store)])
    assert "from a b.parquet, c.parquet" in shown.output
