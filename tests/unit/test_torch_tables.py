"""Thin rows in memory: every library's table gives the rows, the order and the state of files."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.thin_rows import ids_of, rows_table
from thinrow.client.torch import RowFiles, ThinRowDataset, ThinRowLoader
from thinrow.client.torch.rows.groups import TABLE_GROUP_ROWS, FileGroups
from thinrow.core.pointers import Projection
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.client.torch import RowChunk

ROWS = 9000
TABLE = rows_table(ROWS)


class Capsule:
    """A table of a library that has only Arrow's protocol."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def in_odd_layouts(table: pa.Table) -> pa.Table:
    """The same values in chunks of one and many rows, a dictionary, views and small integers."""
    pieces = [table.slice(0, 1), table.slice(1, 4999), table.slice(5000)]
    table = pa.concat_tables([pa.table(pl.from_arrow(piece)) for piece in pieces])
    users, row = table["user_id"].dictionary_encode(), table["row"].cast(pa.int16())
    table = table.drop_columns(["user_id", "row"])
    return table.append_column("row", row).append_column("user_id", users)


def with_an_index(table: pa.Table) -> pd.DataFrame:
    """A frame of pandas whose index numbers its rows in an order that they had before."""
    return table.to_pandas().sort_values("label").sort_values("row")


def hugging_face(table: pa.Table) -> Any:  # noqa: ANN401 - an optional package
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset(pa.concat_tables([table.slice(4000), table.slice(0, 4000)]))
    # Rows that `select` moves lie where they lay.
    return dataset.select([*range(ROWS - 4000, ROWS), *range(ROWS - 4000)])


def chunks(rows: Any) -> list[RowChunk]:  # noqa: ANN401 - of any library
    # Two lanes, whose number depends on the size of the rows.
    return list(RowFiles(rows, seed=3, window_rows=2200).source().chunks(2000))


@pytest.fixture(scope="module")
def right() -> list[RowChunk]:
    return chunks(TABLE)


@pytest.mark.parametrize(
    "made",
    [
        lambda table: table.combine_chunks().to_batches()[0],
        lambda table: pa.RecordBatchReader.from_batches(
            table.schema, table.to_batches(max_chunksize=77)
        ),
        pl.from_arrow,
        with_an_index,
        Capsule,
        in_odd_layouts,
        hugging_face,
    ],
    ids=["RecordBatch", "RecordBatchReader", "Polars", "pandas", "capsule", "odd", "datasets"],
)
def test_every_library_gives_the_same_rows_and_order(
    made: Callable[[pa.Table], Any], right: list[RowChunk]
) -> None:
    for chunk, like in zip(chunks(made(TABLE)), right, strict=True):
        assert np.array_equal(chunk.example_ids, like.example_ids)
        for name in like.rows.pointers.__slots__:
            values = getattr(chunk.rows.pointers, name)
            assert np.array_equal(values, getattr(like.rows.pointers, name))
        assert chunk.columns["row"].to_numpy().tolist() == like.example_ids.tolist()
        assert chunk.rows.mutable is not None and like.rows.mutable is not None
        assert np.array_equal(chunk.rows.mutable.offsets, like.rows.mutable.offsets)
        for name in ("item_id", "brand", "rating"):
            of_trait = chunk.rows.mutable.columns[name].values
            assert np.array_equal(of_trait, like.rows.mutable.columns[name].values)
    assert RowFiles(made(TABLE)).fingerprint == RowFiles(TABLE).fingerprint


def test_a_table_gives_what_its_file_gives(tmp_path: Path, right: list[RowChunk]) -> None:
    pq.write_table(TABLE, tmp_path / "rows.parquet", row_group_size=TABLE_GROUP_ROWS)
    for chunk, like in zip(chunks(tmp_path), right, strict=True):
        assert np.array_equal(chunk.example_ids, like.example_ids)
        assert chunk.columns.equals(like.columns)
        assert np.array_equal(chunk.rows.pointers.digests, like.rows.pointers.digests)


def test_a_table_is_shared_resumed_and_copied_as_files_are() -> None:
    for rank in range(3):
        files = RowFiles(TABLE, rank=rank, world_size=3, window_rows=700)
        source = files.source()
        whole = ids_of(source)
        source.took(1234)
        copied = pickle.loads(pickle.dumps(files)).source()  # noqa: S301
        copied.load_state_dict(source.state_dict())
        assert ids_of(copied) == whole[1234:]


