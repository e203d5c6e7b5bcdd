"""Events with ids of any kind: whole ids count, other kinds are refused, and people read them."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from support.fat_tables import slimmed
from support.id_kinds import EVENT_IDS, event_id_array
from support.worlds import DAY_MS, START_TS, as_of, new_world, shown
from thinrow.cli.history_table import history_table
from thinrow.client import Pointers, Projection, connect
from thinrow.client.logger import mutable_type
from thinrow.client.online import connect_online
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.compaction.compact import compact
from thinrow.compaction.trait_values import digest_fields_of
from thinrow.errors import InputError, RequestError, SchemaError
from thinrow.jobs import fat
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.export import export_events
from thinrow.jobs.thin_rows import mutable_type_of
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from thinrow.schema import parse_schema, read_schema
from thinrow.store.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from support.worlds import World

ITEMS = '[item]\nitem_id = { type = "int64", key = true }\n'
WANTED = Projection(traits=("event_id", "item_id"))
KINDS = ("int64", "uint64", "uuid", "string")


def new(folder: Path, kind: str) -> World:
    return new_world(folder, f'{ITEMS}[event]\nid = "{kind}"\n')


def some_ids(kind: str) -> list[Any]:
    """Some ids in their order, which is not that of the list."""
    return sorted({one for one in EVENT_IDS[kind] if one is not None}, key=in_order)


def in_order(event_id: int | str) -> Any:  # noqa: ANN401
    return event_id.encode() if isinstance(event_id, str) else event_id


def events(ids: Sequence[Any], kind: pa.DataType | None = None, first: int = 0) -> pa.Table:
    """Events of one user and one millisecond, a day."""
    count = len(ids)
    return pa.table(
        {
            "user_id": [1] * count,
            "event_ts": [START_TS + first * DAY_MS] * count,
            "event_id": pa.array(ids, kind),
            "item_id": list(range(count)),
        }
    )


def ids_of(world: World, day: int = 1) -> list[Any]:
    with connect(world.store) as client:
        pointers = Pointers(user_ids=[1], end_ts=[as_of(day)])
        [(_, row)] = shown(client.materialize(pointers, WANTED))
        return list(row["event_id"] or [])


@pytest.mark.parametrize("kind", ["uuid", "string"])
def test_ids_that_share_a_hash_are_two_events(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda *_: 7)
    world, ids = new(tmp_path, kind), some_ids(kind)
    report = world.compact(events(ids[::-1]), 1)
    assert (report.duplicates, report.tied_events) == (0, 0)
    assert ids_of(world) == ids
    again = world.compact(events([*ids[1:], ids[0]], first=0), 2, accept_late=True)
    assert again.duplicates == len(ids)
    assert ids_of(world, 2) == ids


ALIKE: dict[str, Any] = {
    "user_id": [1, 2],
    "request_ts": [START_TS + 1, START_TS + 1],
    "event_ts": [[START_TS], [START_TS]],
    "event_id": [[1], [1]],
    "item_id": [[1], [1]],
    "tags": [[[1, 2]], [[1, 2]]],
}
"""Rows of two users, whose events are alike."""


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "event 1 and the event 1"),
        ({"user_id": [1, 1], "event_id": [["a"], ["b"]]}, "event 'a' and the event 'b'"),
        ({"user_id": [1, 1], "event_id": [[1], [2]]}, "event 1 and the event 2"),
        ({"user_id": [1, 1], "event_id": [[1], [None]]}, f"1 and the event at event_ts {START_TS}"),
        ({"user_id": [1, 1], "event_ts": [[START_TS], [START_TS - 1]]}, "event 1 and the event 1"),
        ({"user_id": [1, 1], "item_id": [[1], [2]]}, "event 1 and the event 1"),
        ({"user_id": [1, 1], "tags": [[[1, 2]], [[1]]]}, "event 1 and the event 1"),
        ({"user_id": [1, 1], "tags": [[[1, 2]], [None]]}, "event 1 and the event 1"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_fat_events_of_one_key_are_an_error_that_names_both(
    tmp_path: Path, columns: dict[str, Any], says: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare within a batch, and pieces that meet in a partition."""
    table = pa.table(ALIKE | columns)
    pq.write_table(table, tmp_path / "fat.parquet", row_group_size=1 if apart else 2)
    monkeypatch.setattr(fat, "PIECE_EVENTS", 1)
    monkeypatch.setattr(fat, "event_keys", lambda events, _: np.full(len(events), 7, np.uint64))
    schema = ITEMS + 'tags = { type = "list<int64>", length_max = 2, sparse = true }\n'
    schema += '[event]\nid = "string"\n' if "'" in says else ""
    with pytest.raises(InputError, match=f"{says} have the same key of 64 bits"):
        slimmed(tmp_path, [tmp_path / "fat.parquet"], schema)


