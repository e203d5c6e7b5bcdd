"""Loaders and worker processes on any number of ranks, against a real server."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.thin_rows import rows_table, write_rows
from support.workers import FORKSERVER
from support.worlds import built_world, running_server
from thinrow.client import Projection
from thinrow.client.torch import (
    LoaderConfig,
    RowFiles,
    ThinRowDataset,
    ThinRowLoader,
    TrackedLoader,
)
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.worlds import Running

ROWS, BATCH = 150, 8
PROJECTION = Projection(sequence_length=20)
CONFIG = LoaderConfig(batch_examples=BATCH, lookup_examples=20)
FULL = LoaderConfig(batch_examples=BATCH, lookup_examples=20, policies={"ERASED": "fail"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    world = built_world(tmp_path_factory.mktemp("world"))
    with running_server(world.store) as running:
        yield running


@pytest.fixture
def paths(tmp_path: Path) -> str:
    return write_rows(tmp_path, [ROWS], row_group=20)


def ids(batches: Any) -> list[list[int]]:  # noqa: ANN401
    return [batch.example_ids.tolist() for batch in batches]


def in_steps(ranks: list[list[list[int]]]) -> list[int]:
    """The rows of each step of all ranks, one after another."""
    steps = itertools.zip_longest(*ranks, fillvalue=[])
    return [row for step in steps for batch in step for row in batch]


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_ranks_and_workers_resume_what_other_ranks_and_workers_saved(
    server: Running, paths: str, steps: int
) -> None:
    """Two ranks of tracked loaders fetch ahead; three ranks of two workers, then one, go on."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def files(rank: int, ranks: int) -> RowFiles:
        return RowFiles(paths, window_rows=16, rank=rank, world_size=ranks)

    with ThinRowLoader(files(0, 1), server.address, PROJECTION, CONFIG) as loader:
        whole = in_steps([ids(loader)])
    seen: list[int] = []
    begun, states = [], []
    for rank in range(2):
        with ThinRowLoader(files(rank, 2), server.address, PROJECTION, CONFIG) as loader:
            tracked = TrackedLoader(loader)
            batches = list(itertools.islice(tracked, steps + 2))
            for _ in range(steps):
                tracked.mark_trained()
            begun.append(ids(batches[:steps]))
            states.append(json.loads(json.dumps(tracked.state_dict())))
    seen += in_steps(begun)
    begun, later = [], []
    for rank in range(3):
        dataset = ThinRowDataset(files(rank, 3), server.address, PROJECTION, CONFIG)
        dataset.load_state_dict(states[::-1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It sets what torch no longer has.
            workers = StatefulDataLoader(
                dataset, batch_size=None, num_workers=2, multiprocessing_context=FORKSERVER
            )
        begun.append(ids(itertools.islice(workers, 1)))
        later.append(json.loads(json.dumps(workers.state_dict())))
    seen += in_steps(begun)
    with ThinRowLoader(files(0, 1), server.address, PROJECTION, CONFIG) as loader:
        tracked = TrackedLoader(loader)
        tracked.load_state_dict(later)
        seen += in_steps([ids(tracked)])
    assert seen == whole


def test_states_loaded_before_the_rank_is_known_are_those_of_the_rank(
    server: Running, paths: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThinRowLoader(paths, server.address, PROJECTION, FULL) as loader:
        whole = in_steps([ids(itertools.islice(loader, 3))])
        state = loader.state_dict()
        rest = in_steps([ids(loader)])
    ranks = []
    for rank in range(2):
        with ThinRowLoader(paths, server.address, PROJECTION, FULL) as loader:
            loader.load_state_dict([state])
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "2")
            ranks.append(ids(loader))
            monkeypatch.undo()
    assert in_steps(ranks) == rest
    assert sorted(whole + rest) == list(range(ROWS))


@pytest.mark.parametrize("even_ends", ["drop", "pad"])
def test_ranks_have_as_many_batches_though_examples_are_skipped(
    server: Running,
    tmp_path: Path,
    even_ends: Any,  # noqa: ANN401
) -> None:
    table = rows_table(ROWS)
    windows = table["uih"].to_pylist()
    bad = {*range(BATCH, 2 * BATCH), 0, 77, ROWS - 1}  # The second batch has no other.
    for row in bad:
        windows[row]["start_ts"] = windows[row]["end_ts"] + 1
    place = table.column_names.index("uih")
    table = table.set_column(place, "uih", pa.array(windows, table.schema.field("uih").type))
    pq.write_table(table, tmp_path / "rows.parquet")
    config = LoaderConfig(
        batch_examples=BATCH,
        lookup_examples=20,
        even_ends=even_ends,
        policies={"INVALID": "skip"},
    )
    ranks = []
    for rank in range(4):
        files = RowFiles(tmp_path / "rows.parquet", order="files", rank=rank, world_size=4)
        with ThinRowLoader(files, server.address, PROJECTION, config) as loader:
            batches = list(loader)
            assert len(loader) == len(batches)
            ranks.append(ids(batches))
            empty = [batch for batch in batches if not len(batch)]
            assert len(empty) == (rank == 1)
            assert all(batch.to_njt("item_id").size(0) == len(batch) for batch in batches)
        dataset = ThinRowDataset(files, server.address, PROJECTION, config)
        workers = DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context=FORKSERVER
        )
        assert len(dataset) == len(workers) == len(batches)
        assert ids(workers) == ranks[-1]
    batches_max = -(-ROWS // (4 * BATCH)) if even_ends == "pad" else ROWS // (4 * BATCH)
    assert {len(rank) for rank in ranks} == {batches_max}
    rows = 4 * BATCH * batches_max
    assert in_steps(ranks) == [n % ROWS for n in range(rows) if n % ROWS not in bad]


def test_batches_of_similar_lengths_need_less_padding(server: Running, paths: str) -> None:
    padding, seen = {}, {}
    for order in ("rows", "lengths"):
        files = RowFiles(paths, order=order)
        with ThinRowLoader(files, server.address, PROJECTION, FULL) as loader:
            batches = list(loader)
        seen[order] = sorted(itertools.chain(*ids(batches)))
        padding[order] = sum(
            len(batch) * batch.max_seqlen - int(batch.offsets[-1]) for batch in batches
        )
    assert seen["rows"] == seen["lengths"] == list(range(ROWS))
    assert padding["lengths"] < padding["rows"]
