"""The jobs from Python: their options, tables in memory, and mistakes."""

from __future__ import annotations

import inspect
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import thinrow
import typer
from support.worlds import DAY_MS, START_TS, new_world, some_events
from thinrow.cli.app import app
from thinrow.cli.command import BY_NAME
from thinrow.core.files.tables import to_table
from thinrow.errors import InputError, UsageError
from thinrow.jobs.memory_tables import GROUP_ROWS, write_scratch
from thinrow.jobs.option_values import time_ts
from thinrow.store.durations import duration_ms

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY_2 = datetime(2023, 11, 16, tzinfo=UTC)
"""Two days after START_TS."""
NESTED = pa.table(
    {
        "whole": [1, None, 3, 4],
        "text": ["a", "", None, "é"],
        "lists": [[1, None], None, [], [5]],
        "vectors": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
        "fields": [{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}, {"a": 2, "b": []}],
        "mapped": pa.array([[("k", 1)], None, [], [("k", 2)]], pa.map_(pa.string(), pa.int8())),
        "amount": [Decimal("1.5"), None, Decimal("2.5"), Decimal("3.5")],
        "moment": [datetime(2026, 1, 1, tzinfo=UTC), None, None, None],
        "flag": [True, None, False, True],
        "kind": pa.array(["x", "y", None, "x"]).dictionary_encode(),
        "nothing": pa.nulls(4),
    }
)


@pytest.mark.parametrize("name", thinrow.__all__)
def test_options_are_those_of_the_command(name: str) -> None:
    """Names and defaults are the same, so that a command's page is also the function's."""
    command: Any = typer.main.get_command(app)
    for word in name.split("_"):
        command = command.commands[word]
    options = {}
    by_name = {
        found.name.removesuffix(BY_NAME) for found in command.params if BY_NAME in found.name
    }
    for found in command.params:
        if found.name.endswith(BY_NAME):
            continue
        if found.param_type_name == "argument":
            options[found.name] = found
        else:
            options[found.opts[0].lstrip("-").replace("-", "_")] = found
    options.pop("more_events", None)  # of backfill: the shell's own way to give a list
    parameters = inspect.signature(getattr(thinrow, name)).parameters
    assert list(parameters) == list(options)
    for each, parameter in parameters.items():
        is_required = parameter.default is inspect.Parameter.empty
        # Of an argument and the option in its place, the shell requires one.
        assert is_required == (options[each].required or each in by_name), each
        if not is_required:
            assert parameter.default == options[each].default, each


def fingerprint(rows: Any, folder: Path) -> str:  # noqa: ANN401 - any table
    return write_scratch(rows, folder / "table.parquet").fingerprint


def test_content_alone_makes_the_fingerprint(tmp_path: Path) -> None:
    """Whatever library holds a table, and however its rows are cut and laid out."""
    known = fingerprint(NESTED, tmp_path)
    assert pq.read_table(tmp_path / "table.parquet").to_pylist() == NESTED.to_pylist()
    sliced = pa.concat_tables([NESTED.slice(0, 1), NESTED.slice(1, 2), NESTED.slice(3)])
    assert fingerprint(sliced, tmp_path) == known
    assert fingerprint(sliced.to_reader(), tmp_path) == known
    decoded = NESTED.set_column(9, "kind", NESTED.column("kind").cast(pa.large_string()))
    assert fingerprint(decoded, tmp_path) == known
    behind_nulls = pa.Array.from_buffers(
        pa.int64(), 4, [pa.py_buffer(b"\x0d"), pa.array([1, 99, 3, 4]).buffers()[1]]
    )
    assert fingerprint(NESTED.set_column(0, "whole", behind_nulls), tmp_path) == known

    events = some_events(50)
    frames = [pl.from_arrow(events), events.to_pandas(types_mapper=pd_types())]
    assert {fingerprint(each, tmp_path) for each in frames} == {fingerprint(events, tmp_path)}


def pd_types() -> Callable[[pa.DataType], Any]:
    from pandas import ArrowDtype

    found: Callable[[pa.DataType], Any] = ArrowDtype
    return found


