"""Backfill writes the same thin rows on Spark as without it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.built_worlds import Built, new_folder
from support.chosen_keys import narrow_hash
from support.past_requests import (
    PastRequests,
    backfill_of,
    content,
    expected_rows,
    past_requests,
    requested_world,
    rows_of,
)
from support.scenarios import events_table, examples
from support.spark_worlds import ON_SPARK
from support.task_hooks import Fault, Patch, hooked, new_traces
from support.task_sizes import SIZES, SMALL, Sizes
from support.worlds import World, as_of, new_world, some_events
from thinrow.cli.app import app
from thinrow.compaction.compact import compact
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_backfill
from thinrow.engines.spark.outputs import output_folder
from thinrow.errors import InputError, StoreFullError, ThinRowError, UsageError
from thinrow.jobs.config import BackfillConfig
from thinrow.remote.object_store import ObjectStore
from thinrow.store import user_texts
from typer.testing import CliRunner

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from support.object_storage import ObjectStorage
    from support.spark_cluster import Sparked

pytestmark = pytest.mark.timeout(1800)
THIN_ROWS = "thinrow.engines.spark.thin_rows"


def in_files(folder: Path, table: pa.Table, count: int, group_rows: int) -> Path:
    """Writes a table to files of some row groups, in Hive folders; their order is the table's."""
    for number in range(count):
        first, last = (table.num_rows * end // count for end in (number, number + 1))
        path = folder / f"day={number}" / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table.slice(first, last - first), path, row_group_size=group_rows)
    return folder


