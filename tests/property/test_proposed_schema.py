"""A schema proposed for a log takes every value of the log, and says why."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import new_folder
from support.scenarios import examples
from support.worlds import START_TS
from thinrow.cli.app import app
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.files.nested import field_names
from thinrow.core.files.paths import data_files
from thinrow.errors import InputError
from thinrow.events import log_facts
from thinrow.events.canonical import read_events
from thinrow.events.log_facts import propose_schema
from thinrow.events.text_files import log_files
from thinrow.events.time_columns import TimeReader
from thinrow.schema import parse_schema
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.schema.proposal import ProposedColumn, ProposedSchema

NUMBERS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
]
KINDS = [
    *NUMBERS,
    *(pa.bool_(), pa.string(), pa.large_string(), pa.string_view(), pa.json_(), pa.uuid()),
    *(pa.date32(), pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.duration("ms")),
    *(pa.time32("s"), pa.time64("us"), pa.decimal128(10, 2), pa.decimal128(38, 0)),
    *(pa.binary(), pa.null(), pa.list_(pa.int32()), pa.list_(pa.float32(), 2)),
    pa.dictionary(pa.int32(), pa.string()),
    pa.struct([("a", pa.int16()), ("b", pa.struct([("c", pa.string())]))]),
]


@st.composite
def columns(draw: st.DrawFn, rows: int) -> pa.Array:
    """A column of any type, of few or many values, with or without nulls."""
    kind = draw(st.sampled_from(KINDS))
    value = st.integers(0, draw(st.sampled_from((1, 100))))
    absent = draw(st.sampled_from((0, 0, 3)))
    numbers = [
        None if absent and draw(st.integers(0, absent)) == 0 else draw(value) for _ in range(rows)
    ]
    return as_kind(numbers, kind)


def as_kind(numbers: list[int | None], kind: pa.DataType) -> pa.Array:
    """Makes values of a type from small integers."""
    types = pa.types
    if isinstance(kind, pa.UuidType):
        return pa.array([None if n is None else n.to_bytes(16, "big") for n in numbers], kind)
    if types.is_struct(kind):
        children = [as_kind(numbers, field.type) for field in kind]
        null = pa.array([n is None for n in numbers])
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=null)
    if types.is_null(kind):
        return pa.nulls(len(numbers))
    if types.is_dictionary(kind):
        return as_kind(numbers, kind.value_type).dictionary_encode()
    if types.is_fixed_size_list(kind) or types.is_list(kind):
        return pa.array([None if n is None else [n, n] for n in numbers], kind)
    if types.is_decimal(kind):
        return pa.array([None if n is None else Decimal(n) for n in numbers], kind)
    if types.is_temporal(kind):
        return pa.array(numbers, pa.int64() if kind.bit_width == 64 else pa.int32()).cast(kind)
    if types.is_boolean(kind):
        return pa.array([None if n is None else n > 0 for n in numbers])
    if types.is_integer(kind) or types.is_floating(kind):
        return pa.array(numbers, pa.int64()).cast(kind)
    return pa.array([None if n is None else str(n) for n in numbers]).cast(kind)


def ids(rows: int) -> dict[str, pa.Array]:
    return {
        "user_id": pa.array([n % 3 for n in range(rows)]),
        "event_ts": pa.array([START_TS + n for n in range(rows)]),
    }


@given(st.data())
@examples(60)
def test_every_value_of_the_log_is_taken(data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from((1, 30)))
    made = {f"c{n}": data.draw(columns(rows)) for n in range(data.draw(st.integers(1, 5)))}
    table = pa.table({**ids(rows), **made})
    with new_folder() as folder:
        pq.write_table(table, folder / "a.parquet", row_group_size=data.draw(st.integers(1, 40)))
        if data.draw(st.booleans()):
            pq.write_table(table.drop_columns("c0"), folder / "b.parquet")
        try:
            proposed = propose_schema(log_files(folder))
        except InputError as error:
            assert "no column that can be a trait" in str(error)
            assert all(no_trait(column) for column in made.values())
            return
        schema = parse_schema(proposed.toml)
        found = {trait.name for trait in schema.traits}
        assert found == {
            field
            for name, column in made.items()
            if not no_trait(column)
            for field in field_names(column.type, name)
        }
        for file in data_files(folder):
            for batch in read_events(file, schema, TimeReader(None)):
                assert batch.num_rows


def no_trait(column: pa.Array) -> bool:
    return bool(column.null_count == len(column))


def proposals(folder: Path, **made: pa.Array) -> dict[str, ProposedColumn]:
    rows = len(next(iter(made.values())))
    path = folder / "log.parquet"
    pq.write_table(pa.table({**ids(rows), **made}), path)
    return {column.name: column for column in propose_schema(log_files(path)).columns}


def test_what_columns_look_like(tmp_path: Path) -> None:
    found = proposals(
        tmp_path,
        item_id=pa.array(range(100)),
        shelf=pa.array([n % 4 for n in range(100)]),
        note=pa.array([str(n) if n < 20 else None for n in range(100)]),
        vector=pa.array([[1.0, 2.0]] * 100),
        ragged=pa.array([[1]] * 99 + [[1, 2, 3]]),
        nested=pa.array([[[1]]] * 100),
        request_ts=pa.array(range(100)),
        **{"a b": pa.array(range(100))},
    )
    lines = {name: (column.group, column.line) for name, column in found.items()}
    assert lines["item_id"] == ("item", 'item_id = { type = "int64", key = true }')
    assert "high cardinality: 100 distinct in 100" in found["item_id"].reasons
    assert lines["shelf"] == ("context", 'shelf = { type = "categorical" }')
    assert lines["note"] == ("rare", 'note = { type = "string", sparse = true }')
    assert found["note"].reasons[0] == "sparse: 80.0% absent"
    assert lines["vector"] == ("vectors", 'vector = { type = "float64", size = 2 }')
    assert lines["ragged"] == ("vectors", 'ragged = { type = "list<int64>", length_max = 8 }')
    assert "the longest of the sample has 3" in found["ragged"].reasons[0]
    for name, why in (("nested", "no trait has"), ("request_ts", "writes it"), ("a b", "rename")):
        assert lines[name] == (None, "") and why in found[name].reasons[0]


def test_a_sample_is_bounded_and_footers_count_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One null far from every place of the sample makes the trait sparse."""
    monkeypatch.setattr(log_facts, "SAMPLE_ROWS", 8)
    monkeypatch.setattr(log_facts, "SAMPLE_PLACES", 4)
    values = pa.array([None if n == 999 else n for n in range(1000)])
    pq.write_table(pa.table({**ids(1000), "x": values}), tmp_path / "a.parquet", row_group_size=10)
    seen: list[tuple[int, int]] = []
    found = propose_schema(log_files(tmp_path), lambda _, done, total: seen.append((done, total)))
    [line] = [column.line for column in found.columns if column.name == "x"]
    assert line == 'x = { type = "int64", sparse = true }'
    assert seen[-1] == (4, 4)


