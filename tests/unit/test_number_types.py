"""Numbers of every type into traits of every type: kept exactly, or refused by column and value."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from support.number_edges import SOURCES, TRAITS, values_of
from support.worlds import DAY_MS, START_TS, as_of, days, new_world, pointers_to, read_store
from thinrow.cli.app import app
from thinrow.client import Projection
from thinrow.errors import InputError
from thinrow.events.canonical import canonical_table, from_canonical
from thinrow.events.time_columns import TimeReader
from thinrow.jobs.compared_rows import rounded
from thinrow.jobs.same_values import differing
from thinrow.schema import Schema, TraitType, parse_schema
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path


def stored_as(schema: Schema, source: str, value: Any) -> Any:  # noqa: ANN401
    """Returns the stored value of one value of a file; raises InputError."""
    kind = getattr(pa, {"bool": "bool_"}.get(source, source))()
    column = pa.array([value, None], kind)
    table = pa.table({"user_id": [1, 1], "event_ts": [START_TS, START_TS + 1], "x": column})
    [trait] = schema.traits
    made = canonical_table("e.parquet", schema, table, TimeReader(None))  # type: ignore[arg-type]
    first, absent = from_canonical(made["x"].combine_chunks(), trait).to_pylist()
    assert absent is None
    return first


@pytest.mark.parametrize("target", TRAITS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_pair_of_types(source: str, target: str) -> None:
    schema = parse_schema(f'[g]\nx = {{ type = "{target}", sparse = true }}\n')
    is_rounded = target.startswith("float") and source.startswith("float")
    kept = 0
    for value in values_of(source):
        with np.errstate(over="ignore"):
            expected = np.dtype(target).type(value).item() if is_rounded else value
        try:
            stored = stored_as(schema, source, value)
        except InputError as error:
            assert str(error).startswith("e.parquet: x "), error
            assert not is_rounded or (math.isinf(expected) and math.isfinite(value)), value
            continue
        kept += 1
        if math.isnan(value) and not is_rounded:
            assert stored is None, "integers with gaps, as pandas has them"
            continue
        assert repr(stored) == repr(expected) or (not is_rounded and stored == value), value
        assert math.isfinite(stored) or not math.isfinite(value), value
    assert source != target or kept == len(values_of(source))


@pytest.mark.parametrize(
    ("source", "target", "value"),
    [
        ("float64", "float32", 1e300),
        ("float32", "float16", 65520.0),
        ("int64", "float16", 2049),
        ("int64", "float32", (1 << 24) + 1),
        ("uint64", "float64", (1 << 53) + 1),
        ("int64", "int8", 128),
        ("int8", "uint8", -1),
        ("uint64", "int64", 1 << 63),
    ],
)
def test_a_value_that_does_not_fit_is_named(source: str, target: str, value: Any) -> None:  # noqa: ANN401
    schema = parse_schema(f'[g]\nx = {{ type = "{target}", sparse = true }}\n')
    with pytest.raises(InputError, match=f"x does not fit into .*{value}".replace("+", "[+]")):
        stored_as(schema, source, value)


@pytest.mark.parametrize("target", [kind.label for kind in TraitType if kind.has_vectors])
def test_vectors_keep_their_elements(target: str) -> None:
    schema = parse_schema(f'[g]\nx = {{ type = "{target}", size = 2, sparse = true }}\n')
    pairs = list(itertools.pairwise(values_of(target)))
    kind = getattr(pa, target)()
    for layout in (pa.list_(kind), pa.list_(kind, 2)):
        column = pa.array([None, *pairs], layout)
        table = pa.table({"user_id": [1] * len(column), "event_ts": [START_TS] * len(column)})
        made = canonical_table(
            "e.parquet",  # type: ignore[arg-type]
            schema,
            table.append_column("x", column),
            TimeReader(None),
        )
        stored = from_canonical(made["x"].combine_chunks(), schema.traits[0])
        assert stored.type == pa.list_(kind, 2)
        assert repr(stored.to_pylist()) == repr(column.to_pylist())


VECTORS = """
[g]
item_id = { type = "int64", key = true }
score = { type = "float32", sparse = true }
vector = { type = "float32", size = 2, sparse = true }
"""


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("score", pa.array([0.1, None, 1e300])),
        ("vector", pa.array([[0.1, 0.2], None, [0.0, -1e300]], pa.list_(pa.float64()))),
        ("vector", pa.array([[0.1, 0.2], None, [0.0, -1e300]], pa.list_(pa.float64(), 2))),
    ],
)
def test_no_command_turns_numbers_into_infinity(
    tmp_path: Path, column: str, values: pa.Array
) -> None:
    world = new_world(tmp_path, VECTORS)
    events = pa.table(
        {
            "user_id": [1, 1, 1],
            "event_ts": [START_TS, START_TS + 1, START_TS + 2],
            "item_id": [1, 2, 3],
            column: values,
        }
    )
    world.compact(events.slice(0, 2), 1, cadence_ms=DAY_MS)
    [(_, stored)] = read_store(world.store, pointers_to(days(1), [1]))
    rounded = float(np.float32(0.1))
    assert stored[column] == [
        rounded if column == "score" else [rounded, float(np.float32(0.2))],
        None,
    ]
    bad = world.write("bad.parquet", events)
    requests = world.write("requests.parquet", pa.table({"user_id": [1], "request_ts": [as_of(1)]}))
    lists = {
        name: pa.array([events[name].to_pylist()], pa.list_(events[name].type))
        for name in ("event_ts", "item_id", column)
    }
    fat = world.write("fat.parquet", pa.table({"user_id": [1], "request_ts": [as_of(1)], **lists}))
    store = ("--store", world.store, "--schema", world.schema)
    out = ("--out-events", tmp_path / "e.parquet", "--out-rows", tmp_path / "r.parquet")
    for command in (
        ["compact", bad, *store, "--watermark", as_of(2)],
        ["backfill", requests, *store[:2], "--events", bad, "--out", tmp_path / "rows.parquet"],
        ["slim", fat, "--schema", world.schema, *out],
    ):
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 2, result.output
        assert f"{column} does not fit into float: " in result.stderr
        assert "1e+300 is too large" in result.stderr
        assert not (tmp_path / "rows.parquet").exists() and not (tmp_path / "r.parquet").exists()


def test_verify_sees_the_number_behind_an_infinity() -> None:
    """Stores of earlier versions may hold an infinity where fat rows have a number."""
    infinite = pa.array([math.inf, math.inf, 0.1, None], pa.float32())
    numbers = pa.array([1e300, math.inf, 0.1, None], pa.float64())
    assert differing(rounded(numbers, pa.float32()), infinite).tolist() == [
        True,
        False,
        False,
        False,
    ]
    vectors = pa.FixedSizeListArray.from_arrays(infinite[:2], 2)
    lists = pa.array([[1e300, math.inf]], pa.list_(pa.float64()))
    assert differing(rounded(lists, vectors.type), vectors).tolist() == [True]


@pytest.mark.parametrize("column", ["user_id", "event_id"])
def test_ids_beyond_int64_are_refused_with_the_way_out(tmp_path: Path, column: str) -> None:
    """The expressions are those of the message; the bits stay."""
    world = new_world(tmp_path, VECTORS)
    hashes = pl.Series([(1 << 63) + 1, (1 << 64) - 1, 5], dtype=pl.UInt64)
    frame = pl.DataFrame(
        {
            "user_id": pl.Series([1, 1, 1], dtype=pl.UInt64),
            "event_id": pl.Series([1, 2, 3], dtype=pl.UInt64),
            "event_ts": [START_TS] * 3,
            "item_id": [1, 2, 3],
        }
    ).with_columns(hashes.alias(column))
    path = world.write("events.parquet", frame.to_arrow())
    with pytest.raises(
        InputError, match=f"{column} does not fit .* 9223372036854775809 "
    ) as reported:
        world.compact(frame.to_arrow(), 1)
    for library in ("Polars", "DuckDB", "pandas"):
        assert library in str(reported.value)
    assert f"pl.col('{column}').reinterpret(signed=True)" in str(reported.value)
    signed = frame.with_columns(pl.col(column).reinterpret(signed=True))
    world.compact(signed.to_arrow(), 1, cadence_ms=DAY_MS)
    users = signed["user_id"].to_list()
    wanted = Projection(traits=("item_id", "event_id"))
    rows = read_store(world.store, pointers_to(days(1), sorted(set(users))), wanted)
    found = {item: number for number, (_, row) in enumerate(rows) for item in row["item_id"] or []}
    assert sorted(found) == [1, 2, 3]
    if column == "event_id":
        assert sorted(rows[0][1]["event_id"] or []) == sorted(signed["event_id"].to_list())
    requests = world.write(
        "requests.parquet", frame.select("user_id", request_ts=pl.lit(as_of(1))).to_arrow()
    )
    if column == "user_id":
        command = ["backfill", requests, "--store", world.store, "--events", path]
        result = CliRunner().invoke(app, [*map(str, command), "--out", str(tmp_path / "r.parquet")])
        assert result.exit_code == 2 and "user_id::BIT::BIGINT" in result.stderr