def test_a_state_names_the_rows_in_memory_and_the_filter() -> None:
    source = RowFiles(TABLE, order="rows").source()
    source.took(10)
    state = source.state_dict()
    changed = TABLE.set_column(0, "user_id", pc.add(TABLE["user_id"], 1))
    pointers = TABLE["uih"].combine_chunks()
    moved = pa.StructArray.from_arrays(
        [*pointers.flatten()[:3], pa.array([7] * ROWS, pa.uint64())], fields=list(pointers.type)
    )
    place = TABLE.column_names.index("uih")
    for other in (
        RowFiles(changed, order="rows"),
        RowFiles(TABLE.set_column(place, "uih", moved), order="rows"),
        RowFiles(TABLE.slice(1), order="rows"),
        RowFiles(TABLE.take([*range(1, ROWS), 0]), order="rows"),
        RowFiles(TABLE, order="rows", filter=pc.field("row") != 5000),
    ):
        with pytest.raises(UsageError, match="other files of thin rows; resume with the same"):
            other.source().load_state_dict(state)
    filtered = [
        RowFiles(TABLE, filter=pc.field("row") != number) for number in (1, 2)
    ]  # as many rows each
    assert filtered[0].fingerprint != filtered[1].fingerprint
    # However it is written, the same rows are the same state.
    again = RowFiles(TABLE, filter=[[("row", "<", 1)], [("row", ">", 1)]])
    assert again.fingerprint == filtered[0].fingerprint
    assert RowFiles(TABLE, filter=pc.field("row") >= 0).fingerprint == RowFiles(TABLE).fingerprint


def test_tables_that_hold_no_thin_rows_are_named() -> None:
    twice = pa.Table.from_arrays([*TABLE.columns, TABLE["row"]], [*TABLE.column_names, "row"])
    for rows, message in (
        (TABLE.drop_columns(["uih"]), "The Table in memory has no column uih"),
        (pl.DataFrame({"user_id": [1.5]}), "DataFrame in memory: column user_id is double"),
        (pd.DataFrame({"user_id": [1, "a"]}), "DataFrame in memory cannot be read as an Arrow"),
        (pl.Series([1]), "The Series in memory cannot be read as an Arrow table"),
        (twice, "The Table in memory has two columns named 'row'"),
    ):
        with pytest.raises(InputError, match=message):
            RowFiles(rows)
    for wrong in (pl.LazyFrame(), {"user_id": [1]}, 3, None):
        for maker in (
            RowFiles,
            lambda rows: ThinRowLoader(rows, "localhost:1", Projection()),
            lambda rows: ThinRowDataset(rows, "localhost:1", Projection()),
        ):
            with pytest.raises(UsageError, match=r"must be a path, a list of paths, or a table"):
                maker(wrong)  # type: ignore[arg-type]
    for several in ([TABLE, TABLE], [{"user_id": 1}], iter([pl.LazyFrame()])):
        with pytest.raises(UsageError, match="is among the names of files, but each must be a"):
            RowFiles(several)  # type: ignore[arg-type]


def test_a_frame_of_pandas_may_change_afterwards() -> None:
    frame = TABLE.to_pandas()
    files = RowFiles(frame, order="files")
    frame.loc[:, "user_id"] = 7
    chunk = next(files.source().chunks(ROWS))
    assert chunk.rows.pointers.user_ids.tolist() == TABLE["user_id"].to_pylist()[: len(chunk.rows)]


def test_a_frame_with_a_column_named_chunks_is_a_frame() -> None:
    frame = TABLE.to_pandas().assign(chunks=1)
    with ThinRowLoader(frame, "localhost:1", Projection()) as loader:
        assert "a table, 9000 rows" in repr(loader)


def test_null_pointers_are_errors_where_they_are_read() -> None:
    users = pa.array([None, *range(1, ROWS)], pa.int64())
    files = RowFiles(TABLE.set_column(0, "user_id", users))
    with pytest.raises(InputError, match="The Table in memory: column user_id must not be null"):
        ids_of(files.source())
    assert len(ids_of(files.filter(pc.field("user_id").is_valid()).source())) == ROWS - 1