@pytest.mark.parametrize("column", NESTED.column_names[:-1])
def test_every_change_makes_another_fingerprint(column: str, tmp_path: Path) -> None:
    known = fingerprint(NESTED, tmp_path)
    place = NESTED.column_names.index(column)
    order = pa.array([3, 1, 2, 0])
    swapped = NESTED.set_column(place, NESTED.field(place), NESTED.column(place).take(order))
    fewer = NESTED.set_column(place, column, pa.nulls(4, NESTED.field(place).type))
    renamed = NESTED.rename_columns(
        [*NESTED.column_names[:place], "other", *NESTED.column_names[place + 1 :]]
    )
    found = [fingerprint(each, tmp_path) for each in (fewer, renamed, NESTED.slice(0, 3))]
    if column not in ("flag", "kind"):  # their first and last values are alike
        found.append(fingerprint(swapped, tmp_path))
    assert len({known, *found}) == 1 + len(found)


def test_a_stream_is_written_as_it_comes(tmp_path: Path) -> None:
    """Memory holds at most one of the reader's batches."""
    ahead: list[int] = []
    batch = pa.record_batch({"user_id": pa.array(range(GROUP_ROWS), pa.int64())})

    def batches() -> Any:  # noqa: ANN401
        for _ in range(4):
            ahead.append(pa.total_allocated_bytes())
            yield batch

    before = pa.total_allocated_bytes()
    reader = pa.RecordBatchReader.from_batches(batch.schema, batches())
    file = write_scratch(reader, tmp_path / "table.parquet")
    assert pq.read_metadata(file.name).num_rows == 4 * GROUP_ROWS
    assert pq.read_metadata(file.name).num_row_groups == 4
    assert max(ahead) - before < 2 * batch.nbytes


def test_a_table_is_compacted_once(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    events = some_events()
    options = {"store": world.store, "schema": world.schema, "watermark": DAY_2}
    first = thinrow.compact(events, **options)
    assert (first.rows_read, first.already_published) == (400, False)
    assert thinrow.compact(pl.from_arrow(events), **options).already_published
    with pytest.raises(UsageError, match="other input"):
        thinrow.compact(events.slice(1), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["schema.toml", "store"]


def test_every_job_takes_a_table(tmp_path: Path) -> None:
    events = some_events()
    requests = pa.table({"user_id": [1, 2], "request_ts": [START_TS + 2 * DAY_MS] * 2})
    world = new_world(tmp_path)
    thinrow.compact(events, store=world.store, schema=world.schema, watermark=DAY_2)
    thinrow.backfill(requests, store=world.store, events=events, out=tmp_path / "rows.parquet")
    fat = tmp_path / "fat.parquet"
    rows = pq.read_table(tmp_path / "rows.parquet")
    thinrow.materialize(
        rows, server=world.store, out=fat, traits=["event_ts", "item_id"], sequence_length=9
    )
    table = pq.read_table(fat)
    assert table.column("item_id").combine_chunks().value_lengths().to_pylist() == [9, 9]
    assert "brand" not in table.column_names
    report = thinrow.verify(rows, against=table, server=[world.store], sequence_length=9)
    assert (report.rows, report.rows_that_differ) == (2, 0)
    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[catalog]\nauthor = { type = "string", sparse = true }\n')
    items = pa.table({"item_id": events.column("item_id"), "author": ["x"] * 400})
    filled = [
        thinrow.fill("catalog", items, store=world.store, schema=catalog).already_published
        for _ in range(2)
    ]
    assert filled == [False, True]
    slimmed = thinrow.slim(
        table,
        out_events=tmp_path / "slim/events.parquet",
        out_rows=tmp_path / "slim/rows.parquet",
        cadence=timedelta(days=1),
    )
    assert slimmed.facts.rows == 2
    log = events.drop_columns("event_id").rename_columns({"event_ts": "timestamp"})
    studied = thinrow.research(log, out=tmp_path / "research", time_unit="ms")
    assert studied.events == 400


class SparkFrame:
    """A frame as PySpark has it, whose class shows what it is."""

    __module__ = "pyspark.sql.dataframe"

    def toArrow(self) -> pa.Table:  # noqa: N802 - Spark's name
        return NESTED


class OldSparkFrame:
    """A frame of a version that has no Arrow data."""

    __module__ = "pyspark.sql.dataframe"


SparkFrame.__name__ = OldSparkFrame.__name__ = "DataFrame"


def test_frames_of_spark(tmp_path: Path) -> None:
    assert fingerprint(SparkFrame(), tmp_path) == fingerprint(NESTED, tmp_path)
    assert to_table(SparkFrame()) is NESTED
    with pytest.raises(InputError, match=r"df\.write\.parquet"):
        fingerprint(OldSparkFrame(), tmp_path)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"watermrk": 5}, "no option watermrk; it has events, store, watermark"),
    ({"events": {}}, "events is a dict; give paths, URLs, globs, or a table"),
    ({"events": pl.LazyFrame({"a": [1]})}, "events is a LazyFrame; give paths"),
    ({"events": [some_events(1)]}, "events is a list; give paths"),
    (
        {"events": some_events(1).drop_columns("event_ts")},
        "The Table in memory has no column event_ts",
    ),
    ({"events": "nowhere"}, "There is no file nowhere"),
    ({"store": 5}, "store is 5; give a text or a path"),
    ({"shards": True}, "shards is True; give an integer"),
    ({"shards": 0}, "shards is 0; it must be above 0"),
    ({"dedup_window": 5}, "dedup_window: 5 is no duration"),
    ({"dedup_window": timedelta(microseconds=1)}, "no duration"),
    ({"watermark": "soon"}, "watermark: 'soon' is no time"),
    ({"time_unit": "h"}, "time_unit is 'h'; give one of s, ms, us, ns"),
    ({"accept_late": "yes"}, "accept_late is 'yes'; give True or False"),
]


