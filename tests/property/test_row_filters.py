"""Filters, splits and downsampling of thin rows against plain Python, on files and on tables."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from support.scenarios import examples
from support.thin_rows import ids_of, rows_table
from thinrow.client.torch import RowFiles, splits
from thinrow.client.torch.rows.choosers import DOWNSAMPLING
from thinrow.core.files.row_filter import as_expression

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.client.torch.rows.files import Order

DAY = 86_400_000
HUGE = 2**63 + 5
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "number": (pa.int32(), [None, -3, 0, 1, 2, 7]),
    "hashed": (pa.uint64(), [0, 1, 2**63 - 1, 2**63, HUGE, None]),
    "price": (pa.float64(), [math.nan, -0.0, 0.0, 1.5, math.inf, None]),
    "country": (pa.string(), ["de", "fr", "", "ü", None]),
    "is_click": (pa.bool_(), [True, False, None]),
    "day": (pa.date32(), [date(2024, 1, 1), date(2024, 1, 2), None]),
    "moment": (
        pa.timestamp("us", "UTC"),
        [datetime(2024, 1, day, microsecond=day, tzinfo=UTC) for day in (1, 2, 3)],
    ),
    "nothing": (pa.int64(), [None]),
    "constant": (pa.float32(), [1.0]),
}
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    ">=": lambda a, b: bool(a >= b),
    # Arrow's sets have NaN, and 0.0 apart from -0.0.
    "in": lambda a, b: str(a) in map(str, b),
}


@st.composite
def tables(draw: st.DrawFn, rows: int) -> pa.Table:
    """Draws thin rows with columns that are constant, sorted, null or NaN over some stretches."""
    table = rows_table(rows, seed=draw(st.integers(0, 9)))
    for name, (kind, values) in VALUES.items():
        few = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
        run = draw(st.sampled_from((1, 5, 20)))
        column = [few[(row // run) % len(few)] for row in range(rows)]
        table = table.append_column(name, pa.array(column, kind))
    return table


@st.composite
def tuples(draw: st.DrawFn) -> list[list[tuple[str, str, Any]]]:
    """Draws pyarrow's form of a filter: an OR of ANDs of comparisons."""
    one = st.sampled_from(sorted(set(VALUES) - {"nothing"})).flatmap(comparisons)
    anded = st.lists(one, min_size=1, max_size=2)
    return draw(st.lists(anded, min_size=1, max_size=2))


@st.composite
def comparisons(draw: st.DrawFn, name: str) -> tuple[str, str, Any]:
    values = [value for value in VALUES[name][1] if value is not None]
    operator = draw(st.sampled_from(sorted(OPERATORS)))
    if operator == "in":
        return name, operator, draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    return name, operator, draw(st.sampled_from(values))


def is_kept(row: dict[str, Any], condition: list[list[tuple[str, str, Any]]]) -> bool:
    def holds(name: str, operator: str, value: Any) -> bool:  # noqa: ANN401
        return row[name] is not None and OPERATORS[operator](row[name], value)

    return any(all(holds(*one) for one in anded) for anded in condition)


