"""The example client in Node: decodes the vectors, materializes, appends, against real servers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.paths import ROOT
from support.worlds import START_TS, World, days, new_world
from thinrow.client import Pointers, Projection, connect
from thinrow.client.online import connect_online
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer

EXAMPLE = ROOT / "examples" / "node"
VECTORS = ROOT / "docs" / "reference" / "test-vectors.json"
SCHEMA = """
[whole]
item_id = { type = "int64", key = true }
i8 = { type = "int8", sparse = true }
i16 = { type = "int16", sparse = true }
i32 = { type = "int32", sparse = true }
u8 = { type = "uint8", sparse = true }
u16 = { type = "uint16", sparse = true }
u32 = { type = "uint32", sparse = true }
u64 = { type = "uint64", sparse = true }

[other]
f16 = { type = "float16", sparse = true }
f32 = { type = "float32", sparse = true }
f64 = { type = "float64", sparse = true }
seen = { type = "bool", sparse = true }
kind = { type = "categorical", default = -5 }
text = { type = "string", sparse = true }
taste = { type = "float32", size = 2, sparse = true }
"""
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "item_id": (pa.int64(), [-(1 << 63), (1 << 63) - 1, 0]),
    "i8": (pa.int8(), [-128, None, 127]),
    "i16": (pa.int16(), [-1, 5, None]),
    "i32": (pa.int32(), [-(1 << 31), None, None]),
    "u8": (pa.uint8(), [255, 0, None]),
    "u16": (pa.uint16(), [None, 65535, 1]),
    "u32": (pa.uint32(), [(1 << 32) - 1, None, 1]),
    "u64": (pa.uint64(), [(1 << 64) - 1, 1 << 63, None]),
    "f16": (pa.float16(), [1.5, None, -2.0]),
    "f32": (pa.float32(), [0.1, None, -2.5]),
    "f64": (pa.float64(), [None, 0.1, 1e300]),
    "seen": (pa.bool_(), [True, False, None]),
    "kind": (pa.int64(), [7, -7, 7]),
    "text": (pa.string(), ["", None, "ä\U0001f600"]),
    "taste": (pa.list_(pa.float32()), [[0.5, -1.5], None, [2.0, 0.0]]),
}


@pytest.fixture(scope="module")
def modules() -> Path:
    """The pinned packages, installed once into .cache."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs npm and node")
    folder = ROOT / ".cache" / "node-example"
    lock = (EXAMPLE / "package-lock.json").read_bytes()
    if not (folder / "done").exists() or (folder / "done").read_bytes() != lock:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(EXAMPLE / name, folder)
        subprocess.run(
            [npm, "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=240
        )
        (folder / "done").write_bytes(lock)
    return folder / "node_modules"


def node(modules: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", str(EXAMPLE / "main.js"), *map(str, arguments)],
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def answered(ran: subprocess.CompletedProcess[str]) -> Any:  # noqa: ANN401 - a JSON value
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def as_numbers(column: list[Any], is_float: bool) -> list[Any]:
    """Numbers of either client: Node writes integers of all types as text."""
    if is_float:
        return column
    return [None if each is None else int(each) for each in column]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = new_world(tmp_path_factory.mktemp("world"), SCHEMA)
    events = {
        "user_id": pa.array([1, 1, 2], pa.int64()),
        "event_ts": pa.array([START_TS, START_TS + 1, START_TS], pa.int64()),
    }
    for name, (kind, values) in VALUES.items():
        if kind == pa.float16():
            values = [None if each is None else np.float16(each) for each in values]
        events[name] = pa.array(values, kind)
    world.compact(pa.table(events), 3)
    return world


def check_column(name: str, found: list[Any], wanted: list[Any]) -> None:
    kind = VALUES[name][0] if name in VALUES else pa.int64()
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_list(kind):
        assert found == wanted, name
    else:
        assert as_numbers(found, pa.types.is_floating(kind)) == wanted, name


def test_the_decoder_agrees_with_every_vector(modules: Path, tmp_path: Path) -> None:
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    result = answered(node(modules, "vectors", VECTORS))
    assert result == {kind: len(vectors[kind]) for kind in ("columns", "malformed")}
    # A decoder that compared nothing would pass, too.
    vectors["columns"][0]["values"][0] = "12345"
    spoilt = tmp_path / "spoilt.json"
    spoilt.write_text(json.dumps(vectors), encoding="utf-8")
    assert node(modules, "vectors", spoilt).returncode == 1


def test_histories_are_those_of_this_client(modules: Path, world: World) -> None:
    with (
        Server(ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)) as server,
        connect(server.address) as client,
    ):
        whole, short = answered(node(modules, "materialize", server.address, 1, 2, 99))
        batch = client.materialize(Pointers(user_ids=[1, 2, 99], end_ts=days(3) * 3), Projection())
    assert whole == short, "no history is longer than 3"
    assert [each["status"] for each in whole] == ["STATUS_OK"] * 3
    assert set(whole[0]["events"]) == {"event_ts", *VALUES}
    for name in batch.values:
        for each, wanted in zip(whole, batch.to_lists(name), strict=True):
            assert wanted is not None
            check_column(name, each["events"][name], wanted)


def test_what_it_appends_is_what_this_client_sees(
    modules: Path, world: World, tmp_path: Path
) -> None:
    events = []
    for row, user_id in enumerate((8, 8, 9)):
        event: dict[str, Any] = {"user_id": user_id, "event_ts": START_TS, "event_id": row}
        for name, (_, values) in VALUES.items():
            value = values[row]
            if value is not None:
                is_long = isinstance(value, int) and not isinstance(value, bool)
                event[name] = str(value) if is_long else value
        if row == 2:
            del event["kind"]  # for its default
        if row == 1:
            del event["event_id"]
        events.append(event)
    file = tmp_path / "events.json"
    file.write_text(json.dumps(events), encoding="utf-8")
    config = OnlineConfig(
        store=world.store, data=tmp_path / "online", listen="127.0.0.1:0", metrics=None
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        result = answered(node(modules, "append", server.address, file))
        now_ts = client.describe().now_ts + 500
        rows = [client.snapshot(user, Projection(), request_ts=now_ts).thin_row for user in (8, 9)]
        refused = tmp_path / "refused.json"
        refused.write_text('[{"user_id": 1, "event_ts": 1, "color": 3}]', encoding="utf-8")
        ran = node(modules, "append", server.address, refused)
    assert ran.returncode == 1 and "color" in ran.stderr
    assert result["appended"] == 3
    for found, thin_row in zip(result["seen"], rows, strict=True):
        for name in ("event_ts", "event_id", *VALUES):
            check_column(name, found[name], [event[name] for event in thin_row.mutable])
    ((first, second), (third,)) = (row.mutable for row in rows)
    seen = {event["item_id"]: event for event in (first, second, third)}
    for row, item_id in enumerate(VALUES["item_id"][1]):
        for name, (kind, values) in VALUES.items():
            wanted = -5 if (row, name) == (2, "kind") else values[row]
            if kind == pa.float32() and wanted is not None:
                wanted = float(np.float32(wanted))
            assert seen[item_id][name] == wanted, name


@pytest.mark.parametrize(
    ("users", "ids"), [("string", "uuid"), ("uuid", "string"), ("uint64", "uint64")]
)
def test_ids_of_every_kind(modules: Path, tmp_path: Path, users: str, ids: str) -> None:
    known: dict[str, list[Any]] = {
        "string": ["", "ä\U0001f600"],
        "uuid": ["f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "00000000-0000-0000-0000-000000000001"],
        "uint64": [(1 << 64) - 1, 1],
    }
    kinds = f'[user]\nid = "{users}"\n[event]\nid = "{ids}"\n'
    world = new_world(tmp_path, f'[item]\nitem_id = "int64"\n{kinds}')
    events: list[dict[str, Any]] = [
        {
            # Node reads a large number of JSON as a float.
            "user_id": str(user),
            "event_ts": START_TS,
            "event_id": str(event_id),
            "item_id": place,
        }
        for place, (user, event_id) in enumerate(zip(known[users], known[ids], strict=True))
    ]
    if users == "uint64":
        for event in events:
            event["user_id"] = str(np.array(event["user_id"], np.uint64).view(np.int64))
    file = tmp_path / "events.json"
    file.write_text(json.dumps(events), encoding="utf-8")
    config = OnlineConfig(
        store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None
    )
    with OnlineServer(config) as server, connect_online(server.address) as client:
        result = answered(node(modules, "append", server.address, file))
        now_ts = client.describe().now_ts + 500
        rows = [client.snapshot(user, Projection(), request_ts=now_ts) for user in known[users]]
    assert result["appended"] == 2
    seen = [[event["event_id"] for event in row.thin_row.mutable] for row in rows]
    assert seen == [[event_id] for event_id in known[ids]]
    assert [each["event_id"] for each in result["seen"]] == [[str(one)] for one in known[ids]]
