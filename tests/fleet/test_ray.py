"""Histories through Ray Data: the loader's batches, each example once, also after a restart."""

# ruff: noqa: ANN401 - Ray has no types

from __future__ import annotations

import json
import random
import re
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.paths import ROOT
from support.thin_rows import rows_table, shown, write_rows
from support.worlds import World, built_world
from thinrow.client import Projection
from thinrow.client.arrow import ReadConfig
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.errors import InputError, UsageError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

ray = pytest.importorskip("ray.data", reason="`make ray` installs Ray")
from thinrow.client.ray import (  # noqa: E402
    ExampleIds,
    LookupPool,
    RayBatches,
    ScalingLimits,
    ThinRowDatasource,
    wanted_actors,
)

pytestmark = pytest.mark.filterwarnings("default")
STORE_BYTES = 200 << 20
PAGE = ROOT / "docs/guides/engines.md"


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    import ray as whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        whole.init(
            num_cpus=2,  # with one it hangs
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=f"/tmp/ray-{random.getrandbits(32):x}",  # sockets need short paths
        )
        yield whole
        whole.shutdown()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


def examples(batches: Any) -> list[Any]:
    return sorted((one for batch in batches for one in shown(batch)), key=lambda one: one[0])


@pytest.mark.parametrize(
    "projection",
    [Projection(), Projection(20, traits=("item_id", "brand", "rating"))],
    ids=["every trait", "some traits"],
)
def test_batches_are_the_loaders_and_a_resumed_job_skips_what_is_done(
    session: Any, world: World, tmp_path: Path, projection: Projection
) -> None:
    del session
    rows = write_rows(tmp_path, [120, 80], row_group=40)
    config = LoaderConfig(batch_examples=16)
    lookups = ReadConfig(lookup_rows=25)
    server_config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(server_config) as server:
        with ThinRowLoader(
            RowFiles(rows, order="files"), server.address, projection, config
        ) as loader:
            expected = examples(loader)

        def dataset(done: ExampleIds | None = None) -> Any:
            source = ThinRowDatasource(rows, server.address, projection, done=done, config=lookups)
            return ray.read_datasource(source, override_num_blocks=4)

        whole = RayBatches(dataset(), config)
        assert examples(whole) == expected
        assert whole.done.to_ranges() == [[0, 200]]

        first = RayBatches(dataset(), config)
        iterator = iter(first)
        seen = list(islice(iterator, 5))
        del iterator
        assert len(first.done) == 64  # the fifth was not trained on
        done = ExampleIds(first.done.to_ranges())
        resumed = RayBatches(dataset(done), config, done)
        assert examples([*seen[:4], *resumed]) == expected
        assert len(resumed.done) == 200


def test_rows_with_views_are_resumed(world: World, tmp_path: Path) -> None:
    """Arrow itself selects no rows of views."""
    rows = rows_table(20).append_column("query", pa.array(["so"] * 20, pa.string_view()))
    pq.write_table(rows, tmp_path / "rows.parquet")
    done = ExampleIds([[3, 9]])
    source = ThinRowDatasource(tmp_path, world.store, Projection(5), done=done)
    [task] = source.get_read_tasks(1)
    [block] = task()
    assert block["example_ids"][0].as_py() == [*range(3), *range(9, 20)]


def test_mistakes_are_found_before_any_task(world: World, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [3])
    with pytest.raises(InputError, match="no column 'x'"):
        ThinRowDatasource(rows, world.store, Projection(), columns=["x"])
    with pytest.raises(InputError):
        ThinRowDatasource(str(tmp_path / "none.parquet"), world.store, Projection())
    with pytest.raises(UsageError, match="neither an address nor a folder"):
        ThinRowDatasource(rows, "nowhere", Projection())


def test_ranges_are_a_set_of_ids() -> None:
    rng = random.Random(0)
    known, ids = ExampleIds(), set[int]()
    for _ in range(50):
        some = [rng.randrange(200) for _ in range(rng.randrange(12))]
        known.add(some)
        ids.update(some)
        assert len(known) == len(ids)
        assert np.flatnonzero(known.contains(np.arange(220))).tolist() == sorted(ids)
        again = ExampleIds(known.to_ranges())
        assert again.to_ranges() == known.to_ranges()
    for wrong in ([[2, 1]], [[-1, 2]], [[1]], ["ab"]):
        with pytest.raises(UsageError):
            ExampleIds(wrong)  # type: ignore[arg-type]


