"""Verify reports the same on Spark as without it."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.past_requests import requested_world
from support.spark_worlds import ON_SPARK
from support.worlds import World, running_server
from thinrow.cli.app import app
from thinrow.client import Projection, connect
from thinrow.core.engine_config import EngineConfig
from thinrow.engines.choice import run_verify
from thinrow.errors import InputError, UsageError
from thinrow.jobs.config import FatLayoutConfig, VerifyConfig
from thinrow.jobs.connecting import Access
from thinrow.jobs.materialize import materialize
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thinrow.jobs.compared_rows import VerifyReport

pytestmark = [
    pytest.mark.usefixtures("local_spark"),
    pytest.mark.server,
    pytest.mark.timeout(1800),
]
RANGE_ROWS = "thinrow.engines.spark.verify.RANGE_ROWS"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Thin rows in a folder of files, and the fat rows of them, which differ in places."""
    world = requested_world(tmp_path_factory.mktemp("world"))
    rows = world.folder / "one.parquet"
    fat = world.folder / "fat.parquet"
    with connect(world.store) as client:
        materialize(client, rows, Projection(), fat)
    split(pq.read_table(rows), world.folder / "rows", (0, 150, 151, 151, 400), 40)
    return world


def split(table: pa.Table, folder: Path, bounds: tuple[int, ...], group_rows: int) -> None:
    """Writes a table to files whose rows end at some bounds."""
    folder.mkdir(exist_ok=True)
    for number, (first, last) in enumerate(pairwise(bounds)):
        part = table.slice(first, last - first)
        pq.write_table(part, folder / f"{number}.parquet", row_group_size=group_rows)


def altered(world: World, rows: list[int]) -> Path:
    """Writes fat rows of which some differ, in several files."""
    table = pq.read_table(world.folder / "fat.parquet")
    columns = {name: table.column(name).to_pylist() for name in ("item_id", "rating")}
    for row in rows:
        if columns["item_id"][row]:
            columns["item_id"][row][-1] += 1
            columns["rating"][row] = [None, *columns["rating"][row][1:], 2]
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.field(name).type))
    folder = world.folder / f"fat-{len(rows)}"
    split(table, folder, (0, 90, 400), 33)
    return folder


def reports(world: World, fat: Path, server: str | Path) -> list[VerifyReport]:
    """Returns the reports of both engines, with small ranges of rows."""
    config = VerifyConfig(rows=world.folder / "rows", server=server, against=fat)
    with mock.patch(RANGE_ROWS, 60):
        return [
            run_verify(config, FatLayoutConfig(), Access(), engine)
            for engine in (EngineConfig(), ON_SPARK)
        ]


@pytest.mark.parametrize("rows", [[], [3, 399], list(range(100, 300, 2))])
def test_engines_report_the_same(world: World, rows: list[int]) -> None:
    one, fleet = reports(world, altered(world, rows), world.store)
    assert asdict(fleet) == asdict(one)
    assert (one.rows, one.rows_that_differ) == (400, len(rows))
    numbers = [found.row for found in one.differences]
    assert numbers == sorted(numbers)


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[str]:
    with running_server(world.store) as running:
        yield running.address


def test_tasks_use_servers(world: World, server: str) -> None:
    one, fleet = reports(world, altered(world, [7]), server)
    assert asdict(fleet) == asdict(one)
    assert one.rows_that_differ == 1


def test_the_command_fails_where_rows_differ(world: World, server: str) -> None:
    arguments = ["verify", world.folder / "rows", "--server", server, "--engine", "spark"]
    for rows, code in (([], 0), ([3, 399], 1)):
        command = [*map(str, arguments), "--against", str(altered(world, rows))]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == code, result.output


def test_mistakes_are_reported_as_without_spark(world: World, tmp_path: Path) -> None:
    """Other rows, rows in another order, lists in another order, and a store at a URL."""
    fat = pq.read_table(world.folder / "fat.parquet")
    swapped = fat.take([*range(300), 301, 300, *range(302, 400)])
    reverse = [column[::-1] for column in fat.column("event_ts").to_pylist()]
    place = fat.column_names.index("event_ts")
    backwards = fat.set_column(place, "event_ts", pa.array(reverse, fat.field(place).type))
    for name, table in (("fewer", fat.slice(1)), ("swapped", swapped), ("backwards", backwards)):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path)
        found = []
        for engine in (EngineConfig(), ON_SPARK):
            config = VerifyConfig(rows=world.folder / "rows", server=world.store, against=path)
            with mock.patch(RANGE_ROWS, 60), pytest.raises(InputError) as caught:
                run_verify(config, FatLayoutConfig(), Access(), engine)
            found.append(str(caught.value))
        assert found[0] == found[1]
    config = replace(config, server="s3://bucket/store")
    with pytest.raises(UsageError, match="every task would have to copy"):
        run_verify(config, FatLayoutConfig(), Access(), ON_SPARK)
