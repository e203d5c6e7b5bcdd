"""Resuming: from any batch, any number of times, with any loader, as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scenarios import examples
from support.thin_rows import rows_table, shown, write_rows
from support.worlds import SCHEMA, built_world, new_world, running_server, some_events
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowDataset, ThinRowLoader
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.worlds import Running, World

PROJECTION = Projection(sequence_length=20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Running]:
    with running_server(world.store) as running:
        yield running


def without_warning(make: Callable[[], Any]) -> Any:  # noqa: ANN401
    """torchdata sets what torch no longer has."""
    with pytest.warns(UserWarning, match="set_vital"):
        return make()


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(state))
    return copied


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=3),
    st.sampled_from(("users", "rows", "files")),
    st.integers(1, 60),
    st.integers(1, 20),
    st.sampled_from((None, 1, 40, 100)),
    st.integers(1, 30),
    st.booleans(),
    st.lists(st.integers(0, 12), min_size=1, max_size=3),
)
@examples(12)
def test_a_run_in_parts_is_the_run(
    server: Running,
    counts: list[int],
    order: str,
    window_rows: int,
    batch_examples: int,
    batch_events: int | None,
    lookup_examples: int,
    dataset: bool,
    stops: list[int],
) -> None:
    config = LoaderConfig(
        batch_examples=batch_examples, batch_events=batch_events, lookup_examples=lookup_examples
    )
    with TemporaryDirectory() as folder:
        paths = write_rows(Path(folder), counts, row_group=11)

        def run(stops: list[int]) -> list[Any]:
            """Two epochs; stopped and resumed after that many batches each time."""
            batches: list[Any] = []
            state: dict[str, Any] | None = None
            # A pass that is left with its last batch is over, too.
            for stop in [*stops, None]:
                files = RowFiles(paths, order=order, window_rows=window_rows)  # type: ignore[arg-type]
                arguments = (files, server.address, PROJECTION, config)
                loader: Any = (
                    without_warning(
                        lambda: StatefulDataLoader(ThinRowDataset(*arguments), batch_size=None)  # noqa: B023
                    )
                    if dataset
                    else ThinRowLoader(*arguments)
                )
                if state is not None:
                    loader.load_state_dict(state)
                    assert through_json(loader.state_dict()) == state or dataset
                taken = 0
                while sum(map(len, batches)) < 2 * sum(counts) and taken != stop:
                    for batch in loader:
                        batches.append(shown(batch))
                        taken += 1
                        if taken == stop:
                            break
                state = through_json(loader.state_dict())
                if not dataset:
                    loader.close()
            return batches

        from torchdata.stateful_dataloader import StatefulDataLoader

        whole = run([])
        assert sorted(example[0] for batch in whole for example in batch) == sorted(
            2 * list(range(sum(counts)))
        )
        assert run(stops) == whole


WORKERS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowDataset
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

paths, uneven, server = sys.argv[1:]
results = {}


def loader(kind, batch_events=None, files=paths, workers=2, **options):
    config = LoaderConfig(batch_examples=8, batch_events=batch_events)
    dataset = ThinRowDataset(files, server, Projection(), config)
    return dataset, kind(dataset, batch_size=None, num_workers=workers, **options)


def ids(loader, stop=None):
    found = []
    for number, batch in enumerate(loader, start=1):
        found += batch.example_ids.tolist()
        if number == stop:
            break
    return found


dataset, plain = loader(DataLoader)
results["epochs"] = []
for epoch in (0, 1):
    dataset.set_epoch(epoch)
    results["epochs"].append(ids(plain))
_, persistent = loader(StatefulDataLoader, persistent_workers=True)
results["persistent"] = [ids(persistent), ids(persistent)]
_, left = loader(DataLoader, persistent_workers=True)
results["left"] = [ids(left, 2), ids(left)]

# In parts, by events.
results["whole"] = ids(loader(StatefulDataLoader, 90)[1])
results["parts"], state = [], None
for stop in (3, 2, 1, None):
    _, part = loader(StatefulDataLoader, 90)
    if state is not None:
        part.load_state_dict(state)
        # A second resume must not start from zero.
        assert part.state_dict() is not None
    results["parts"] += ids(part, stop)
    state = json.loads(json.dumps(part.state_dict()))
results["state_bytes"] = len(json.dumps(state))

# One worker has ended its shard, the other has not: the first must not begin the next epoch.
uneven = RowFiles(uneven, order="files")
results["uneven"], state = [], None
for stop in (15, 5, None):
    _, part = loader(StatefulDataLoader, 90, uneven)
    if state is not None:
        part.load_state_dict(state)
    results["uneven"] += ids(part, stop)
    state = json.loads(json.dumps(part.state_dict()))

# From the end of an epoch, the next one.
_, first = loader(StatefulDataLoader, persistent_workers=True)
ids(first)
_, second = loader(StatefulDataLoader, persistent_workers=True)
second.load_state_dict(json.loads(json.dumps(first.state_dict())))
results["ended"] = ids(second)

# Any number of workers starts at the place that any other has come to.
results["elastic"], state = [], None
for workers, stop in ((3, 4), (1, 1), (0, 2), (4, None)):
    # This process has used gRPC after the third part, so it must not fork any more.
    started = {"multiprocessing_context": "forkserver"} if workers == 4 else {}
    dataset, part = loader(StatefulDataLoader, workers=workers, **started)
    if state is not None:
        dataset.load_state_dict(state)
    results["elastic"] += ids(part, stop)
    state = json.loads(json.dumps(part.state_dict()))
print(json.dumps(results))
"""


