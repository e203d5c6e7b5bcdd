"""Structs, times, decimals and bytes, from files to a store and back to what slim read."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.worlds import START_TS, as_of, days, new_world, pointers_to, read_store, running_online
from thinrow.cli.app import app
from thinrow.client import Projection
from thinrow.client.online import connect_online
from thinrow.client.torch import ThinRowLoader
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.files.arrow import one_array
from thinrow.core.files.nested import with_fields
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCHEMA = """
[item]
"item.id" = { type = "int64", key = true }
"item.price" = { type = "int64", scale = 2, sparse = true }
"item.shop.name" = { type = "string", sparse = true }

[context]
seen = { type = "int64", unit = "us" }
day = { type = "int32", unit = "d", sparse = true }
vector = { type = "float32", size = 2, sparse = true }
brand = { type = "string", sparse = true, codes = { buckets = 1000 } }
"""
AT = datetime(2024, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
VECTORS = np.array([[1, 2], [-0.5, 0]], "<f4")
EVENTS: list[dict[str, Any]] = [
    {
        "event_ts": START_TS + n,
        "item": {"id": n, "price": price, "shop": shop},
        "seen": AT + timedelta(microseconds=n),
        "day": day,
        "vector": vector,
        "brand": brand,
    }
    for n, (price, shop, day, vector, brand) in enumerate(
        [
            (
                Decimal("9.99"),
                {"name": "corner"},
                date(2024, 1, 2),
                VECTORS[0].tobytes(),
                "a",
            ),
            (None, {"name": None}, None, None, None),
            (Decimal("-0.01"), None, date(1969, 12, 31), VECTORS[1].tobytes(), "Ä"),
        ]
    )
]
KIND = pa.struct(
    [
        ("event_ts", pa.int64()),
        (
            "item",
            pa.struct(
                [
                    ("id", pa.int64()),
                    ("price", pa.decimal128(8, 2)),
                    ("shop", pa.struct([("name", pa.string())])),
                ]
            ),
        ),
        ("seen", pa.timestamp("us", "UTC")),
        ("day", pa.date32()),
        ("vector", pa.binary()),
        ("brand", pa.string()),
    ]
)
STORED = {
    "item.id": [0, 1, 2],
    "item.price": [999, None, -1],
    "item.shop.name": ["corner", None, None],
    "seen": [1704164645000678, 1704164645000679, 1704164645000680],
    "day": [19724, None, -1],
    "vector": [[1.0, 2.0], None, [-0.5, 0.0]],
    "brand": [930, 0, 126],
}


def stored(store: Path, names: Iterable[str] = STORED) -> dict[str, Any]:
    [(_, answer)] = read_store(store, pointers_to(days(1), users=[1]))
    return {name: answer[name] for name in names}


def test_structs_of_events_are_flattened_with_dots(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    table = pa.Table.from_pylist(EVENTS, pa.schema(list(KIND)))
    report = world.compact(table.add_column(0, "user_id", pa.array([1] * 3)), 1)
    assert stored(world.store) == STORED
    assert not report.ignored_columns


@pytest.mark.parametrize("named", [True, False])
def test_slim_takes_lists_of_structs(tmp_path: Path, named: bool) -> None:
    """Their fields are lists of traits; without a schema one is derived from their types."""
    world = new_world(tmp_path, SCHEMA)
    names = [name for name in STORED if named or name not in ("vector", "brand")]
    clicks = pa.array([EVENTS, [], EVENTS], pa.list_(KIND))
    if not named:
        clicks = pa.array(clicks.to_pylist(), pa.list_(pa.struct(list(KIND)[:-2])))
    ids = {"user_id": [1, 2, 1], "request_ts": [as_of(1), as_of(1), as_of(1) + 1]}
    fat = world.write("fat.parquet", pa.table({**ids, "clicks": clicks, "label": [0, 1, 1]}))
    events, rows = tmp_path / "e.parquet", tmp_path / "r.parquet"
    command = ["slim", fat, "--out-events", events, "--out-rows", rows]
    command += ["--schema", world.schema] if named else []
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    assert pq.read_table(rows).column_names[:3] == ["user_id", "request_ts", "label"]
    written = world.schema if named else events.with_suffix(".toml")
    assert written.exists(), list(tmp_path.iterdir())
    config = CompactionConfig(
        store=world.store, events=events, schema=written, watermark_ts=as_of(1)
    )
    assert compact(config).events_added == 3
    assert stored(world.store, names) == {name: STORED[name] for name in names}
    verify = [str(part) for part in ("verify", rows, "--server", world.store, "--against")]
    result = CliRunner().invoke(app, [*verify, str(fat)])
    assert result.exit_code == 0, result.output
    changed = clicks.to_pylist()
    changed[2][1]["item"]["id"] = 7
    table = pa.table({**ids, "clicks": pa.array(changed, clicks.type), "label": [0, 1, 1]})
    result = CliRunner().invoke(app, [*verify, str(world.write("changed.parquet", table))])
    assert result.exit_code == 1 and "item.id" in result.output


def test_a_field_of_a_list_is_no_column_of_the_row(tmp_path: Path) -> None:
    """The fields' names stand for lists: they give no row its user, and no store its visible_ts."""
    world = new_world(tmp_path, SCHEMA)
    outs = ["--out-events", tmp_path / "e.parquet", "--out-rows", tmp_path / "r.parquet"]
    for field, columns, message in (
        ("user_id", ("request_ts",), "no column user_id"),
        ("visible_ts", ("user_id", "request_ts"), "has a column visible_ts"),
    ):
        lists = pa.array([[{**EVENTS[0], field: 1}]], pa.list_(pa.struct([*KIND, (field, "i8")])))
        ids = {name: [as_of(1)] for name in columns}
        fat = world.write("fat.parquet", pa.table({**ids, "clicks": lists}))
        command = ["slim", fat, "--schema", world.schema, *outs]
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 2 and message in " ".join(result.stderr.split())


