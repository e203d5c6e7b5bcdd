"""Users of any kind of id: collisions, other kinds, and the values that other languages need."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from support.worlds import DAY_MS, START_TS, as_of, new_world, shown
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.compaction.compact import compact
from thinrow.errors import InputError, RequestError, SchemaError, UsageError
from thinrow.filling.config import FillConfig
from thinrow.filling.fill import fill
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from thinrow.store import user_texts
from thinrow.store.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from support.worlds import World

ITEMS = '[item]\nitem_id = { type = "int64", key = true }\n'
WANTED = Projection(traits=("item_id",))


def new(folder: Path, kind: str) -> World:
    return new_world(folder, f'{ITEMS}[user]\nid = "{kind}"\n')


def events(users: Sequence[Any], kind: pa.DataType | None = None, first: int = 0) -> pa.Table:
    count = len(users)
    return pa.table(
        {
            "user_id": pa.array(users, kind),
            "event_ts": [START_TS + first * DAY_MS + n for n in range(count)],
            "item_id": [100 * first + n for n in range(count)],
        }
    )


def items(world: World, users: Sequence[Any], day: int = 1) -> list[Any]:
    """Status and items of some users, from the store in this process."""
    with connect(world.store, ClientConfig(examples_per_request=3)) as client:
        pointers = Pointers(user_ids=list(users), end_ts=[as_of(day)] * len(users))
        return [
            (status, row["item_id"]) for status, row in shown(client.materialize(pointers, WANTED))
        ]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys by the first letter alone."""
    whole = user_texts.text_hash

    def narrowed(text: bytes, seed: int = 0) -> int:
        return whole(text, seed) if seed else whole(text[:1])

    monkeypatch.setattr(user_texts, "text_hash", narrowed)


@pytest.mark.usefixtures("narrow")
def test_two_users_of_one_key_are_an_error_that_names_both(tmp_path: Path) -> None:
    world = new(tmp_path, "string")
    with pytest.raises(InputError, match="users 'ab' and 'ac' have the same key"):
        world.compact(events(["ab", "b", "ac"]), 1)
    assert not (world.store / "CURRENT").exists()
    world.compact(events(["ab", "b"]), 1)
    for again in (["ac"], ["ab", "ac"]):
        with pytest.raises(InputError, match="users 'ab' and 'ac' have the same key"):
            world.compact(events(again, first=1), 2)
    gone = world.folder / "gone.txt"
    gone.write_text("ac\n")
    with pytest.raises(InputError, match="users 'ab' and 'ac' have the same key"):
        world.compact(events(["b"], first=1), 2, erase_users=gone)
    assert items(world, ["ab", "ac", "b", "ad", "ab"]) == [
        (1, [0]),
        (1, []),
        (1, [1]),
        (1, []),
        (1, [0]),
    ]
    with connect(world.store) as client:
        assert client.inspect("ac").event_count == 0
        assert client.inspect("ab").event_count == 1


@pytest.mark.usefixtures("narrow")
def test_a_past_request_never_gets_the_history_of_another_user(tmp_path: Path) -> None:
    world = new(tmp_path, "string")
    first = world.write("events.parquet", events(["ab", "b"]))
    world.compact(events(["ab", "b"]), 1)
    requested = pa.table({"user_id": ["ac", "ab"], "request_ts": [as_of(1) + 5] * 2})
    config = BackfillConfig(
        requests=world.write("requests.parquet", requested),
        store=world.store,
        events=[first],
        rows=world.folder / "rows.parquet",
    )
    backfill(config)
    with Generation.open_current(world.store) as generation:
        empty, whole = user_texts.look_up_keys(generation, ["ac", "ab"]).tolist()
    assert empty != whole


def test_an_erased_text_is_gone_and_its_pointers_say_so(tmp_path: Path) -> None:
    world = new(tmp_path, "string")
    world.compact(events(["a", "b c", "b c"]), 1)
    gone = world.folder / "gone.txt"
    gone.write_text("b c\nnever there\n")
    report = world.compact(events(["a"], first=1), 2, erase_users=gone)
    assert report.erased_users == 2
    assert items(world, ["a", "b c", "never there"]) == [(1, [0]), (5, None), (5, None)]
    with Generation.open_current(world.store) as generation:
        keys = user_texts.text_keys([b"a", b"b c", b"never there"], 3)
        assert user_texts.known_texts(generation, keys) == [b"a", None, None]
    world.compact(events(["b c"], first=2), 3)
    assert items(world, ["b c"], day=3) == [(1, [200])]


def test_uuids_are_taken_in_every_form(tmp_path: Path) -> None:
    world = new(tmp_path, "uuid")
    one, two = uuid.UUID(int=7), uuid.UUID(int=1 << 127)
    world.compact(events([one.bytes, two.bytes], pa.uuid()), 1)
    world.compact(events([str(one).upper(), two.hex], pa.string(), first=1), 2)
    world.compact(events([one.bytes, two.bytes], pa.binary(16), first=2), 3)
    requested = [one, str(two), str(one).upper()]
    assert items(world, requested, day=3) == [
        (1, [0, 100, 200]),
        (1, [1, 101, 201]),
        (1, [0, 100, 200]),
    ]
    with pytest.raises(RequestError, match="'x' is no UUID, which user ids are here"):
        items(world, ["x"])
    with pytest.raises(InputError, match="user_id: 'x' is no UUID"):
        world.compact(events(["x"], first=3), 4)


