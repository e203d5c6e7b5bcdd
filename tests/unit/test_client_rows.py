"""Reading thin rows: what a file says is what the client gets, whatever the file's shape."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.row_tables import UIH, table, to_python
from thinrow.client import ThinRows, read_thin_rows, row_count
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("examples", "row_group"), [(4, 100), (7, 5), (50, 3), (40, 40)])
def test_rows_come_in_file_order(
    tmp_path: Path, large: bool, examples: int, row_group: int
) -> None:
    path = tmp_path / "rows.parquet"
    source = table(40, large=large)
    pq.write_table(source, path, row_group_size=row_group)
    assert row_count(path) == 40
    start = 0
    for rows, others in read_thin_rows(path, examples=examples):
        assert isinstance(rows, ThinRows)
        assert len(rows) == min(examples, 40 - start)
        part = source.slice(start, len(rows))
        assert others.equals(part.select(["label", "user_id", "request_ts"]))
        assert rows.pointers.user_ids.tolist() == part["user_id"].to_pylist()
        assert rows.pointers.request_ts.tolist() == part["request_ts"].to_pylist()
        for place, pointer in enumerate(part["uih"].to_pylist()):
            assert rows.pointers.start_ts[place] == pointer["start_ts"]
            assert rows.pointers.end_ts[place] == pointer["end_ts"]
            assert rows.pointers.max_lengths[place] == pointer["max_length"]
            assert rows.pointers.digests[place] == pointer["digest"]
        want = part["mutable"].to_pylist()
        for snapshot in want:
            for row in snapshot or ():
                row["arrival_ts"] = row["arrival_ts"] or row["event_ts"]
        assert rows.mutable is not None
        assert to_python(rows.mutable) == [snapshot or [] for snapshot in want]
        start += len(rows)
    assert start == 40


def test_a_file_without_arrival_takes_the_event_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    source = table(8)
    bare = pa.list_(pa.struct([("event_ts", pa.int64())]))
    snapshots = [[{"event_ts": 5}, {"event_ts": 6}], *[[]] * 7]
    pq.write_table(
        source.drop_columns(["mutable"]).append_column("mutable", pa.array(snapshots, bare)), path
    )
    ((rows, _),) = read_thin_rows(path, examples=8)
    assert rows.mutable is not None
    assert rows.mutable.arrival_ts.tolist() == [5, 6]


def test_texts_may_be_stored_as_a_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    titles = pa.array(["a", None, "a"]).dictionary_encode()
    events = pa.StructArray.from_arrays([pa.array([1, 2, 3]), titles], ["event_ts", "title"])
    snapshots = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), events)
    pq.write_table(table(2).drop_columns(["mutable"]).append_column("mutable", snapshots), path)
    ((rows, _),) = read_thin_rows(path, examples=2)
    assert rows.mutable is not None
    titled = [[row["title"] for row in snapshot] for snapshot in to_python(rows.mutable)]
    assert titled == [["a"], [None, "a"]]


@pytest.mark.parametrize(
    ("column", "array", "message"),
    [
        ("user_id", None, "no column user_id"),
        ("mutable", None, "no column mutable"),
        ("user_id", pa.array([1.5, 2.5]), "column user_id is double"),
        ("user_id", pa.array([1, None]), "column user_id must not be null"),
        ("uih", pa.array([1, 2]), "column uih is int64"),
        ("uih", pa.array([{"start_ts": 1}] * 2), "no column uih.end_ts"),
        ("uih", pa.array([None, {"end_ts": 1}], UIH), "column uih.start_ts must not be null"),
        ("mutable", pa.array([[1], [2]]), "column mutable is list"),
        ("mutable", pa.array([[{"a": 1}], []]), "no column mutable.event_ts"),
        ("mutable", pa.array([[{"event_ts": 1}, None], []]), "mutable.event_ts must not be null"),
    ],
)
def test_what_is_no_thin_row_is_named(
    tmp_path: Path, column: str, array: pa.Array | None, message: str
) -> None:
    path = tmp_path / "rows.parquet"
    source = table(2).drop_columns([column])
    pq.write_table(source if array is None else source.append_column(column, array), path)
    with pytest.raises(InputError, match=message) as caught:
        list(read_thin_rows(path, examples=2))
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_or_no_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for _ in range(2):
        with pytest.raises(InputError, match=r"rows\.parquet"):
            list(read_thin_rows(path, examples=2))
        with pytest.raises(InputError, match=r"rows\.parquet"):
            row_count(path)
        path.write_bytes(b"nonsense, and enough of it to hold a footer")


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'thinrow\[torch\]'"):
        row_count(tmp_path / "rows.parquet")