def test_two_lists_of_structs_are_refused(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    lists = pa.array([EVENTS], pa.list_(KIND))
    ids = {"user_id": [1], "request_ts": [as_of(1)]}
    fat = world.write("fat.parquet", pa.table({**ids, "clicks": lists, "views": lists}))
    outs = ["--out-events", tmp_path / "e.parquet", "--out-rows", tmp_path / "r.parquet"]
    result = CliRunner().invoke(app, list(map(str, ["slim", fat, *outs])))
    assert result.exit_code == 2 and "event_ts in clicks and in views" in result.stderr


def test_verify_and_tensors_see_what_slim_stored(tmp_path: Path) -> None:
    """Fat rows of flat lists; a batch's codes feed an embedding as they are."""
    world = new_world(tmp_path, SCHEMA)
    flat = with_fields(pa.Table.from_pylist(EVENTS, pa.schema(list(KIND))), list(STORED))
    lists = {name: pa.array([flat[name].to_pylist()], pa.list_(flat[name].type)) for name in STORED}
    lists["event_ts"] = pa.array([[event["event_ts"] for event in EVENTS]])
    fat = world.write("fat.parquet", pa.table({"user_id": [1], "request_ts": [as_of(1)], **lists}))
    events, rows = tmp_path / "e.parquet", tmp_path / "r.parquet"
    named = ["--schema", world.schema]
    for command in (
        ["slim", fat, *named, "--out-events", events, "--out-rows", rows],
        ["compact", events, "--store", world.store, *named, "--watermark", as_of(1)],
        ["verify", rows, "--server", world.store, "--against", fat],
    ):
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 0, result.output
    with ThinRowLoader(str(rows), str(world.store), Projection(traits=("brand",))) as loader:
        [batch] = loader
    assert batch.values["brand"].tolist() == STORED["brand"] and not batch.present
    assert torch.nn.Embedding(1002, 4, padding_idx=0)(batch.values["brand"]).shape == (3, 4)


def test_the_online_client_takes_them_from_python_numpy_and_arrow(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    table = with_fields(pa.Table.from_pylist(EVENTS, pa.schema(list(KIND))), list(STORED))
    arrow = {name: one_array(table[name]) for name in STORED}
    plain = {name: column.to_pylist() for name, column in arrow.items()}
    vectors = [None if one is None else np.frombuffer(one, "<f4") for one in plain["vector"]]
    plain["vector"] = vectors
    numpy = plain | {"seen": np.array(arrow["seen"].cast(pa.int64())).view("M8[us]")}
    times, wanted = table["event_ts"].to_pylist(), Projection(traits=tuple(STORED))
    with running_online(world) as server, connect_online(server.address) as online:
        for user, traits in enumerate((arrow, plain, numpy)):
            appended = online.append([user] * 3, times, traits)
            seen = online.snapshot(user, wanted, request_ts=appended.arrival_ts + 1)
            found = {name: seen.batch.to_lists(name)[0] for name in STORED}
            assert found == STORED, user
            mutable = seen.thin_row.mutable
            assert [event["brand"] for event in mutable] == STORED["brand"]
