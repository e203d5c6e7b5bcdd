"""Verify compares values, whatever types hold them, and finds each that differs."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fat_tables import hour_ts, slimmed
from thinrow.client import connect
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.errors import InputError
from thinrow.jobs.same_values import IncomparableError, differing
from thinrow.jobs.verify import verify
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from thinrow.client import Client
    from thinrow.events.units import TimeUnit

SCHEMA = """[item]
item_id = { type = "int32", key = true }
price = { type = "float32", sparse = true }
brand = "string"
taste = { type = "float32", size = 2 }
"""
SEEN = [[1, 2], [1, 2, 9]]
DAY = dt.date(2023, 11, 14)


def fat_table() -> pa.Table:
    """Two rows of one user, in the types that the schema has."""
    times = [[hour_ts(hour) for hour in hours] for hours in SEEN]
    return pa.table(
        {
            "user_id": pa.array([1, 1], pa.int64()),
            "request_ts": pa.array([hour_ts(5), hour_ts(30)], pa.int64()),
            "event_ts": pa.array(times, pa.list_(pa.int64())),
            "item_id": pa.array(SEEN, pa.list_(pa.int32())),
            "price": pa.array([[0.5, None], [0.5, None, 0.25]], pa.list_(pa.float32())),
            "brand": pa.array([["é", ""], ["é", "", "b"]]),
            "taste": pa.array(
                [[[1, 2]] * len(hours) for hours in SEEN], pa.list_(pa.list_(pa.float32(), 2))
            ),
            "day": pa.array([DAY, None], pa.date32()),
            "took": pa.array([1500, 2500], pa.duration("ms")),
            "logged": pa.array([hour_ts(5), hour_ts(6)], pa.timestamp("ms")),
            "label": pa.array([1, 0], pa.int8()),
            "country": pa.array(["at", "ch"]),
            "scores": pa.array([[1.5], []], pa.list_(pa.float64())),
        }
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Path]]:
    folder = tmp_path_factory.mktemp("values")
    pq.write_table(fat_table(), folder / "fat.parquet")
    done = slimmed(folder, [folder / "fat.parquet"], SCHEMA)
    compact(
        CompactionConfig(
            store=folder / "store",
            events=[folder / "events.parquet"],
            schema=folder / "schema.toml",
            watermark_ts=done.report.watermark_ts,
            shards=1,
        )
    )
    config = ServerConfig(store=folder / "store", listen="127.0.0.1:0", metrics=None)
    with Server(config) as server, connect(server.address) as client:
        yield client, folder


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        column = table.column(name)
        if pa.types.is_list(kind) and pa.types.is_timestamp(kind.value_type):
            stamps = pa.list_(pa.timestamp("ms", kind.value_type.tz))
            column = pa.chunked_array([pa.array(column.to_pylist(), stamps)])
        return table.set_column(place, name, column.cast(kind))

    return changed


def replaced(name: str, values: list[Any], kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values, kind))

    return changed


MOMENTS = pa.timestamp("us", "Europe/Vienna")
EQUAL = {
    **{
        f"event_ts in {kind}": cast("event_ts", pa.list_(kind))
        for kind in (
            pa.timestamp("s"),
            pa.timestamp("ms", "UTC"),
            MOMENTS,
            pa.timestamp("ns"),
            pa.float64(),
        )
    },
    **{
        f"request_ts in {kind}": lambda table, kind=kind: cast("request_ts", kind)(  # type: ignore[misc]
            cast("request_ts", pa.timestamp("ms"))(table)
        )
        for kind in (pa.timestamp("s", "UTC"), MOMENTS, pa.timestamp("ns"))
    },
    "request_ts as float": cast("request_ts", pa.float64()),
    "user_id as int32": cast("user_id", pa.int32()),
    "user_id as float": cast("user_id", pa.float64()),
    "item_id as int64": cast("item_id", pa.list_(pa.int64())),
    "item_id as uint8": cast("item_id", pa.list_(pa.uint8())),
    "item_id as float": cast("item_id", pa.list_(pa.float64())),
    "item_id in a large list": cast("item_id", pa.large_list(pa.int32())),
    "price as float64": cast("price", pa.list_(pa.float64())),
    "price as float16": cast("price", pa.list_(pa.float16())),
    "brand large": cast("brand", pa.list_(pa.large_string())),
    "brand a dictionary": replaced(
        "brand", [["é", ""], ["é", "", "b"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))
    ),
    "taste as float64": cast("taste", pa.list_(pa.list_(pa.float64()))),
    "day as timestamp": cast("day", pa.timestamp("us")),
    "day as date64": cast("day", pa.date64()),
    "took in ns": cast("took", pa.duration("ns")),
    "took as ms": replaced("took", [1500, 2500], pa.int64()),
    "logged in us": cast("logged", pa.timestamp("us", "UTC")),
    "logged in s": cast("logged", pa.timestamp("s")),
    "logged as ms": cast("logged", pa.int64()),
    "label as int64": cast("label", pa.int64()),
    "label as float": cast("label", pa.float64()),
    "label as bool": cast("label", pa.bool_()),
    "country a dictionary": lambda table: table.set_column(
        table.column_names.index("country"), "country", table["country"].dictionary_encode()
    ),
    "scores as float32": cast("scores", pa.large_list(pa.float32())),
}
TIMES = [[hour_ts(hour) for hour in hours] for hours in SEEN]
LATER = [TIMES[0], [*TIMES[1][:2], TIMES[1][2] + 1]]
DIFFERENT = {
    "event_ts": replaced("event_ts", LATER, pa.list_(pa.timestamp("ms", "UTC"))),
    "item_id": replaced("item_id", [[1, 2], [1, 2, 9 + 2**32]], pa.list_(pa.int64())),
    "item_id ": replaced("item_id", [[1, 2], [1, 2, 9.5]], pa.list_(pa.float64())),
    "item_id  ": replaced("item_id", [[1, 2], [1, 2, float("nan")]], pa.list_(pa.float64())),
    "item_id   ": replaced("item_id", [[1, 2], [1, 2, 2**32 - 7]], pa.list_(pa.uint32())),
    "price": replaced("price", [[0.5, None], [0.5, None, 0.26]], pa.list_(pa.float64())),
    "price ": replaced("price", [[0.5, None], [0.5, 0.0, 0.25]], pa.list_(pa.float64())),
    "brand": replaced(
        "brand", [["é", ""], ["é", "", "c"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))
    ),
    "taste": replaced(
        "taste", [[[1, 2]] * 2, [[1, 2], [1, 2], [1, 3]]], pa.list_(pa.list_(pa.float64()))
    ),
    "day": replaced("day", [dt.datetime(2023, 11, 14, 1, tzinfo=dt.UTC), None], pa.timestamp("us")),
    "day ": replaced("day", [DAY, DAY], pa.date64()),
    "took": replaced("took", [1_500_000, 2_500_001], pa.duration("us")),
    "logged": replaced("logged", [1000 * hour_ts(5) + 1, 1000 * hour_ts(6)], pa.timestamp("us")),
    "label": replaced("label", [1, 0.5], pa.float64()),
    "country": replaced("country", ["at", "CH"], pa.large_string()),
    "scores": replaced("scores", [[1.5], [2.0]], pa.list_(pa.float32())),
}


def compared(served: tuple[Client, Path], table: pa.Table) -> Any:  # noqa: ANN401
    client, folder = served
    pq.write_table(table, folder / "other.parquet")
    return verify(client, folder / "rows.parquet", folder / "other.parquet")


@pytest.mark.parametrize("name", EQUAL)
def test_equal_values_in_other_types(served: tuple[Client, Path], name: str) -> None:
    report = compared(served, EQUAL[name](fat_table()))
    assert report.rows_that_differ == 0, report.differences
    assert (report.rows, report.not_compared, report.not_in_fat) == (2, [], [])
    assert report.beside == ["day", "took", "logged", "label", "country", "scores"]


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_value_that_differs_is_found_in_every_type(
    served: tuple[Client, Path], name: str
) -> None:
    report = compared(served, DIFFERENT[name](fat_table()))
    assert report.rows_that_differ == 1
    [difference] = report.differences
    assert difference.where.startswith(name.strip())


def test_rows_of_another_request_are_refused(served: tuple[Client, Path]) -> None:
    stamps = [1000 * (hour_ts(5) + 1), 1000 * hour_ts(30)]
    with pytest.raises(InputError, match="sort both files alike"):
        compared(served, replaced("request_ts", stamps, pa.timestamp("us"))(fat_table()))
    with pytest.raises(InputError, match="whole numbers"):
        compared(served, replaced("user_id", [1, 1.5], pa.float64())(fat_table()))


def test_text_beside_numbers_is_refused(served: tuple[Client, Path]) -> None:
    texts = replaced("item_id", [["1", "2"], ["1", "2", "9"]], pa.list_(pa.string()))
    with pytest.raises(InputError, match="cannot be compared"):
        compared(served, texts(fat_table()))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (pa.array([2**63], pa.uint64()), pa.array([-(2**63)]), [True]),
        (pa.array([2**63], pa.uint64()), pa.array([2.0**63]), [False]),
        (pa.array([2**53 + 1]), pa.array([2.0**53]), [True]),
        (pa.array([0.1], pa.float32()), pa.array([0.1]), [True]),
        (pa.array([0.0]), pa.array([-0.0]), [True]),
        (pa.array([np.nan], pa.float32()), pa.array([np.nan]), [False]),
        (pa.array([None, 1]), pa.array([None, None], pa.float64()), [False, True]),
        (pa.array([Decimal("1.50")]), pa.array([1.5]), [False]),
        (pa.array([b"a"]), pa.array([b"a"], pa.binary(1)), [False]),
        # Years that nanoseconds cannot hold.
        (
            pa.array([2**62], pa.timestamp("s")),
            pa.array([2**62 // 10**9], pa.timestamp("ns")),
            [True],
        ),
        (pa.array([{"a": 1}]), pa.array([{"a": 2}]), [True]),
        (pa.array([[1, None], []]), pa.array([[1, None], [2]]), [False, True]),
        (pa.array([5], pa.time32("s")), pa.array([5000], pa.time32("ms")), [False]),
    ],
)
def test_values_apart_and_alike(left: pa.Array, right: pa.Array, expected: list[bool]) -> None:
    assert differing(left, right).tolist() == expected
    assert differing(right, left).tolist() == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (pa.array(["1"]), pa.array([1])),
        (pa.array([1], pa.duration("s")), pa.array([1], pa.timestamp("s"))),
        (pa.array([[1]]), pa.array([1])),
    ],
)
def test_types_without_values_in_common(left: pa.Array, right: pa.Array) -> None:
    with pytest.raises(IncomparableError):
        differing(left, right)


@pytest.mark.parametrize(("unit", "per_ms"), [("s", 1e-3), ("us", 1e3), ("ns", 1e6)])
def test_integers_of_another_unit_are_named_as_such(
    served: tuple[Client, Path], unit: TimeUnit, per_ms: float
) -> None:
    client, folder = served
    table = fat_table()
    lists = [[int(ts * per_ms) for ts in row] for row in table["event_ts"].to_pylist()]
    table = table.set_column(table.column_names.index("event_ts"), "event_ts", pa.array(lists))
    with pytest.raises(
        InputError, match=f"as {unit}, not as milliseconds; give --time-unit {unit}"
    ):
        compared(served, table)
    requests = pa.array(table["request_ts"].to_pylist(), pa.timestamp("ms"))
    place = table.column_names.index("request_ts")
    pq.write_table(table.set_column(place, "request_ts", requests), folder / "other.parquet")
    paths = folder / "rows.parquet", folder / "other.parquet"
    assert verify(client, *paths, time_unit=unit).rows_that_differ == 0