def test_worker_processes_keep_to_their_epochs(tmp_path: Path, server: Running) -> None:
    paths = write_rows(tmp_path, [70], row_group=7)
    # Half of the rows have no events, so that they make far fewer batches than the others.
    uneven = tmp_path / "uneven.parquet"
    pq.write_table(
        pa.concat_tables([rows_table(35, users=(99,)), rows_table(35, users=(1,))]), uneven
    )
    run = subprocess.run(
        [sys.executable, "-c", WORKERS, paths, str(uneven), server.address],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(run.stdout)
    first, second = result["epochs"]
    assert sorted(first) == sorted(second) == list(range(70))
    assert first != second
    assert result["persistent"] == [first, second]
    assert result["left"] == [first[:16], first]
    assert sorted(result["uneven"]) == list(range(70))
    assert result["ended"] == second
    assert sorted(result["whole"]) == list(range(70))
    assert result["parts"] == result["whole"]
    # All that is kept of a place: a handful of numbers and names per worker.
    assert result["state_bytes"] < 2000
    assert result["elastic"] == first


LIBRARIES = """
import sys
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, ThinRowDataset
from torch.utils.data import DataLoader


def libraries(_):
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return {file for file in files if file is not None and file.endswith(".so")}


rows, server = sys.argv[1:]
dataset = ThinRowDataset(rows, server, Projection(), LoaderConfig(transform=libraries))
loaded = libraries(None)
for in_worker in DataLoader(dataset, batch_size=None, num_workers=1):
    print(sorted(in_worker - loaded))
"""


@pytest.mark.parametrize("in_process", [False, True])
def test_forked_workers_load_no_library_of_their_own(
    tmp_path: Path, server: Running, in_process: bool
) -> None:
    paths = write_rows(tmp_path, [5])
    target = server.address
    if in_process:
        coded = 'brand = { type = "string", codes = "vocabulary" }'
        world = new_world(tmp_path, SCHEMA.replace('brand = "string"', coded))
        world.compact(some_events(), 3)
        target = str(world.store)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIBRARIES, paths, target],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert run.stdout == "[]\n"


def test_workers_may_be_spawned(tmp_path: Path, server: Running) -> None:
    paths = write_rows(tmp_path, [50])
    dataset = ThinRowDataset(paths, server.address, PROJECTION)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert sorted(n for batch in loader for n in batch.example_ids.tolist()) == list(range(50))


def test_a_dataset_alone_resumes(tmp_path: Path, server: Running) -> None:
    paths = write_rows(tmp_path, [50])
    config = LoaderConfig(batch_examples=8)

    def dataset() -> ThinRowDataset:
        return ThinRowDataset(paths, server.address, PROJECTION, config)

    whole = [shown(batch) for batch in dataset()]
    first = dataset()
    iterator = iter(first)
    begun = [shown(next(iterator)) for _ in range(3)]
    state = through_json(first.state_dict())
    second = dataset()
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert begun + [shown(batch) for batch in second] == whole
    assert second.state_dict()["epoch"] == 1
    # Left in the middle, an iteration starts its epoch again.
    iterator = iter(second)
    again = shown(next(iterator))
    iterator.close()  # type: ignore[attr-defined]
    assert shown(next(iter(second))) == again
    second.set_epoch(0)
    assert [shown(batch) for batch in second] == whole