def written(folder: Path, table: pa.Table, files: int, row_group: int) -> tuple[Path, pa.Table]:
    """Writes a table as files of Hive folders, some named twice; returns it in their order."""
    parts = []
    for number in range(files):
        part = table.slice(*_part(len(table), files, number))
        path = folder / f"number={number // 2}" / f"{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(part.drop_columns(["number"]), path, row_group_size=row_group)
        keys = pa.array([number // 2] * len(part), pa.int32())
        parts.append(part.set_column(part.column_names.index("number"), "number", keys))
    return folder, pa.concat_tables(parts)


def _part(rows: int, parts: int, number: int) -> tuple[int, int]:
    start, stop = number * rows // parts, (number + 1) * rows // parts
    return start, stop - start


@given(st.data(), st.integers(0, 60), st.integers(1, 25), tuples())
@examples(20)
def test_a_filter_keeps_what_plain_python_keeps(
    data: st.DataObject, rows: int, row_group: int, condition: list[list[tuple[str, str, Any]]]
) -> None:
    table = data.draw(tables(rows))
    with TemporaryDirectory() as folder:
        path, table = written(Path(folder), table, 3, row_group)
        right = [n for n, row in enumerate(table.to_pylist()) if is_kept(row, condition)]
        whole = RowFiles(str(path), order="files")
        for files in (
            RowFiles(str(path), filter=condition, order="files"),
            whole.filter(as_expression(condition, table.schema)),
            RowFiles(table, filter=condition, order="files"),
        ):
            assert ids_of(files.source()) == right
            assert len(files) == len(right)
        assert len(whole) == len(table)
        shuffled = RowFiles(str(path), filter=condition, rank=0, world_size=1, window_rows=7)
        assert sorted(ids_of(shuffled.source())) == right
        for chunk in RowFiles(table, filter=condition, order="rows").source().chunks(9):
            kept = table.take(chunk.example_ids)
            assert chunk.columns["row"].to_pylist() == kept["row"].to_pylist()
            assert chunk.rows.pointers.user_ids.tolist() == kept["user_id"].to_pylist()


@given(st.data(), st.integers(1, 40))
@examples(8)
def test_filters_compose_and_take_any_expression(data: st.DataObject, rows: int) -> None:
    table = data.draw(tables(rows))
    files = RowFiles(table, order="files")
    listed = table.to_pylist()
    prices = [row["price"] for row in listed]
    for expression, right in (
        (pc.field("price").is_nan(), [p is not None and math.isnan(p) for p in prices]),
        (pc.field("nothing").is_null(), [True] * rows),
        (pc.field("nothing") == 1, [False] * rows),
        (~(pc.field("price") <= 1.5), [p is not None and not p <= 1.5 for p in prices]),
        (pc.field("uih", "max_length") > 0, [r["uih"]["max_length"] > 0 for r in listed]),
        (pc.list_value_length(pc.field("mutable")) > 0, [len(r["mutable"]) > 0 for r in listed]),
        (pc.scalar(True), [True] * rows),
    ):
        kept = files.filter(expression)
        assert ids_of(kept.source()) == [n for n, one in enumerate(right) if one]
        even = kept.filter(pc.bit_wise_and(pc.field("row"), 1) == 0)
        assert ids_of(even.source()) == [n for n, one in enumerate(right) if one and n % 2 == 0]


# Splits.


@given(st.data(), st.integers(0, 60), st.integers(1, 25), st.sampled_from(("users", "rows")))
@examples(6)
def test_splits_are_what_plain_python_makes(
    data: st.DataObject, rows: int, row_group: int, order: Order
) -> None:
    times = data.draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows))
    table = rows_table(rows).set_column(1, "request_ts", pa.array(times, pa.int64()))
    users = table["user_id"].to_pylist()
    first, second = sorted(data.draw(st.sets(st.integers(-1, 11), min_size=2, max_size=2)))
    of_time = [0 if time < first else 1 if time < second else 2 for time in times]
    of_user = [0 if hashed(user, 5) < 0.25 else 1 for user in users]
    newest = {
        user: sorted({t for u, t in zip(users, times, strict=True) if u == user}, reverse=True)
        for user in users
    }
    of_place = [2 - min(newest[u].index(t), 2) for u, t in zip(users, times, strict=True)]
    with TemporaryDirectory() as folder:
        pq.write_table(table, Path(folder) / "rows.parquet", row_group_size=row_group)
        for given_as in (folder, table):
            files = RowFiles(given_as, order=order, window_rows=13)
            for parts, right in (
                (splits.by_time(files, first, second), of_time),
                (splits.by_user(files, 0.25, 0.75, seed=5), of_user),
                (splits.leave_one_out(files), of_place),
            ):
                for number, part in enumerate(parts):
                    wanted = [row for row, each in enumerate(right) if each == number]
                    assert len(part) == len(wanted)
                    for world in (1, 3):
                        ranks = [part.source(worker, world) for worker in range(world)]
                        assert sorted(row for rank in ranks for row in ids_of(rank)) == wanted
            # Only kept rows count as a user's newest.
            even = splits.leave_one_out(files.filter(pc.bit_wise_and(pc.field("row"), 1) == 0))
            assert sum(map(len, even)) == (rows + 1) // 2
            if rows:
                assert len(even[2]) >= len(set(users[::2]))


@given(st.integers(0, 90), st.floats(0.01, 1), st.integers(-3, 2**64), st.integers(1, 70))
@examples(6)
def test_downsampling_keeps_rows_by_their_hash(
    rows: int, keep: float, seed: int, row_group: int
) -> None:
    table = rows_table(rows)
    is_positive = [label < 0.3 for label in table["label"].to_pylist()]
    right = [
        row for row in range(rows) if is_positive[row] or hashed(row, seed, DOWNSAMPLING) < keep
    ]
    condition = pc.field("label") >= pa.scalar(0.3)
    with TemporaryDirectory() as folder:
        pq.write_table(table, Path(folder) / "rows.parquet", row_group_size=row_group)
        for given_as in (folder, table):
            files = RowFiles(given_as)
            kept = splits.downsample(files, condition, keep=keep, seed=seed)
            assert sorted(ids_of(kept.source())) == right
            # A row is kept for its number, so filters and downsampling may come in either order.
            few = pc.field("user_id") <= 3
            after = splits.downsample(files.filter(few), condition, keep=keep, seed=seed)
            assert after.fingerprint == kept.filter(few).fingerprint


def hashed(value: int, *salts: int) -> float:
    """The rule of docs/guides/rows.md, in plain Python."""
    for salt in salts:
        value = splitmix64(value ^ splitmix64(salt))
    return (value >> 11) / 2**53


def splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31