@pytest.mark.parametrize(("wrong", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_a_mistake_is_one_sentence(wrong: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    world = new_world(tmp_path)
    given = {
        "events": some_events(),
        "store": world.store,
        "schema": world.schema,
        "watermark": DAY_2,
    }
    with pytest.raises(UsageError) as raised:
        thinrow.compact(**given | wrong)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_calls_that_fit_no_function() -> None:
    with pytest.raises(UsageError, match="needs store: Folder"):
        thinrow.compact("events", watermark=5)
    with pytest.raises(UsageError, match="takes events by place"):
        thinrow.compact("a", "b", store="store", watermark=5)
    with pytest.raises(UsageError, match="has events twice"):
        thinrow.compact("a", events="b", store="store", watermark=5)
    with pytest.raises(AttributeError, match="comp"):
        thinrow.comp  # noqa: B018


def test_a_stream_that_fails_is_named(tmp_path: Path) -> None:
    schema = pa.schema([("user_id", pa.int64())])

    def batches() -> Any:  # noqa: ANN401
        yield pa.record_batch({"user_id": pa.array([1], pa.int64())})
        raise OSError("the query was cancelled")

    with pytest.raises(InputError, match=r"RecordBatchReader.*the query was cancelled"):
        write_scratch(pa.RecordBatchReader.from_batches(schema, batches()), tmp_path / "a.parquet")


def test_values_of_options() -> None:
    moment_ts = 1_769_839_200_000
    for value in (
        moment_ts,
        str(moment_ts),
        "2026-01-31T06:00:00Z",
        "2026-01-31T08:00:00+02:00",
        datetime(2026, 1, 31, 6),  # noqa: DTZ001 - it is UTC
        datetime(2026, 1, 31, 6, 0, 0, 999, tzinfo=UTC),
    ):
        assert time_ts(value) == moment_ts
    assert time_ts(date(2026, 1, 31)) == moment_ts - 6 * 3_600_000
    assert time_ts(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1
    assert duration_ms("36h") == duration_ms(timedelta(days=1, hours=12)) == 36 * 3_600_000


def test_a_client_without_the_server_says_what_to_install() -> None:
    script = (
        "import sys\n"
        "sys.modules['polars'] = None\n"
        "import thinrow, thinrow.client, thinrow.errors\n"
        "assert 'thinrow.api' not in sys.modules\n"
        "try:\n"
        "    thinrow.compact\n"
        "except thinrow.errors.UsageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "thinrow.compact needs polars; pip install 'thinrow[server]'.\n"


def test_a_table_for_a_store_at_a_url(tmp_path: Path) -> None:
    """A table is split among temporary files, since a URL has no folder beside it."""
    world = new_world(tmp_path)
    url = f"file://{tmp_path}/remote"
    options = {"store": url, "schema": world.schema, "watermark": DAY_2}
    done = [thinrow.compact(some_events(), **options).already_published for _ in range(2)]
    assert done == [False, True]


def test_one_text_is_a_list_of_one(tmp_path: Path) -> None:
    """A property of Spark alone is not read letter by letter."""
    world = new_world(tmp_path)
    with pytest.raises(UsageError) as raised:
        thinrow.compact(
            world.write("events.parquet", some_events()),
            store=world.store,
            watermark=DAY_2,
            engine="spark",
            spark_conf="spark.master=local[1]",
        )
    assert "it is a URL that every executor reaches" in str(raised.value)