def test_text_files_and_folders_of_keys(tmp_path: Path) -> None:
    folder = tmp_path / "dt=2024-01-02"
    folder.mkdir()
    (folder / "log.csv").write_text("user_id,event_ts,price,day\n1,2,1.5,2024-01-01\n1,3,,\n")
    lines = {column.name: column.line for column in propose_schema(log_files(tmp_path)).columns}
    assert lines["price"] == 'price = { type = "float64", sparse = true }'
    assert lines["day"] == 'day = { type = "int32", unit = "d", sparse = true }'
    assert lines["dt"] == 'dt = { type = "int32", unit = "d" }'


def test_floats_that_integers_would_refuse_are_not_called_whole(tmp_path: Path) -> None:
    found = proposals(
        tmp_path,
        whole=pa.array([1.0, None, 3.0]),
        infinite=pa.array([1.0, float("inf"), 3.0]),
        large=pa.array([1e20, 2.0, 3.0]),
        half=pa.array([4096.0, 2.0, 3.0]).cast(pa.float16()),
    )
    whole = {name for name, one in found.items() if "whole" in " ".join(one.reasons)}
    assert whole == {"whole"}


def test_lists_longer_than_any_trait_are_left_out(tmp_path: Path) -> None:
    found = proposals(tmp_path, item_id=pa.array([1, 2]), tags=pa.array([[1], [1] * 5000]))
    assert found["tags"].line == "" and "5000" in found["tags"].reasons[0]