@given(past_requests(), SIZES, st.data(), st.randoms(use_true_random=False))
@examples(4)
def test_engines_write_the_same_rows_for_past_requests(
    local_spark: Sparked,
    requested: PastRequests,
    sizes: Sizes,
    data: st.DataObject,
    rng: random.Random,
) -> None:
    with new_folder() as folder:
        built = Built(folder / "built", requested.world)
        built.compact(requested.world.runs[0])
        world = requested.world
        events = rng.sample(world.events, len(world.events))
        table = events_table(events, world.schema, world.plain)
        files = rng.choice((1, 3))
        raw = in_files(folder / "events", table, files, rng.choice((1, 5, 1000)))
        requests = in_files(folder / "requests", requested.table, files, rng.choice((1, 3, 1000)))
        block_rows = data.draw(st.sampled_from((1 << 14, 2, 1)), "block")
        config = requested.config(requests, built.store, raw, folder / "one.parquet")
        one = run_backfill(config, EngineConfig())
        with sizes.applied(local_spark, {f"{THIN_ROWS}.BLOCK_ROWS": block_rows}):
            fleet = run_backfill(replace(config, rows=folder / "fleet"), ON_SPARK)
        shown = asdict(fleet) | {"row_bytes": one.row_bytes}
        assert shown == asdict(one)
        expected, found = pq.read_table(folder / "one.parquet"), rows_of(folder / "fleet")
        assert found.schema.equals(expected.schema)
        assert content(found) == content(expected)
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Requests, three days of events, a store of two of them, and its rows."""
    return requested_world(tmp_path_factory.mktemp("world"))


def test_a_store_and_rows_in_an_object_store(
    local_spark: Sparked, object_storage: ObjectStorage, world: World, tmp_path: Path
) -> None:
    store = ObjectStore(object_storage.new_url())
    rows = ObjectStore(object_storage.new_url())
    for day in (1, 2):
        events = [world.folder / f"events-{day}.parquet"]
        compact(replace(world.compaction(events, day), store=store.url))
    config = replace(backfill_of(world), store=store.url, rows=rows.url)
    with SMALL.applied(local_spark):
        report = run_backfill(config, ON_SPARK)
    keys = sorted(found.key for found in rows.listed())
    parts = [key for key in keys if key.endswith(".parquet")]
    assert keys == ["_SUCCESS", *parts]
    assert report.row_bytes == sum(found.bytes for found in rows.listed())
    for key in parts:
        content = rows.read(key, 1 << 20)
        assert content is not None
        (tmp_path / key).write_bytes(content.data)
    assert rows_of(tmp_path).equals(expected_rows(world))
    with pytest.raises(UsageError, match="There is something at s3://"):
        run_backfill(config, ON_SPARK)


def test_two_runs_never_mix_their_files(object_storage: ObjectStorage) -> None:
    store = ObjectStore(object_storage.new_url())
    with output_folder(store.url) as one, output_folder(store.url) as other:
        for output in (one, other):
            store.write(f"{output.scratch}/file.parquet", output.scratch.encode())
        store.write("_thinrow-publishing", b"another run")
        with pytest.raises(UsageError, match="There is something at"):
            one.publish(["file.parquet"])
        store.delete(["_thinrow-publishing"])
        one.publish(["file.parquet"])
        with pytest.raises(UsageError, match="There is something at"):
            other.publish(["file.parquet"])
    found = store.read("part-00000.parquet", 1 << 10)
    assert found is not None
    assert found.data == one.scratch.encode()
    assert sorted(each.key for each in store.listed()) == ["_SUCCESS", "part-00000.parquet"]


def test_a_full_disk_leaves_nothing(local_spark: Sparked, world: World, tmp_path: Path) -> None:
    move = "thinrow.engines.spark.outputs.shutil.move"
    full = Fault(move, "full_disk", new_traces(tmp_path / "faults"), at_most=1000)
    config = replace(backfill_of(world), rows=tmp_path / "rows")
    with hooked(local_spark.hooks, full), pytest.raises(StoreFullError, match="is full"):
        run_backfill(config, ON_SPARK)
    assert full.count
    assert [path.name for path in tmp_path.iterdir()] == ["faults"]


@pytest.mark.usefixtures("local_spark")
def test_mistakes_are_reported_as_without_spark(world: World, tmp_path: Path) -> None:
    """Too late requests, lost columns, events of another store, and outputs that exist."""
    config = backfill_of(world)
    late = pa.table({"user_id": [1], "request_ts": [as_of(9)]})
    pq.write_table(late, tmp_path / "late.parquet")
    pq.write_table(late.select(["user_id"]), tmp_path / "timeless.parquet")
    pq.write_table(some_events(first_day=5), tmp_path / "later.parquet")
    mistakes = [
        replace(config, requests=tmp_path / "late.parquet", cadence_ms=7),
        replace(config, requests=tmp_path / "timeless.parquet"),
        replace(config, events=tmp_path / "later.parquet"),
        replace(config, store=tmp_path / "nothing"),
    ]
    for mistake in mistakes:
        found = []
        for engine, rows in ((EngineConfig(), "one.parquet"), (ON_SPARK, "rows")):
            with pytest.raises(ThinRowError) as caught:
                run_backfill(replace(mistake, rows=tmp_path / rows), engine)
            found.append((type(caught.value), str(caught.value)))
        assert found[0] == found[1]
    names = {"late.parquet", "later.parquet", "timeless.parquet"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with pytest.raises(UsageError, match="There is something at"):
        run_backfill(replace(config, rows=tmp_path), ON_SPARK)
    with pytest.raises(UsageError, match="without --engine spark"):
        run_backfill(replace(config, rows="s3://bucket/rows"), EngineConfig())


def test_a_request_never_gets_the_history_of_a_user_of_the_same_key(
    local_spark: Sparked, tmp_path: Path
) -> None:
    world = new_world(tmp_path, '[item]\nitem_id = "int64"\n[user]\nid = "string"\n')
    raw = pa.table({"user_id": ["ab", "b"], "event_ts": [as_of(0)] * 2, "item_id": [1, 2]})
    requests = pa.table({"user_id": ["ac", "ab"], "request_ts": [as_of(1) + 5] * 2})
    path = world.write("requests.parquet", requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_texts, "text_hash", narrow_hash)
        world.compact(raw, 1)
        config = BackfillConfig(
            requests=path,
            store=world.store,
            events=[world.folder / "events-1.parquet"],
            rows=tmp_path / "one.parquet",
        )
        run_backfill(config, EngineConfig())
        with hooked(local_spark.hooks, Patch("thinrow.store.user_texts.text_hash", narrow_hash)):
            run_backfill(replace(config, rows=tmp_path / "rows"), ON_SPARK)
            pq.write_table(
                requests.rename_columns(["user_id", "event_ts"]).append_column("item_id", [[1, 2]]),
                tmp_path / "other.parquet",
            )
            others = replace(config, events=[tmp_path / "other.parquet"], rows=tmp_path / "others")
            with pytest.raises(InputError, match="users 'ab' and 'ac' have the same key"):
                run_backfill(others, ON_SPARK)
    rows = rows_of(tmp_path / "rows")
    assert rows.equals(pq.read_table(tmp_path / "one.parquet"))
    digests = [row["digest"] for row in rows["uih"].to_pylist()]
    assert digests[0] != digests[1]


@pytest.mark.usefixtures("local_spark")
def test_the_command_names_the_folder(world: World, tmp_path: Path) -> None:
    arguments = ["backfill", world.folder / "requests.parquet", "--store", world.store]
    arguments += ["--events", world.folder / "events-2.parquet", "--out", tmp_path / "rows"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--engine", "spark"])
    assert result.exit_code == 0, result.output
    assert "thin rows" in result.output
    assert rows_of(tmp_path / "rows").equals(expected_rows(world))
