"""Files as people have them: folders, partitions, globs, URLs, Arrow's many layouts, odd names."""

# ruff: noqa: ANN401 - values of any type

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from support import worlds
from thinrow.client import MutableEvents, Projection, ThinRows, read_thin_rows, row_count
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.client.torch.batching import to_arrays
from thinrow.core.files.arrow import conformed, one_batch, plain, plain_type
from thinrow.core.files.message import decode_thin_rows, encode_thin_rows, split_thin_rows
from thinrow.core.files.paths import data_files
from thinrow.errors import InputError


def write(path: Path, first: int = 0, rows: int = 1, **columns: Any) -> Path:
    """Writes thin rows whose users are numbered from `first`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(thin_rows(first, rows, **columns), path)
    return path


def thin_rows(first: int = 0, rows: int = 1, **columns: Any) -> pa.Table:
    uih = {"start_ts": 0, "end_ts": 5, "max_length": 0, "digest": 0}
    event = {"event_ts": 5, "arrival_ts": 6, "event_id": None, "brand": "x"}
    return pa.table(
        {
            "user_id": pa.array(range(first, first + rows), pa.int64()),
            "request_ts": pa.array([9] * rows, pa.int64()),
            **columns,
            "uih": [uih] * rows,
            "mutable": [[event]] * rows,
        }
    )


def users(paths: Any) -> list[int]:
    return [u for rows, _ in read_thin_rows(paths, examples=9) for u in rows.pointers.user_ids]


def loaded(paths: Any, columns: tuple[str, ...] | None = None) -> dict[str, list[Any]]:
    chunks = RowFiles(paths, order="files").source(columns=columns).chunks(100)
    table = pa.concat_tables([chunk.columns for chunk in chunks])
    return {name: table[name].to_pylist() for name in table.column_names}


def test_folders_are_read_as_spark_and_duckdb_read_them(tmp_path: Path) -> None:
    write(tmp_path / "beside.parquet", 0)
    write(tmp_path / "dt=2024-01-02/part-0.snappy.parquet", 1)
    write(tmp_path / "dt=2024-01-03/hour=7/part-0.parq", 2)
    write(tmp_path / "days.parquet/part-0.parquet", 3)
    write(tmp_path / "_n=1/part-0.parquet", 4)
    for ignored in ("_SUCCESS", "._beside.parquet", ".part.parquet.crc", "notes.txt"):
        (tmp_path / ignored).write_bytes(b"nonsense")
    for folder in ("_temporary/0", ".hive-staging", "dt=2024-01-03/_temporary"):
        write(tmp_path / folder / "part-0.parquet", 9)
    assert users(tmp_path) == [4, 0, 3, 1, 2]
    assert row_count(tmp_path) == len(RowFiles(tmp_path)) == 5
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/all", recursive=True)
    try:
        for url in ("memory://all", "memory://all/", f"file://{tmp_path}"):
            assert users(url) == [4, 0, 3, 1, 2]
            assert [file.keys for file in data_files(url)] == [
                file.keys for file in data_files(tmp_path)
            ]
        assert users("memory://all/dt=*") == users("memory://all/dt=*/**") == [1, 2]
    finally:
        memory.rm("/all", recursive=True)


def test_keys_of_folders_are_columns(tmp_path: Path) -> None:
    write(tmp_path / "dt=2024-01-02/n=01/p.parquet", 1, n=pa.array([5]))
    write(tmp_path / "dt=2024-01-03/n=__HIVE_DEFAULT_PARTITION__/p.parquet", 2, n=pa.array([6]))
    for given in (tmp_path, tmp_path / "dt=*", tmp_path / "*/*/*.parquet"):
        found = loaded(given)
        assert found["dt"] == [date(2024, 1, 2), date(2024, 1, 3)]
        assert found["n"] == [1, None], "a folder's key hides the file's column"
    assert loaded(tmp_path / "dt=2024-01-02")["n"] == [1]
    assert "dt" not in loaded(tmp_path / "dt=2024-01-02")
    [(_, table)] = read_thin_rows(tmp_path / "dt=2024-01-02", examples=2)
    assert table["n"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("1", "-20"), [1, -20]),
        (("1", "x"), ["1", "x"]),
        (("2024-01-02", "2024-13-02"), ["2024-01-02", "2024-13-02"]),
        (("a%2Fb", "%C3%A9"), ["a/b", "é"]),
        (("2026-11-23T07", "2026-11-23T08"), ["2026-11-23T07", "2026-11-23T08"]),
        (("99999999999999999999", "1"), ["99999999999999999999", "1"]),
    ],
)
def test_keys_have_the_type_that_all_values_have(
    tmp_path: Path, texts: tuple[str, ...], expected: list[object]
) -> None:
    for text in texts:
        write(tmp_path / f"k={text}/p.parquet")
    assert sorted(map(str, loaded(tmp_path)["k"])) == sorted(map(str, expected))


def test_what_may_be_forgotten_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/a.csv").touch()
    write(tmp_path / "trino/20240101_000_abc")
    write(tmp_path / "trino/part.parquet", 1)
    for given, message in (
        ("empty", "empty has no *.parquet files; name"),
        ("csv", "but .*/csv/a.csv"),
        ("trino", "without an extension: .*20240101_000_abc; .*trino/[*]"),
        ("none", "There is no file .*none"),
        ("none/*.parquet", "No file matches"),
    ):
        with pytest.raises(InputError, match=message.replace("no *.", r"no \*\.")):
            data_files(tmp_path / given)
        with pytest.raises(InputError):
            data_files(f"file://{tmp_path / given}")
    assert users(tmp_path / "trino/*") == [0, 1]


def test_globs_and_names_with_special_characters(tmp_path: Path) -> None:
    for number, name in enumerate(("a1.parquet", "a2.parquet", "b/c1.parquet", "b/d/e.parquet")):
        write(tmp_path / name, number)
    for pattern, expected in (
        ("a?.parquet", [0, 1]),
        ("a[2-9].parquet", [1]),
        ("**/*.parquet", [0, 1, 2, 3]),
        ("**", [0, 1, 2, 3]),
        ("b/*", [2, 3]),
        ("*", [0, 1, 2, 3]),
    ):
        assert users(tmp_path / pattern) == expected, pattern
    for name in ("odd[1].parquet", "star*.parquet", "what?.parquet", "a b#c%20é.parquet", "k=v.pq"):
        write(tmp_path / "odd" / name, 7)
        assert users(tmp_path / "odd" / name) == [7]
    assert users(tmp_path / "odd") == [7] * 5
    assert users([tmp_path / "a1.parquet", tmp_path / "b", tmp_path / "a*"]) == [0, 1, 2, 3]
    link = tmp_path / "b/loop"
    link.symlink_to(tmp_path)
    assert sorted(users(tmp_path / "b")) == [0, 1, 2, 3, 7, 7, 7, 7, 7]


def test_a_file_of_several_names_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data/dt=1/a.parquet", 0, 2)
    (tmp_path / "data/link.parquet").symlink_to(tmp_path / "data/dt=1/a.parquet")
    (tmp_path / "other").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for names in (
        ["data"],
        ["data", tmp_path / "data"],
        [f"file://{tmp_path}/data", "data/../data"],
        ["data/dt=1/a.parquet", "other"],
        ["data/*", "other/**/*.parquet"],
    ):
        assert loaded(names)["dt"] == [1, 1], names
        assert users(names) == [0, 1]
    for nothing in ("", [""], ["data", ""]):
        with pytest.raises(InputError, match="name is empty"):
            users(nothing)


NAMES = ("geo.country", "geo", "a b", "a/b", "é", "user_id.raw", "uih.end_ts", "mutable.list")


def test_columns_may_have_any_name(tmp_path: Path) -> None:
    columns = {name: pa.array([number]) for number, name in enumerate(NAMES)}
    path = write(tmp_path / "rows.parquet", 1, **columns)
    expected = {name: [number] for number, name in enumerate(NAMES)}
    assert expected.items() <= loaded(path).items()
    for name in NAMES:
        assert loaded(path, (name,)) == {"user_id": [1], "request_ts": [9], name: expected[name]}
    nested = pa.table({"geo": [{"country": "de"}], "geo.country": ["fr"]})
    path = write(
        tmp_path / "rows.parquet", 1, **dict(zip(nested.column_names, nested, strict=True))
    )
    assert loaded(path, ("geo.country",))["geo.country"] == ["fr"]
    assert loaded(path, ("geo",))["geo"] == [{"country": "de"}]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = thin_rows()
    table = pa.Table.from_arrays([*table.columns, table["user_id"]], [*table.column_names, "uih"])
    pq.write_table(table, tmp_path / "rows.parquet")
    for read in (users, row_count, RowFiles):
        with pytest.raises(InputError, match="two columns named 'uih'"):
            read(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="two columns named 'uih'"):
        encode_thin_rows(table)


LAYOUTS = [
    pa.string_view(),
    pa.large_string(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_text_comes_in_any_layout(tmp_path: Path, layout: pa.DataType) -> None:
    """Unsigned values in columns beside, in mutable events, in files, in tables and in messages."""
    table = thin_rows(rows=3, session=pa.array(["a", None, "b"], layout))
    events = pa.struct([("event_ts", pa.int64()), ("brand", layout)])
    mutable = [[{"event_ts": 1, "brand": "x"}], [], [{"event_ts": 2, "brand": None}]]
    # Arrow itself cannot write string views inside lists.
    events = events if layout != pa.string_view() else plain_type(events)
    for lists in (pa.list_(events), pa.large_list(events), pa.list_view(events)):
        column = pa.array(mutable, lists)
        table = table.set_column(table.column_names.index("mutable"), "mutable", column)
        pq.write_table(table, tmp_path / "a.parquet")
        plain_text = table.set_column(2, "session", plain(table["session"]))
        pq.write_table(plain_text, tmp_path / "b.parquet")
        for order in ("files", "users", "rows"):
            source = RowFiles(tmp_path, order=order).source()
            chunks = list(source.chunks(10))
            assert sum(len(chunk.rows) for chunk in chunks) == 6
            texts = [t for chunk in chunks for t in chunk.columns["session"].to_pylist()]
            assert sorted(map(str, texts)) == ["None", "None", "a", "a", "b", "b"]
        message = decode_thin_rows("here", encode_thin_rows(table))
        for rows, others in (
            next(read_thin_rows(tmp_path / "a.parquet", examples=9)),
            split_thin_rows("here", message),
        ):
            assert rows.mutable is not None
            brand = rows.mutable.columns["brand"]
            assert brand.present is not None and brand.present.tolist() == [True, False]
            assert brand.values[0] == "x" and rows.mutable.offsets.tolist() == [0, 1, 1, 2]
            assert others["session"].to_pylist() == ["a", None, "b"]


def test_layouts_keep_values_and_nulls() -> None:
    lists = [["a", "b"], None, [], ["c", None]]
    event = pa.struct([("a", pa.string_view()), ("b", pa.list_(pa.float32(), 2))])
    events = [{"a": "x", "b": [1.0, 2.0]}, None, {"a": None, "b": None}]
    kinds = (pa.list_(pa.string()), pa.list_view(pa.string()), pa.large_list_view(pa.string_view()))
    arrays = [pa.array(lists, kind) for kind in kinds]
    arrays += [pa.array([events, None, [], events[:1]], pa.list_view(event))]
    arrays += [pa.array([events[:2], None, events[1:]], pa.list_(event, 2))]
    words = pa.array(["a", "b"], pa.string_view())
    arrays += [pa.DictionaryArray.from_arrays(pa.array([0, None, 1]), words)]
    arrays += [pc.run_end_encode(pa.array(["a", "a", None]))]
    arrays += [pa.array([None, None]), pa.array([b"a", None], pa.binary_view())]
    for array in arrays:
        for part in (array, array[1:], array[:1], array[:0]):
            made = plain(part)
            made.validate(full=True)
            assert made.to_pylist() == part.to_pylist()
            assert made.type == plain_type(part.type) == plain_type(made.type)
            table = pa.table({"x": pa.chunked_array([part, array])})
            assert one_batch(table).to_pydict() == table.to_pydict()
    grown = pa.large_list(pa.struct([("b", pa.int64()), ("a", pa.large_string())]))
    assert conformed(pa.array([[{"a": "x"}], None]), grown).to_pylist() == [
        [{"b": None, "a": "x"}],
        None,
    ]


def test_a_window_holds_any_amount_of_text(tmp_path: Path) -> None:
    """Text of 32-bit offsets splits at 2 GiB, and all but the first piece would be lost."""
    path = write(tmp_path / "rows.parquet", rows=5, doc=pa.array(list("abcde")))
    for order in ("files", "users"):
        source = RowFiles(path, order=order).source()
        [chunk] = source.chunks(9)
        kind = chunk.columns.schema.field("doc").type
        assert kind == pa.large_string()
    pieces = pa.chunked_array([["a"], ["b", "c"], []], pa.string())
    assert one_batch(pa.table({"doc": pieces}))["doc"].to_pylist() == ["a", "b", "c"]
    # Arrow itself leaves apart what 32-bit offsets cannot hold; a table of two pieces is whole.
    table = pa.concat_tables([thin_rows(0, 2), thin_rows(2, 3)])
    rows, others = split_thin_rows("here", table)
    assert len(rows) == len(others) == 5


def test_files_may_differ_in_columns_no_one_requests(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 0, label=pa.array([1]))
    write(tmp_path / "b.parquet", 1, label=pa.array([2]), dwell=pa.array([3]))
    write(tmp_path / "c.parquet", 2, label=pa.array([2], pa.int8()), dwell=pa.array(["x"]))
    assert loaded(tmp_path, ("label",))["label"] == [1, 2, 2]
    for columns in (None, ("dwell",)):
        with pytest.raises(InputError, match=r"a\.parquet lacks the column 'dwell', which .*b\.pa"):
            loaded(tmp_path, columns)
    with pytest.raises(InputError, match=r"c\.parquet has a column of another type.*dwell"):
        loaded(tmp_path / "[bc].parquet")
    write(tmp_path / "d.parquet", 3, label=pa.array([(1 << 63) + 1], pa.uint64()))
    with pytest.raises(InputError, match=r"d\.parquet: column label .*9223372036854775809"):
        loaded(tmp_path / "[ad].parquet", ("label",))


def test_columns_of_nulls_are_absent(tmp_path: Path) -> None:
    event = {"event_ts": 5, "arrival_ts": None, "event_id": None, "brand": None}
    table = thin_rows(rows=2, score=pa.nulls(2))
    table = table.set_column(
        table.column_names.index("mutable"), "mutable", pa.array([[event]] * 2)
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    [(rows, others)] = read_thin_rows(tmp_path, examples=9)
    assert rows.mutable is not None and rows.mutable.arrival_ts.tolist() == [5, 5]
    assert others["score"].to_pylist() == [None, None]
    write(tmp_path / "more.parquet", 2, score=pa.array([0.5]))
    assert loaded(tmp_path)["score"] == [0.5, None, None]


def test_words_of_64_bits_keep_them_in_tensors() -> None:
    top = (1 << 64) - 1
    table = pa.table({"label": pa.array([top, 1], pa.uint64()), "other": pa.array([2, 3])})
    arrays = to_arrays(table)
    assert arrays["label"].tolist() == [-1, 1], "the same bits"  # type: ignore[union-attr]
    assert arrays["other"].tolist() == [2, 3]  # type: ignore[union-attr]


@pytest.mark.server
def test_hashed_ids_come_through_store_and_loader(tmp_path: Path) -> None:
    schema = '[item]\nitem_id = { type = "uint64", key = true }\n'
    world = worlds.new_world(tmp_path, schema)
    ids = [(1 << 64) - 1, 1 << 63, 5]
    world.compact(
        pa.table(
            {
                "user_id": [1, 1, 1],
                "event_ts": [worlds.START_TS + place for place in range(3)],
                "item_id": pa.array(ids, pa.uint64()),
            }
        ),
        1,
    )
    as_of = worlds.as_of(1)
    uih = {"start_ts": 0, "end_ts": as_of, "max_length": 0, "digest": 0}
    events = pa.array([[]], pa.list_(pa.struct([("event_ts", pa.int64())])))
    rows = {"user_id": [1], "request_ts": [as_of], "uih": [uih], "mutable": events}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    with worlds.running_server(world.store) as server:
        wanted = Projection(traits=("item_id",))
        config = LoaderConfig(integer_dtype=torch.int32)
        with ThinRowLoader(tmp_path / "rows.parquet", server.address, wanted) as loader:
            [batch] = loader
        with (
            ThinRowLoader(tmp_path / "rows.parquet", server.address, wanted, config) as loader,
            pytest.raises(InputError, match="wider integers"),
        ):
            list(loader)
    assert batch.values["item_id"].dtype == torch.int64
    assert batch.values["item_id"].numpy().view("uint64").tolist() == ids


def snapshots_of(rows: ThinRows) -> MutableEvents:
    assert rows.mutable is not None
    return rows.mutable


@pytest.mark.parametrize("kind", [pa.list_(pa.null()), pa.large_list(pa.null()), pa.null()])
def test_rows_whose_snapshots_are_all_empty(tmp_path: Path, kind: pa.DataType) -> None:
    """Pandas cannot know what the lists would hold, and writes them of type null."""
    table = thin_rows(rows=2)
    items: list[Any] = [None, None] if kind == pa.null() else [[], None]
    column = pa.array(items, kind)
    empty = table.set_column(table.column_names.index("mutable"), "mutable", column)
    pq.write_table(empty, tmp_path / "a.parquet")
    for rows, _ in (
        next(read_thin_rows(tmp_path, examples=9)),
        split_thin_rows("here", decode_thin_rows("here", encode_thin_rows(empty))),
    ):
        assert rows.mutable is not None and rows.mutable.offsets.tolist() == [0, 0, 0]
    for traits in (None, ("brand",)):
        [chunk] = RowFiles(tmp_path, order="files").source(traits=traits).chunks(9)
        assert snapshots_of(chunk.rows).offsets.tolist() == [0, 0, 0]
    write(tmp_path / "b.parquet", 2)
    for traits in (None, ("brand",)):
        chunks = list(RowFiles(tmp_path, order="files").source(traits=traits).chunks(9))
        counts = [int(snapshots_of(chunk.rows).offsets[-1]) for chunk in chunks]
        assert sum(counts) == 1
    pieces = [rows for rows, _ in read_thin_rows(tmp_path, examples=9)]
    assert sum(len(snapshots_of(rows).arrival_ts) for rows in pieces) == 1