def test_the_pool_grows_on_starvation_and_shrinks_on_waste() -> None:
    limits = ScalingLimits(actors_min=1, actors_max=16)
    # The trainer is the slow side: never more actors, whatever else.
    for actors in range(1, 17):
        for wasted in (0.0, 0.2, 0.5, 0.99):
            assert wanted_actors(actors, 0.0, wasted, limits) <= actors
            assert wanted_actors(actors, 0.5, wasted, limits) >= actors
    assert wanted_actors(4, 0.5, 0.0, limits) == 8
    assert wanted_actors(4, 0.03, 0.0, limits) == 5
    assert wanted_actors(4, 0.99, 0.0, limits) == 8
    assert wanted_actors(16, 0.9, 0.0, limits) == 16
    assert wanted_actors(10, 0.0, 0.5, limits) == 6
    assert wanted_actors(1, 0.0, 0.99, limits) == 1
    assert wanted_actors(4, 0.5, 0.5, limits) == 4
    with pytest.raises(UsageError):
        ScalingLimits(actors_min=3, actors_max=2)
    # A trainer that needs what five actors do ends at about five, from either side.
    for actors in (1, 16):
        for _ in range(10):
            starved, wasted = max(0.0, 1 - actors / 5), max(0.0, 1 - 5 / actors)
            actors = wanted_actors(actors, starved, wasted, limits)
        assert 5 <= actors <= 7


def test_the_pool_delivers_each_example_once_and_follows_the_trainer(
    session: Any, world: World, tmp_path: Path
) -> None:
    del session
    rows = write_rows(tmp_path, [120, 80], row_group=10)
    config = LoaderConfig(batch_examples=16)
    server_config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(server_config) as server:
        source = ThinRowDatasource(rows, server.address, Projection())
        with ThinRowLoader(
            RowFiles(rows, order="files"), server.address, Projection(), config
        ) as loader:
            expected = examples(loader)
        limits = ScalingLimits(actors_max=2)
        pool = LookupPool(source, limits=limits, tasks=20, actor_cpus=0, interval_s=0)
        assert examples(RayBatches(pool, config)) == expected
        assert pool.sizes[0] == 1
        assert max(pool.sizes) == 2  # this trainer does nothing but wait
        assert 0 < pool.starvation.shares["lookup"] <= 1

        halves = [
            RayBatches(LookupPool(source, tasks=20, rank=rank, world_size=2, actor_cpus=0), config)
            for rank in range(2)
        ]
        assert examples(batch for half in halves for batch in half) == expected


def test_a_pool_shrinks_while_the_trainer_is_the_slow_side(
    session: Any, world: World, tmp_path: Path
) -> None:
    del session
    source = ThinRowDatasource(write_rows(tmp_path, [400], row_group=10), world.store, Projection())
    limits = ScalingLimits(actors_min=1, actors_max=3)
    pool = LookupPool(source, limits=limits, tasks=40, actor_cpus=0, interval_s=0.2)
    place = 0
    for batch in RayBatches(pool, LoaderConfig(batch_examples=10)):
        place += len(batch)
        if max(pool.sizes) > 1:  # once it has grown, the trainer has much to do
            time.sleep(0.1)
    assert place == 400
    grown = pool.sizes.index(max(pool.sizes))
    assert pool.sizes[grown] > 1
    assert min(pool.sizes[grown:]) < pool.sizes[grown]


def test_programs_of_the_guide(
    session: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del session
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows", [40, 30])
    section = PAGE.read_text(encoding="utf-8").split("## Ray Data\n")[1]
    programs = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(programs) == 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    server_config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(server_config) as server:
        for program in programs:
            exec(program.replace("localhost:7878", server.address), names)
    assert names["state"] == names["done"].to_ranges() == [[0, 70]]
    assert names["batches"].done.to_ranges() == [[0, 70]]
    with names["result"].checkpoint.as_directory() as folder:
        assert json.loads((Path(folder) / "done.json").read_text()) == [[0, 70]]
