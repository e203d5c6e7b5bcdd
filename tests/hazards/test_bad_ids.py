"""Ids and texts that no store can hold are refused in one sentence, before anything is written."""

from __future__ import annotations

import re
import sys
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.worlds import START_TS, as_of, new_world
from thinrow.cli.app import app
from thinrow.client import Pointers, Projection, connect, read_thin_rows
from thinrow.client.online import connect_online
from thinrow.core.files.user_columns import user_words
from thinrow.core.ids import canonical_text
from thinrow.errors import InputError
from thinrow.online.config import OnlineConfig
from thinrow.online.server import OnlineServer
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from support.worlds import World

SCHEMA = """
[user]
id = "{user}"
[event]
id = "{event}"
[item]
name = {{ type = "string", sparse = true }}
names = {{ type = "list<string>", length_max = 4, sparse = true }}
brand = {{ type = "string", sparse = true, codes = "vocabulary" }}
"""
WANTED = Projection(traits=("event_id", "name"))
HALF = "\ud800"
"""Half of a surrogate pair, which UTF-8 cannot hold; arguments with other bytes have such."""


def new(folder: Path, user: str = "string", event: str = "string") -> World:
    return new_world(folder, SCHEMA.format(user=user, event=event))


def no_utf8(kind: pa.DataType) -> pa.Array:
    """Two texts, of which the second has bytes that Arrow takes unseen, as files have them."""
    ends = pa.py_buffer(np.array([0, 1, 2], np.int32))
    texts = pa.StringArray.from_buffers(2, ends, pa.py_buffer(b"a\xff"))
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts)
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), texts)
    return texts.cast(kind)


TEXTS = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))


@pytest.mark.parametrize("name", ["user_id", "event_id", "name", "names", "brand"])
def test_texts_of_files_are_utf8(tmp_path: Path, name: str) -> None:
    world = new(tmp_path)
    given: dict[str, Any] = {"user_id": ["a", "b"], "event_ts": [START_TS] * 2}
    for kind in (pa.list_(pa.string()),) if name == "names" else TEXTS:
        bad = pa.table(given | {name: no_utf8(kind)})
        with pytest.raises(InputError, match=rf"events-1.parquet: {name}.* bytes that are no UTF-"):
            world.compact(bad, 1)
    assert not (world.store / "CURRENT").exists()


def thin_rows(users: pa.Array | list[str], names: pa.Array) -> pa.Table:
    """Two thin rows of an event each, with its name."""
    uih = pa.array([{"start_ts": 0, "end_ts": 1, "max_length": 0, "digest": 0}] * 2)
    fields = [pa.array([1, 1]), pa.array([1, 1]), names]
    events = pa.StructArray.from_arrays(fields, ["event_ts", "arrival_ts", "name"])
    mutable = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), events)
    table = {"user_id": users, "request_ts": [9, 9], "uih": uih, "mutable": mutable}
    return pa.table(table)


@pytest.mark.parametrize("name", ["user_id", "mutable.name", "mutable.name[]"])
def test_texts_of_thin_rows_are_utf8(tmp_path: Path, name: str) -> None:
    lists = name.endswith("[]")
    for kind in (pa.list_(pa.string()),) if lists else TEXTS:
        bad = no_utf8(kind)
        is_user = name == "user_id"
        users, names = (bad, pa.array(["a", "b"])) if is_user else (["a", "b"], bad)
        path = new(tmp_path).write("rows.parquet", thin_rows(users, names))
        refused = re.escape(f"rows.parquet: {name} has bytes that are no UTF-8 (Invalid")
        with pytest.raises(InputError, match=refused):
            list(read_thin_rows(path, examples=8))
        if not lists:
            with pytest.raises(InputError, match="user_id has bytes that are no UTF-8"):
                user_words(bad)


def test_texts_of_thin_rows_are_validated_once(tmp_path: Path) -> None:
    """The conversion to Python's texts validates them: nothing else reads every text before."""
    rows = thin_rows(["a", "b"], pa.array(["a", None]))
    path = new(tmp_path).write("rows.parquet", rows)
    called: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        read = list(read_thin_rows(path, examples=8))
        words = user_words(rows["user_id"], path)
    finally:
        sys.setprofile(None)
    assert len(read) == 1 and len(words) == 2
    assert "to_mutable" in called and "user_words" in called
    assert "refuse_bad_utf8" not in called


@pytest.mark.server
def test_half_a_surrogate_pair_is_refused_by_name(tmp_path: Path) -> None:
    world = new(tmp_path)
    world.compact(pa.table({"user_id": ["a"], "event_ts": [START_TS]}), 1)
    words = r"has '\\ud800', which UTF-8 cannot hold"
    with pytest.raises(InputError, match=f"user_ids {words}"):
        Pointers(user_ids=[HALF], end_ts=[as_of(1)])
    with connect(world.store) as client:
        with pytest.raises(InputError, match=f"user_id {words}"):
            client.inspect(HALF)
        with pytest.raises(InputError, match=f"values {words}"):
            client.codes("brand", [HALF])
    given = ["inspect", "--server", str(world.store), "--user", "\udcff"]
    result = CliRunner().invoke(app, given, env={"COLUMNS": "300"})
    assert result.exit_code == 2 and "which UTF-8 cannot hold" in " ".join(result.stderr.split())
    config = OnlineConfig(
        store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None
    )
    with OnlineServer(config) as server, connect_online(server.address) as online:
        for refused in (
            lambda: online.append([HALF], [START_TS], {}),
            lambda: online.snapshot(HALF, WANTED),
            lambda: online.snapshot_batch([HALF], WANTED),
        ):
            with pytest.raises(InputError, match=f"user_ids {words}"):
                refused()