@pytest.mark.parametrize("kind", ["int64", "uint64", "uuid", "string"])
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    world = new(tmp_path, kind)
    own: dict[str, Any] = {"uuid": [str(uuid.UUID(int=1))], "string": ["a"]}
    world.compact(events(own.get(kind, [1])), 1)
    files: dict[str, list[Any]] = {
        "int64": [["a"], [1 << 63]],
        "uint64": [["a"], [-1]],
        "uuid": [[1]],
        "string": [[1]],
    }
    for users in files[kind]:
        column = pa.uint64() if users == [1 << 63] else None
        with pytest.raises(InputError, match="user_id"):
            world.compact(events(users, column, first=1), 2)
        # Every way to the store has the same words.
        with pytest.raises(RequestError, match=f"users of this store are {kind}"):
            items(world, users)
        serving = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
        with Server(serving) as server, connect(server.address) as client:
            pointers = Pointers(user_ids=users, end_ts=[as_of(1)])
            with pytest.raises(RequestError, match=f"users of this store are {kind}"):
                client.materialize(pointers, WANTED)
    other = "string" if kind != "string" else "uint64"
    world.schema.write_text(f'{ITEMS}[user]\nid = "{other}"\n')
    with pytest.raises(SchemaError, match=f"user ids are {other}, and the store's are {kind}"):
        world.compact(events(own.get(kind, [1]), first=1), 2)


def test_a_schema_names_the_kind_and_may_have_a_group_of_users(tmp_path: Path) -> None:
    world = new_world(
        tmp_path, f'{ITEMS}[user]\nid = "uint64"\nage = {{ type = "int8", sparse = true }}\n'
    )
    world.compact(events([1 << 63], pa.uint64()), 1)
    with Generation.open_current(world.store) as generation:
        assert generation.schema.user_ids == "uint64"
        assert [group.name for group in generation.schema.groups] == ["item", "user"]
        assert generation.manifest.format == 4
    with pytest.raises(SchemaError, match="'int32' is no kind of user ids; use one of int64, uint"):
        new_world(tmp_path / "other", '[user]\nid = "int32"\n').compact(events([1]), 1)


def test_a_log_without_a_schema_proposes_the_kind(tmp_path: Path) -> None:
    for number, (users, kind) in enumerate(
        (([5], "int64"), (["a"], "string"), (pa.array([5], pa.uint64()), "uint64"))
    ):
        world = new_world(tmp_path / str(number))
        path = world.write("events.parquet", events(users))
        compact(replace(world.compaction([path], 1), schema=None))
        with Generation.open_current(world.store) as generation:
            assert generation.schema.user_ids == kind


def test_ids_have_a_limit(tmp_path: Path) -> None:
    world = new(tmp_path, "string")
    world.compact(events(["é" * 512]), 1)
    assert items(world, ["é" * 512]) == [(1, [0])]
    with pytest.raises(UsageError, match="has 1025 bytes; at most 1024 are supported"):
        world.compact(events(["é" * 512 + "a"], first=1), 2)


def test_the_key_of_a_text_is_documented() -> None:
    keys = user_texts.text_keys([b"", "é".encode(), b"user-1"], 3).view(np.uint64).tolist()
    assert keys == [xxhash.xxh3_64_intdigest(text) for text in (b"", "é".encode(), b"user-1")]


def fill_of(world: World, users: Sequence[Any], ids: Sequence[int], shops: Sequence[str]) -> Any:  # noqa: ANN401
    """Gives events of some users a shop, by event_id."""
    schema = world.folder / "filled.toml"
    extra = '[extra]\nshop = { type = "string", sparse = true }\n'
    schema.write_text(world.schema.read_text() + extra)
    table = pa.table({"user_id": users, "event_id": ids, "shop": shops})
    values = world.write("values.parquet", table)
    return fill(FillConfig(group="extra", values=values, store=world.store, schema=schema))


@pytest.mark.usefixtures("narrow")
def test_a_fill_names_users_and_never_mixes_two_of_one_key(tmp_path: Path) -> None:
    world = new(tmp_path, "string")
    known = events(["ab", "b", "é\0"])
    world.compact(known.append_column("event_id", pa.array([1, 2, 3])), 1)
    both = "users 'ab' and 'ac' have the same key"
    with pytest.raises(InputError, match=both):
        fill_of(world, ["ac", "b"], [1, 2], ["x", "y"])
    with pytest.raises(InputError, match="users 'xa' and 'xb' have the same key"):
        fill_of(world, ["xa", "xb", "b"], [1, 1, 2], ["x", "y", "y"])
    with pytest.raises(InputError, match="user_id 'b', event_id 2 have different values of shop"):
        fill_of(world, ["b", "b"], [2, 2], ["x", "y"])
    report = fill_of(world, ["ab", "é\0", "nobody"], [1, 3, 4], ["x", "y", "z"])
    assert (report.record.events, report.record.rows_unmatched) == (2, 1)
    assert report.shown_rows == [{"user_id": "nobody", "event_id": 4}]
    assert report.shown_events == [{"user_id": "b", "event_id": 2}]
    with connect(world.store) as client:
        pointers = Pointers(user_ids=["ab", "b", "é\0", "ac"], end_ts=[as_of(1)] * 4)
        batch = client.materialize(pointers, Projection(traits=("shop",)))
        assert batch.to_lists("shop") == [["x"], [None], ["y"], []]


def test_a_fill_shows_unsigned_users_as_they_are(tmp_path: Path) -> None:
    world = new(tmp_path, "uint64")
    known = events([1 << 63], pa.uint64())
    world.compact(known.append_column("event_id", pa.array([1])), 1)
    with pytest.raises(UsageError, match="one row has user_id 18446744073709551615, event_id 1"):
        fill_of(world, pa.array([(1 << 64) - 1], pa.uint64()), [1], ["x"])