def test_only_row_groups_that_statistics_allow_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        folder = tmp_path / f"day=2024-01-0{day}"
        folder.mkdir()
        pq.write_table(TABLE, folder / "rows.parquet", row_group_size=1000)
    whole = RowFiles(tmp_path)
    read: list[int] = []
    batches = FileGroups.batches

    def recorded(self: FileGroups, groups: list[int], *given: Any) -> Any:  # noqa: ANN401
        read.extend(groups)
        return batches(self, groups, *given)

    monkeypatch.setattr(FileGroups, "batches", recorded)
    first_day = pc.field("day") == pc.scalar("2024-01-01").cast("date32")
    for condition, groups, rows in (
        (pc.field("row") < 1500, [0, 1, 9, 10], 3000),
        (first_day & (pc.field("row") >= 8500), [8], 500),
        (pc.field("row") < 0, [], 0),
        (pc.field("label").is_valid(), list(range(18)), 2 * ROWS),
    ):
        files = whole.filter(condition)
        assert (sorted(read), len(files)) == (groups, rows)
        read.clear()
        assert len(ids_of(files.source())) == rows
        assert set(read) <= set(groups)
        read.clear()


def test_columns_that_only_the_filter_reads_need_one_type(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    texts = TABLE.set_column(3, "label", TABLE["label"].cast("string"))
    pq.write_table(texts, tmp_path / "b.parquet")
    files = RowFiles(tmp_path, filter=pc.field("row") == 3)
    assert ids_of(files.source(columns=())) == [3, ROWS + 3]
    with pytest.raises(InputError, match="a column of another type"):
        files.filter(pc.field("label") > 0)


def test_conditions_that_are_none_are_refused() -> None:
    files = RowFiles(TABLE)
    for condition, message in (
        (pc.field("nope") == 2, r"\(nope == 2\) does not fit the rows: .*columns user_id,"),
        (pc.field("uih", "nope") == 2, "does not fit the rows"),
        (pc.field("row"), "The filter row is int64, but must be true or false"),
        (pc.field("label") == "a", "does not fit the rows"),
        (pc.field(2) == 3, "numbers a column; name it instead"),
        ("row == 3", "'row == 3' is not an expression such as"),
        ([("row", "!", 3)], "is not an expression such as"),
        ([("row",)], "is not an expression such as"),
        ([], "is not an expression such as"),
        (pc.field("row").cast("int8") == 3, r"fails: Integer value \d+ not in range"),
    ):
        with pytest.raises(UsageError, match=message):
            files.filter(condition)


def test_a_filter_sees_only_rows_that_earlier_ones_kept() -> None:
    files = RowFiles(TABLE)
    first = pc.list_element(pc.field("mutable"), 0)
    newest = first.is_valid() & (pc.struct_field(first, 0) > 0)
    with pytest.raises(UsageError, match="fails: Index 0 is out of bounds"):
        files.filter(newest)
    filled = files.filter(pc.list_value_length(pc.field("mutable")) > 0)
    assert len(filled.filter(newest)) == len(filled) > 0


def test_statistics_that_cannot_be_compared_rule_nothing_out(tmp_path: Path) -> None:
    hashed = pa.array([2**64 - 1 - number for number in range(ROWS)], pa.uint64())
    moments = pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * ROWS, pa.timestamp("us", "UTC"))
    table = TABLE.append_column("hashed", hashed).append_column("moment", moments)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=1000)
    files = RowFiles(tmp_path)
    assert len(files.filter([("hashed", ">", 2**64 - 11)])) == 10
    assert len(files.filter([("hashed", ">", 5)])) == ROWS
    assert len(files.filter(pc.field("hashed") > pa.scalar(5, pa.uint64()))) == ROWS
    for condition, message in (
        (pc.field("hashed") > 5, r"not in range.*pyarrow\.scalar\(VALUE, TYPE OF THE COLUMN\)"),
        (pc.field("moment") > pc.scalar(0).cast("timestamp[us]"), "timestamp with timezone"),
    ):
        with pytest.raises(UsageError, match=rf"The filter .* fails: .*{message}"):
            files.filter(condition)