def test_a_file_without_row_groups_and_a_key_of_some_folders(tmp_path: Path) -> None:
    events = tmp_path / "events"
    (events / "region=1").mkdir(parents=True)
    table = pa.table({**ids(2), "x": pa.array([1, 2])})
    pq.ParquetWriter(events / "empty.parquet", table.schema).close()
    with pytest.raises(InputError, match="no column that can be a trait"):
        propose_schema(log_files(events))
    pq.write_table(table, events / "a.parquet")
    pq.write_table(table, events / "region=1" / "b.parquet")
    lines = {column.name: column.line for column in propose_schema(log_files(events)).columns}
    assert lines["region"] == 'region = { type = "int64", sparse = true }'
    config = CompactionConfig(
        events=events, store=tmp_path / "store", watermark_ts=START_TS + 9, shards=1
    )
    assert compact(config).events_added == 2 * 2


def test_files_whose_types_no_type_holds_are_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({**ids(1), "h": pa.array([2**62 + 1])}), tmp_path / "a.parquet")
    pq.write_table(pa.table({**ids(1), "h": pa.array([0.5])}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="h does not fit into double"):
        propose_schema(log_files(tmp_path))


def test_compact_proposes_from_the_files_that_it_reads(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.mkdir()
    pq.write_table(pa.table({**ids(3), "item_id": pa.array([1, 2, 3])}), events / "a.parquet")
    (events / "items.csv").write_text("sku,price\n1,2\n")
    config = CompactionConfig(events=events, store=tmp_path / "s", watermark_ts=START_TS + 9)
    seen: list[ProposedSchema] = []
    try:
        compact(config, proposed=seen.append)
    except InputError as error:  # a folder with files of other kinds may hold forgotten data
        assert "items.csv" in str(error)
    assert all("price" not in one.toml for one in seen)


def test_names_of_types_and_columns_are_shown_as_they_are(tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    times = pa.array([1, 2, 3], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({**ids(3), "at": times, "x[/b]": pa.array([1, 2, 3])}), log)
    shown = CliRunner().invoke(app, ["schema", str(log)], terminal_width=200)
    assert shown.exit_code == 0, shown.output
    assert "x[/b]" in shown.stderr and "tz=UTC" in shown.stderr
    refused = CliRunner().invoke(app, ["schema", str(log), "--out", str(tmp_path / "no" / "s")])
    assert refused.exit_code == 2 and "Cannot write --out" in refused.stderr


def nothing_proposed(_: ProposedSchema) -> None:
    pytest.fail("The store has a schema.")


def test_a_new_store_without_a_schema_takes_the_proposal_and_says_so(tmp_path: Path) -> None:
    log, store = tmp_path / "log.parquet", tmp_path / "store"
    pq.write_table(pa.table({**ids(3), "item_id": pa.array([1, 2, 3])}), log)
    to = ["--store", str(store), "--watermark", str(START_TS + 2)]
    first = CliRunner().invoke(app, ["compact", str(log), *to])
    assert first.exit_code == 0, first.output
    assert 'item_id = { type = "int64", key = true }' in first.stderr
    schema = tmp_path / "schema.toml"
    shown = CliRunner().invoke(app, ["schema", str(log), "--out", str(schema)])
    assert shown.exit_code == 0 and "key:" in shown.stderr
    printed = CliRunner().invoke(app, ["schema", str(log)]).stdout
    assert printed == schema.read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["schema", str(log), "--out", str(schema)]).exit_code == 2
    for number, path in ((2, None), (3, schema)):
        config = CompactionConfig(
            events=log, store=store, schema=path, watermark_ts=START_TS + 1 + number
        )
        assert compact(config, proposed=nothing_proposed).generation == number