@pytest.mark.server
def test_ids_come_as_pythons_uuids_and_numpys_integers(tmp_path: Path) -> None:
    """Lists hold them as well as arrays do."""
    world = new(tmp_path, "uint64", "uuid")
    config = OnlineConfig(
        store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None
    )
    large: Any = np.uint64(2**63 + 5)
    event = uuid.UUID(int=2**127 + 1)
    with OnlineServer(config) as server, connect_online(server.address) as online:
        given: list[Any] = [[event, None], np.array([event, None], object), [str(event), None]]
        appended = [online.append([large, 7], [START_TS] * 2, {}, ids) for ids in given]
        assert [(one.appended, one.duplicates) for one in appended] == [(2, 0), (1, 1), (1, 1)]
        request_ts = appended[-1].arrival_ts + 1
        [row] = online.snapshot_batch([large], WANTED, request_ts=request_ts).thin_rows
        assert row == online.snapshot(large, WANTED, request_ts=request_ts).thin_row
        assert (row.user_id, row.mutable[0]["event_id"]) == (2**63 + 5, str(event))
    given_users = Pointers(user_ids=[large, 7], end_ts=[1, 1])
    assert given_users.user_ids.tolist() == [2**63 + 5 - 2**64, 7]
    with pytest.raises(InputError, match="has True"):
        Pointers(user_ids=[2**63, True], end_ts=[1, 1])


UUIDS = [uuid.UUID(int=5), uuid.UUID(int=2**127)]
STORED = pa.array([one.bytes for one in UUIDS], pa.binary(16))
ARROW_UUIDS = pa.ExtensionArray.from_storage(pa.uuid(), STORED)


def test_arrays_of_uuids_name_users() -> None:
    forms: list[Any] = [ARROW_UUIDS, pa.chunked_array([ARROW_UUIDS]), pd.Series(UUIDS)]
    for users in (*forms, tuple(UUIDS)):
        given = Pointers(user_ids=users, end_ts=[1, 1])
        assert [given.user(example) for example in range(2)] == list(map(str, UUIDS))


BOOLS: dict[str, Any] = {
    "bool": [True, 2],
    "NumPy's bool": [np.True_, 2],
    "only NumPy's": [np.True_, np.False_],
    "array": np.array([True, False]),
    "array of objects": np.array([True, 2], object),
    "pyarrow": pa.array([True, False]),
    "chunks": pa.chunked_array([[True], [False]]),
    "polars": pl.Series([True, False]),
    "pandas": pd.Series([True, False]),
    "pandas with gaps": pd.Series([True, False], dtype="boolean"),
    "among large ones": [2**63, np.True_],
}


@pytest.mark.parametrize("case", BOOLS)
def test_bools_name_no_user(case: str) -> None:
    """Elsewhere they are the integers 0 and 1, and would be other users."""
    with pytest.raises(InputError, match=r"user_ids must be .*(True|mask of bools)"):
        Pointers(user_ids=BOOLS[case], end_ts=[1, 1])


def test_bytes_and_times_name_no_user() -> None:
    forms: list[Any] = [STORED, STORED.to_pylist(), np.array(STORED.to_pylist(), "O")]
    for users in forms:
        with pytest.raises(InputError, match=r"user_ids has bytes; give UUIDs as uuid.UUID"):
            Pointers(user_ids=users, end_ts=[1, 1])
    with pytest.raises(InputError, match=r"user_ids must be .* datetime64"):
        Pointers(user_ids=np.array([1, 2], "M8[ms]"), end_ts=[1, 1])


@pytest.mark.server
def test_bools_name_nothing_online(tmp_path: Path) -> None:
    world = new(tmp_path, "int64", "int64")
    world.compact(pa.table({"user_id": [1], "event_ts": [START_TS]}), 1)
    config = OnlineConfig(
        store=world.store, schema=world.schema, listen="127.0.0.1:0", metrics=None
    )
    with (
        OnlineServer(config) as server,
        connect_online(server.address) as online,
        connect(world.store) as client,
    ):
        masked = np.ma.masked_array([True, False], [False, True])
        ids = BOOLS | {"nulls": [True, None], "masked": masked}
        for given in ids.values():
            with pytest.raises(InputError, match="event_id"):
                online.append([1, 1], [START_TS] * 2, {}, given)
        wrong: list[Any] = [True, np.True_, 1.0]
        for user in wrong:
            with pytest.raises(InputError, match="user_ids must be"):
                online.snapshot(user, WANTED)
            with pytest.raises(InputError, match="user_id must be"):
                client.inspect(user)
        one: Any = np.int64(1)
        assert online.snapshot(one, WANTED).thin_row.user_id == 1
        assert client.inspect(one).event_count == 1


@pytest.mark.parametrize(
    "text", ["1_" * 15 + "11", "0x" + "1" * 30, "+" + "1" * 31, " " + "1" * 31, "\u0661" * 32]
)
def test_a_uuid_has_hexadecimal_digits(text: str) -> None:
    """Python reads these as UUIDs: an id that is none would be another user's."""
    uuid.UUID(text)
    with pytest.raises(InputError, match="is no UUID, which user ids are here"):
        canonical_text(text, "uuid")


def test_a_uuid_has_every_usual_form() -> None:
    known = uuid.UUID(int=2**127 + 0xABC)
    for text in (str(known).upper(), known.hex, f"{{{known}}}", known.urn):
        assert canonical_text(text, "uuid") == str(known)