@pytest.mark.server
def test_fat_rows_may_write_uuids_in_other_forms(tmp_path: Path) -> None:
    ids = [one.upper() for one in some_ids("uuid")]
    table = pa.table(
        {
            "user_id": [1, 1],
            "request_ts": [START_TS + DAY_MS, START_TS + 2 * DAY_MS],
            "event_ts": [[START_TS] * 2, [START_TS] * 4],
            "event_id": [ids[:2], ids],
            "item_id": [[1, 2], [1, 2, 3, 4]],
        }
    )
    pq.write_table(table, tmp_path / "fat.parquet")
    schema = f'{ITEMS}[event]\nid = "uuid"\n'
    made = slimmed(tmp_path, [tmp_path / "fat.parquet"], schema)
    assert made.events["event_id"].to_list() == some_ids("uuid")
    made.check()


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    world = new(tmp_path, kind)
    world.compact(events(some_ids(kind), event_id_array([], kind).type), 1)
    files: dict[str, list[tuple[list[Any], pa.DataType, str]]] = {
        "int64": [
            (["a"], pa.string(), 'takes such events with .event. id = "string"'),
            ([1 << 63], pa.uint64(), 'write .event. id = "uint64"'),
        ],
        "uint64": [(["a"], pa.string(), "must be an integer"), ([-1], pa.int64(), "has -1")],
        "uuid": [([1], pa.int64(), "event ids are uuid"), (["x"], pa.string(), "'x' is no UUID")],
        "string": [([1], pa.int64(), "event ids are string"), (["é" * 513], pa.string(), "1026")],
    }
    for ids, column, reason in files[kind]:
        with pytest.raises(InputError, match=f"event_id.*{reason}"):
            world.compact(events(ids, column, first=1), 2)
    other = "string" if kind != "string" else "uint64"
    world.schema.write_text(f'{ITEMS}[event]\nid = "{other}"\n')
    with pytest.raises(SchemaError, match=f"event ids are {other}, and the store's are {kind}"):
        world.compact(events([None], first=1), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_stores_of_int64_are_as_before_and_others_have_a_format_of_their_own(
    tmp_path: Path, kind: str
) -> None:
    world = new(tmp_path, kind)
    world.compact(events(some_ids(kind), event_id_array([], kind).type), 1)
    with Generation.open_current(world.store) as generation:
        assert generation.manifest.format == 4
        assert ("event_ids" in generation.manifest.stored_schema) == (kind != "int64")
        assert generation.schema.event_ids == kind


def test_uuids_are_taken_in_every_form(tmp_path: Path) -> None:
    world, one = new(tmp_path, "uuid"), uuid.UUID(int=1 << 127)
    for number, (value, column) in enumerate(
        ((one.bytes, pa.uuid()), (str(one).upper(), pa.string()), (one.bytes, pa.binary(16)))
    ):
        world.compact(events([value, None], column, first=number), number + 1)
    assert ids_of(world, 3) == [None, str(one), None, None]


def test_a_group_may_have_the_name_of_the_table(tmp_path: Path) -> None:
    schema = parse_schema(f'{ITEMS}[event]\nid = "uuid"\nage = {{ type = "int8", sparse = true }}')
    assert (schema.event_ids, [group.name for group in schema.groups]) == (
        "uuid",
        ["item", "event"],
    )
    with pytest.raises(SchemaError, match=r"event\.id: 'int32' is no kind of event ids"):
        parse_schema(f'{ITEMS}[event]\nid = "int32"')
    world = new_world(tmp_path, f'{ITEMS}[event]\nid = {{ type = "string" }}\n')
    table = events([1]).append_column("id", pa.array(["a"]))
    world.compact(table, 1)
    world.schema.write_text(f'{ITEMS}[event]\nid = "int64"\n')
    with pytest.raises(SchemaError, match="has a trait id in its group event"):
        world.compact(events([1], first=1), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_without_a_schema_proposes_the_kind(tmp_path: Path, kind: str) -> None:
    world = new(tmp_path, kind)
    column = pa.uuid() if kind == "uuid" else event_id_array([], kind).type
    ids = [uuid.UUID(int=1).bytes] if kind == "uuid" else some_ids(kind)
    path = world.write("events.parquet", events(ids, column))
    compact(replace(world.compaction([path], 1), schema=None))
    with Generation.open_current(world.store) as generation:
        assert generation.schema.event_ids == kind


@pytest.mark.parametrize("kind", KINDS)
def test_people_and_tensors_have_the_ids_that_people_know(tmp_path: Path, kind: str) -> None:
    world, ids = new(tmp_path, kind), some_ids(kind)
    path = world.write("events.parquet", events(ids, event_id_array([], kind).type))
    world.compact(pq.read_table(path), 1)
    with connect(world.store) as client:
        answer = client.inspect(1)
        described = client.describe_store()
    known = [one.event_id if kind == "int64" else one.event_id_text for one in answer.events]
    assert known == (ids if kind == "int64" else [str(one) for one in ids])
    table: Any = history_table(1, answer, ["item_id"])[1]
    cells = list(table.columns[1].cells)
    assert [cells[1], cells[2]] == [str(ids[1]), str(ids[2])]
    schema = read_schema(world.schema)
    assert mutable_type(described) == mutable_type_of(schema)
    # Requests before the first generation carry everything with them.
    rows = world.folder / "rows.parquet"
    requests = pa.table({"user_id": [1], "request_ts": [START_TS + 1]})
    backfill(
        BackfillConfig(
            requests=world.write("requests.parquet", requests),
            store=world.store,
            events=[path],
            rows=rows,
        )
    )
    [snapshot] = pq.read_table(rows).column("mutable").to_pylist()
    assert [event["event_id"] for event in snapshot] == ids
    with ThinRowLoader(
        rows, str(world.store), WANTED, LoaderConfig(batch_examples=1, integer_dtype=torch.int32)
    ) as loader:
        [batch] = list(loader)
    values = batch.values["event_id"]
    if kind in ("int64", "uint64"):
        assert values.dtype == torch.int64
        assert values.numpy().view(kind).tolist() == ids
    else:
        assert [batch.strings["event_id"][code] for code in values.tolist()] == ids


@pytest.mark.parametrize("kind", ["uint64", "uuid", "string"])
def test_the_word_of_an_id_in_digests_is_documented(kind: str) -> None:
    schema = parse_schema(f'{ITEMS}[event]\nid = "{kind}"\n')
    ids = some_ids(kind)
    frame = pl.DataFrame({"visible_ts": [5] * len(ids), "event_ts": [5] * len(ids)})
    column = pl.Series("event_id", ids, pl.UInt64 if kind == "uint64" else pl.String)
    *_, present, words = digest_fields_of(frame.with_columns(column), schema.event_id, ())
    expected = [
        one if isinstance(one, int) else xxhash.xxh3_64_intdigest(one.encode()) for one in ids
    ]
    assert (present.tolist(), words.tolist()) == ([1] * len(ids), expected)


@pytest.mark.server
@pytest.mark.parametrize("kind", ["uint64", "uuid", "string"])
def test_online_ids_count_once_and_are_exported(tmp_path: Path, kind: str) -> None:
    world, ids = new(tmp_path, kind), some_ids(kind)
    now = [START_TS]
    config = OnlineConfig(
        store=world.store,
        schema=world.schema,
        listen="127.0.0.1:0",
        metrics=None,
        commit_lead_ms=0,
        wall=lambda: now[0],
    )
    wrong = {"uint64": "a", "uuid": "a", "string": "é" * 513}[kind]
    with OnlineServer(config) as server, connect_online(server.address) as client:
        many = [*ids[::-1], None]
        traits = {"item_id": np.arange(len(many))}
        client.append([1] * len(many), [START_TS] * len(many), traits, many)
        again = [one.upper() if kind == "uuid" else one for one in ids]
        traits = {"item_id": np.arange(len(ids))}
        answer = client.append([1] * len(ids), [START_TS] * len(ids), traits, again)
        assert (answer.appended, answer.duplicates) == (0, len(ids))
        with pytest.raises((RequestError, InputError), match=r"UUID|1026|event_id"):
            client.append([1], [START_TS], {"item_id": [1]}, [wrong])
        now[0] += 1000
        seen = client.snapshot(1, WANTED)
        assert seen.batch.to_lists("event_id") == [[None, *ids]]
        watermark_ts = client.describe().now_ts
        path = world.folder / "export.parquet"
        export_events(client, watermark_ts, path)
    exported = pq.read_table(path).column("event_id")
    assert sorted(filter(None, exported.to_pylist()), key=in_order) == list(filter(None, ids))
    assert exported.type in (pa.uint64(), pa.string(), pa.large_string())
    report = compact(replace(world.compaction([path], 0), watermark_ts=watermark_ts))
    assert report.events_added == len(many)
    with connect(world.store) as local:
        pointers = Pointers(user_ids=[1], end_ts=[watermark_ts])
        assert [row["event_id"] for _, row in shown(local.materialize(pointers, WANTED))] == [
            [None, *ids]
        ]
