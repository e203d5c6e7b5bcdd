"""Slim writes the same events and thin rows on Spark as without it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import new_folder
from support.fat_tables import AS_THEY_STAND, hour_ts
from support.fat_worlds import fat_tables, spoiled, write_fat
from support.past_requests import content, rows_of
from support.scenarios import examples, schema_toml
from support.spark_worlds import ON_SPARK
from support.task_sizes import SIZES, SMALL, Sizes
from thinrow.cli.app import app
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_slim
from thinrow.errors import ThinRowError, UsageError
from thinrow.jobs.config import SlimConfig
from thinrow.remote.object_store import ObjectStore
from typer.testing import CliRunner

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

    from support import oracle
    from support.object_storage import ObjectStorage
    from support.oracle import Entry, Past
    from support.spark_cluster import Sparked
    from thinrow.jobs.slim_plan import SlimReport

pytestmark = pytest.mark.timeout(1800)
PIECES = {"thinrow.jobs.fat.PIECE_ROWS": 4, "thinrow.jobs.fat.BATCH_EVENTS": 10}
"""Small pieces and batches."""


def config_of(folder: Path, fat: list[Path], **more: object) -> SlimConfig:
    config = SlimConfig(
        fat=fat,
        events=folder / "events.parquet",
        rows=folder / "rows.parquet",
        layout=AS_THEY_STAND,
    )
    return replace(config, **more)  # type: ignore[arg-type]


def without_bytes(report: SlimReport) -> dict[str, object]:
    return asdict(report) | {"event_bytes": 0, "row_bytes": 0}


def check(config: SlimConfig, folder: Path) -> SlimReport:
    """Runs both engines, and compares the reports and what each wrote."""
    one = run_slim(config, EngineConfig())
    on_spark = replace(config, events=folder / "events", rows=folder / "rows")
    fleet = run_slim(on_spark, ON_SPARK)
    assert without_bytes(fleet) == without_bytes(one)
    for name in ("events", "rows"):
        assert (folder / name).exists() == one.written
        if one.written:
            expected, found = pq.read_table(folder / f"{name}.parquet"), rows_of(folder / name)
            assert found.schema.equals(expected.schema)
            assert content(found) == content(expected)
    return one


@given(fat_tables(), SIZES, st.sampled_from((20, 1 << 23)), st.booleans(), st.randoms())
@examples(4)
def test_engines_write_the_same_of_any_fat_rows(
    local_spark: Sparked,
    table: tuple[oracle.Schema, Past, list[tuple[int, int]], list[list[Entry]]],
    sizes: Sizes,
    partition_events: int,
    ids: bool,
    rng: random.Random,
) -> None:
    """Also rows that disagree, and what arrived before the earliest generation."""
    schema, past, requested, sequences = table
    if rng.random() < 0.4:
        sequences = spoiled(sequences, schema, rng)
    with new_folder() as folder:
        (folder / "schema.toml").write_text(schema_toml(schema), encoding="utf-8")
        cut = -(-len(requested) // rng.choice((1, 3)))
        fat = [
            write_fat(
                folder / f"fat-{first}.parquet",
                requested[first : first + cut],
                sequences[first : first + cut],
                schema,
                ids,
            )
            for first in range(0, len(requested), cut)
        ]
        config = config_of(
            folder,
            fat,
            schema=folder / "schema.toml",
            time_unit="ms",
            cadence_ms=past.cadence_ms,
            cadence_offset_ms=past.cadence_offset_ms,
        )
        with (
            sizes.applied(local_spark, {**PIECES}),
            mock.patch("thinrow.jobs.slim_plan.PARTITION_EVENTS", partition_events),
            mock.patch("thinrow.jobs.fat.PIECE_ROWS", 4),
            mock.patch("thinrow.jobs.fat.BATCH_EVENTS", 10),
        ):
            check(config, folder)


def fat_of(folder: Path, users: list[str]) -> list[Path]:
    """Writes fat rows of users with texts for ids, in files of some row groups."""
    files = []
    for number in range(2):
        hours = range(20 + 40 * number, 60 + 40 * number, 4)
        rows = [(user, hour) for hour in hours for user in users]
        seen = [[hour_ts(past) for past in range(0, hour, 3)] for _, hour in rows]
        table = pa.table(
            {
                "user_id": [user for user, _ in rows],
                "request_ts": pa.array([hour_ts(hour) for _, hour in rows], pa.int64()),
                "event_ts": pa.array(seen, pa.list_(pa.int64())),
                "item_id": pa.array([[ts % 1000 for ts in each] for each in seen]),
                "label": [hour % 2 for _, hour in rows],
            }
        )
        path = folder / "fat" / f"day={number}" / "fat.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table, path, row_group_size=7)
        files.append(path)
    return files


@pytest.fixture
def small(local_spark: Sparked) -> Iterator[None]:
    """Small pieces, partitions and messages."""
    with (
        SMALL.applied(local_spark),
        mock.patch("thinrow.jobs.slim_plan.PARTITION_EVENTS", 100),
        mock.patch("thinrow.jobs.fat.PIECE_ROWS", 10),
    ):
        yield


@pytest.mark.usefixtures("small")
def test_users_with_texts_and_a_derived_schema(tmp_path: Path) -> None:
    """The rows lie in Hive folders, whose column passes through."""
    fat_of(tmp_path, ["ann", "bob", "é", ""])
    config = config_of(tmp_path, [tmp_path / "fat"])
    report = check(config, tmp_path)
    assert report.facts.rows == 80
    assert report.facts.rows_disagreeing == 0
    schema = (tmp_path / "events.toml").read_text(encoding="utf-8")
    assert "item_id" in schema
    assert set(rows_of(tmp_path / "rows").column("day").to_pylist()) == {0, 1}


@pytest.mark.usefixtures("small")
def test_outputs_in_an_object_store(object_storage: ObjectStorage, tmp_path: Path) -> None:
    fat = fat_of(tmp_path, ["ann", "bob"])
    config = config_of(tmp_path, fat)
    run_slim(config, EngineConfig())
    base = ObjectStore(object_storage.new_url())
    events, rows = f"{base.url}/events", f"{base.url}/rows"
    run_slim(replace(config, events=events, rows=rows), ON_SPARK)
    keys = sorted(found.key for found in base.listed())
    assert {key.partition("/")[0] for key in keys} == {"events", "events.toml", "rows"}
    for name in ("events", "rows"):
        (tmp_path / name).mkdir()
        for key in keys:
            if key.startswith(f"{name}/part-"):
                found = base.read(key, 1 << 20)
                assert found is not None
                (tmp_path / key).write_bytes(found.data)
        assert content(rows_of(tmp_path / name)) == content(
            pq.read_table(tmp_path / f"{name}.parquet")
        )
    with pytest.raises(UsageError, match="without --engine spark"):
        run_slim(replace(config, rows=rows), EngineConfig())


@pytest.mark.usefixtures("small")
def test_rows_that_disagree_write_nothing_if_that_is_the_wish(tmp_path: Path) -> None:
    fat = fat_of(tmp_path, ["ann"])
    table = pq.ParquetFile(fat[1]).read()
    events = table.column("event_ts").to_pylist()
    items = table.column("item_id").to_pylist()
    del events[-1][3], items[-1][3]
    for name, lists in (("event_ts", events), ("item_id", items)):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(lists, table.field(name).type))
    pq.write_table(table, fat[1], row_group_size=7)
    report = check(config_of(tmp_path, fat, on_disagreement="fail"), tmp_path)
    assert not report.written
    assert report.facts.rows_disagreeing == 19  # all rows before the last have what it lacks
    arguments = ["slim", *fat, "--out-events", tmp_path / "events", "--out-rows", tmp_path / "rows"]
    command = [*map(str, arguments), "--order", "arrival", "--on-disagreement", "fail"]
    result = CliRunner().invoke(app, [*command, "--engine", "spark"])
    assert result.exit_code == 1, result.output
    assert not (tmp_path / "rows").exists()


@pytest.mark.usefixtures("small")
def test_mistakes_are_reported_as_without_spark(tmp_path: Path) -> None:
    """Times in another order, and a column that thin rows bring."""
    path = fat_of(tmp_path, ["ann"])[0]
    table = pq.ParquetFile(path).read()
    backwards = [times[::-1] for times in table.column("event_ts").to_pylist()]
    place = table.column_names.index("event_ts")
    tables = {
        "backwards": table.set_column(place, "event_ts", pa.array(backwards)),
        "thin": table.append_column("uih", table.column("label")),
    }
    for name, other in tables.items():
        pq.write_table(other, tmp_path / f"{name}.parquet")
        config = config_of(tmp_path, [tmp_path / f"{name}.parquet"])
        config = replace(config, layout=replace(config.layout, order="oldest-first"))
        found = []
        for engine in (EngineConfig(), ON_SPARK):
            with pytest.raises(ThinRowError) as caught:
                run_slim(config, engine)
            found.append((type(caught.value), str(caught.value)))
        assert found[0] == found[1]
