"""Trainers that count steps, that fetch batches ahead, or both: no batch is lost or comes twice."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.thin_rows import rows_table, write_rows
from support.workers import FORKSERVER
from support.worlds import built_world, running_server
from thinrow.client import Projection
from thinrow.client.torch import (
    LoaderConfig,
    RowFiles,
    TensorBatch,
    ThinRowDataset,
    ThinRowLoader,
    TrackedLoader,
)
from thinrow.client.torch.tracked import UNMARKED_MAX
from thinrow.errors import UsageError
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from support.worlds import Running

ROWS = 50
CONFIG = LoaderConfig(batch_examples=8, lookup_examples=20)
BATCHES = 7
"""Batches of an epoch."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    world = built_world(tmp_path_factory.mktemp("world"))
    with running_server(world.store) as running:
        yield running


@pytest.fixture
def make(tmp_path: Path, server: Running) -> Callable[..., Any]:
    """Makes loaders over the same rows."""
    paths = write_rows(tmp_path, [ROWS], row_group=10)

    def make(kind: str | int = "loader", config: LoaderConfig = CONFIG, files: Any = paths) -> Any:  # noqa: ANN401
        """`kind` is "loader", "dataset", or the number of workers of a StatefulDataLoader."""
        arguments = (files, server.address, Projection(sequence_length=20), config)
        if kind == "loader":
            return ThinRowLoader(*arguments)
        if kind == "dataset":
            return ThinRowDataset(*arguments)
        with warnings.catch_warnings():
            # It sets what torch no longer has.
            warnings.simplefilter("ignore")
            from torchdata.stateful_dataloader import StatefulDataLoader

            return StatefulDataLoader(
                ThinRowDataset(*arguments),
                batch_size=None,
                num_workers=int(kind),
                multiprocessing_context=FORKSERVER if kind else None,
            )

    return make


def ids(batches: Iterable[Any]) -> list[list[int]]:
    return [batch.example_ids.tolist() for batch in batches]


def copied(state: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(state))
    return result


def ahead(loader: Iterable[Any], batches: int) -> Iterator[Any]:
    """Fetches this number of batches ahead, as Lightning's _PrefetchDataFetcher does with one."""
    iterator = iter(loader)
    fetched = deque(itertools.islice(iterator, batches))
    while fetched:
        batch = fetched.popleft()
        fetched.extend(itertools.islice(iterator, 1))
        yield batch


# Steps are counted, so that no pass is seen to end.


@pytest.mark.parametrize("kind", ["loader", "dataset", 0])
def test_counted_steps_make_whole_epochs(make: Callable[..., Any], kind: str | int) -> None:
    expected = make(kind)
    epochs = [ids(expected) for _ in range(3)]
    assert [sorted(itertools.chain(*epoch)) for epoch in epochs] == 3 * [list(range(ROWS))]
    assert epochs[0] != epochs[1] != epochs[2]
    counted = make(kind)
    assert [ids(itertools.islice(counted, BATCHES)) for _ in range(3)] == epochs


@pytest.mark.parametrize("kind", ["loader", "dataset", 0, 1])
def test_whole_passes_are_the_same_after_one_that_was_left(
    make: Callable[..., Any], kind: str | int
) -> None:
    """Lightning tries two batches of a validation before the first epoch."""
    [expected] = [ids(loader) for loader in [make(kind)]]
    loader = make(kind, LoaderConfig(batch_examples=8, lookup_examples=20, whole_passes=True))
    assert ids(itertools.islice(loader, 2)) == expected[:2]
    assert [ids(loader), ids(itertools.islice(loader, BATCHES)), ids(loader)] == 3 * [expected]


def test_a_loader_names_the_epoch_of_the_next_batch(make: Callable[..., Any]) -> None:
    with make() as loader:
        first = ids(itertools.islice(loader, BATCHES))
        assert loader.epoch == 1
        loader.set_epoch(0)
        assert ids(itertools.islice(loader, BATCHES)) == first
        # Named by its number, as trainers do before each pass.
        loader.set_epoch(1)
        second = ids(itertools.islice(loader, BATCHES))
        assert second != first
        assert sorted(itertools.chain(*second)) == list(range(ROWS))


@pytest.mark.parametrize("kind", ["loader", 0, 1])
def test_a_loader_follows_a_rank_that_is_known_later(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: str | int
) -> None:
    """Lightning makes its processes, and their ranks, after the loader."""
    loaders = [make(kind) for _ in range(2)]
    seen: list[int] = []
    for rank, loader in enumerate(loaders):
        (loader if kind == "loader" else loader.dataset).set_epoch(1)
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        seen += itertools.chain(*ids(loader))
        if kind == "loader":
            assert loader.state_dict()["epoch"] == 2
        monkeypatch.undo()
    assert sorted(seen) == list(range(ROWS))
    assert seen != list(itertools.chain(*ids(make(kind))))


def as_a_fork_server_left_it(_: int) -> None:
    """Gives a worker the variables of a trainer that started the fork server earlier."""
    os.environ.update(RANK="0", WORLD_SIZE="2")


@pytest.mark.parametrize("rank", ["0", "1", None])
def test_workers_have_the_rank_of_their_trainer_whatever_their_environment(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rank: str | None
) -> None:
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
    expected = ids(make("dataset"))
    workers = DataLoader(
        make("dataset"),
        batch_size=None,
        num_workers=1,
        multiprocessing_context=FORKSERVER,
        worker_init_fn=as_a_fork_server_left_it,
    )
    assert ids(workers) == expected


@pytest.mark.parametrize(
    "config",
    [
        LoaderConfig(batch_examples=8, drop_last=True),
        # The last rows are left out: no batch says that the epoch is over.
        LoaderConfig(batch_examples=8, policies={"INVALID": "skip"}),
    ],
)
def test_rows_left_out_at_the_end_make_no_epoch(
    make: Callable[..., Any], tmp_path: Path, config: LoaderConfig
) -> None:
    table = rows_table(ROWS)
    if not config.drop_last:
        bad = table.slice(0, 3)
        windows = [
            {**window, "start_ts": window["end_ts"] + 1} for window in bad["uih"].to_pylist()
        ]
        bad = bad.set_column(4, "uih", pa.array(windows, table.schema.field("uih").type))
        table = pa.concat_tables([table, bad])
    path = tmp_path / "ends.parquet"
    pq.write_table(table, path)
    expected = make(config=config, files=RowFiles(path, order="files"))
    epoch = ids(expected)
    counted = make(config=config, files=RowFiles(path, order="files"))
    for number in range(3):
        assert ids(itertools.islice(counted, len(epoch))) == epoch
        assert counted.state_dict()["epoch"] == number


@pytest.mark.parametrize("kind", ["loader", "dataset", 0, 2])
def test_a_state_of_the_last_batch_goes_on_with_the_next_epoch(
    make: Callable[..., Any], kind: str | int
) -> None:
    expected = make()
    epochs = [ids(expected) for _ in range(3)]
    first = make(kind)
    states = [copied(first.state_dict()) for _ in zip(range(BATCHES), first, strict=False)]
    second = make(kind)
    second.load_state_dict(states[-1])
    assert ids(second) == epochs[1]
    if kind != 2:  # New worker processes begin with the epoch of the dataset.
        assert ids(second) == epochs[2]
    # Before the last batch, workers that have none left wait for the one that has it.
    last = make(kind)
    last.load_state_dict(states[-2])
    assert ids(last) == epochs[0][-1:]
    if isinstance(kind, int):
        # The dataset alone has the place for other workers.
        dataset = make("dataset")
        dataset.load_state_dict(states[-1])
        workers = DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context=FORKSERVER
        )
        assert ids(workers) == epochs[1]


def test_a_state_of_the_last_batch_goes_on_as_a_rank_that_is_known_later(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    for _ in zip(range(BATCHES), first, strict=False):
        state = copied(first.state_dict())
    seen: list[int] = []
    for rank in ("0", "1"):
        second = make()
        second.load_state_dict(state)
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        seen += itertools.chain(*ids(second))
        assert second.epoch == 2
        monkeypatch.undo()
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.parametrize("kind", ["loader", 0, 2])
def test_of_an_epoch_named_after_its_last_batch_nothing_is_left(
    make: Callable[..., Any], kind: str | int
) -> None:
    """A trainer that saves its own epoch number with every step gets no batch twice."""

    def run(state: dict[str, Any] | None, begin: int, stop: int) -> dict[str, Any]:
        loader = make(kind)
        if state is not None:
            loader.load_state_dict(state)
        for epoch in range(begin, 3):
            (loader if kind == "loader" else loader.dataset).set_epoch(epoch)
            for batch in loader:
                seen.append((epoch, batch.example_ids.tolist()))
                state = copied(loader.state_dict())
                if len(seen) == stop:
                    return {"state": state, "epoch": epoch}
        return {}

    seen: list[Any] = []
    run(None, 0, -1)
    expected, seen = seen, []
    batches = sum(epoch == 0 for epoch, _ in expected)
    saved = run(None, 0, batches)
    run(saved["state"], saved["epoch"], -1)
    assert seen == expected


# A loader has a length where its batches are known in advance.


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_examples", [7, 25, 60])
def test_a_length_is_the_number_of_batches(
    make: Callable[..., Any], batch_examples: int, drop_last: bool
) -> None:
    config = LoaderConfig(
        batch_examples=batch_examples, drop_last=drop_last, policies={"ERASED": "pass"}
    )
    with make(config=config) as loader:
        assert len(loader) == len(ids(loader)) == len(ids(loader))
        assert len(TrackedLoader(loader)) == len(loader)
        next(iter(loader), None)
        assert f"{ROWS} rows" in repr(loader)
        assert f"batches of {batch_examples} examples on cpu" in repr(loader)


def test_without_a_length_a_loader_says_why(make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="ERASED are left out"):
        len(make())
    config = LoaderConfig(batch_events=100, policies={"ERASED": "pass"})
    with pytest.raises(TypeError, match="With batch_events"):
        len(make(config=config))


@pytest.mark.parametrize("kind", ["loader", 0, 1])
def test_a_transform_makes_what_the_loader_delivers(
    make: Callable[..., Any], kind: str | int
) -> None:
    config = LoaderConfig(batch_examples=8, transform=as_dict)
    expected = [{**batch, "examples": len(batch)} for batch in make(kind)]
    for batch, wanted in zip(make(kind, config), expected, strict=True):
        assert batch.keys() == wanted.keys()
        assert {"offsets", "item_id", "label", "user_id"} < batch.keys()
        assert batch["item_id"].tolist() == wanted["item_id"].tolist()
        assert batch["examples"] == len(batch["label"])


def as_dict(batch: TensorBatch) -> dict[str, Any]:
    return {**batch, "examples": len(batch)}


# Batches are fetched ahead.


@pytest.mark.parametrize("kind", ["loader", 0, 2])
@pytest.mark.parametrize("fetched", [1, 3])
def test_a_tracked_state_is_after_the_last_batch_trained_on(
    make: Callable[..., Any], kind: str | int, fetched: int
) -> None:
    """Each trainer resumes from the state saved with each batch, that of the last one included."""

    def run(state: dict[str, Any] | None) -> tuple[list[Any], list[dict[str, Any]]]:
        tracked = TrackedLoader(make(kind))
        if state is not None:
            tracked.load_state_dict(copied(state))
        seen, states = [], [copied(tracked.state_dict())]
        begun = states[0]
        for batch in ahead(tracked, fetched):
            seen.append(batch.example_ids.tolist())
            tracked.mark_trained()
            states.append(copied(tracked.state_dict()))
            if kind == "loader":
                done = begun["epoch"] * ROWS + begun["done"] + sum(map(len, seen))
                assert tracked.epoch == done // ROWS
        return seen, states

    whole, states = run(None)
    assert sorted(itertools.chain(*whole)) == list(range(ROWS))
    for done in {0, 1, len(whole) // 2, len(whole) - 1}:
        assert run(states[done])[0] == whole[done:]
    if kind != 2:  # New worker processes begin with the epoch of the dataset.
        after = make(kind)
        ids(after)
        assert run(states[-1])[0] == ids(after)


def test_batches_fetched_and_not_trained_on_come_again(make: Callable[..., Any]) -> None:
    expected = make()
    epochs = [ids(expected), ids(expected)]
    with make() as loader:
        tracked = TrackedLoader(loader)
        seen = []
        for batch in itertools.islice(ahead(tracked, 2), 3):
            seen.append(batch.example_ids.tolist())
            tracked.mark_trained()
        for batch in ahead(tracked, 2):
            seen.append(batch.example_ids.tolist())
            tracked.mark_trained()
        assert seen == epochs[0]
        # An epoch is begun although batches of another one were not trained on.
        next(ahead(tracked, 2))
        tracked.set_epoch(0)
        assert tracked.state_dict()["done"] == 0
        assert ids(tracked) == epochs[0]


def test_marks_that_do_not_fit_are_refused(make: Callable[..., Any]) -> None:
    tracked = TrackedLoader(make())
    with pytest.raises(UsageError, match="call mark_trained once for each"):
        tracked.mark_trained()

    class Endless:
        def __iter__(self) -> Iterator[int]:
            return itertools.count()

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    endless = iter(TrackedLoader(Endless()))
    assert [next(endless) for _ in range(UNMARKED_MAX)][-1] == UNMARKED_MAX - 1
    with pytest.raises(UsageError, match="call mark_trained after each"):
        next(endless)


class KilledError(Exception):
    """The end of a trainer in the midst of an epoch."""


@pytest.mark.filterwarnings("ignore")  # Lightning's own.
@pytest.mark.parametrize("fetches_ahead", [True, False])
def test_lightning_resumes_after_the_last_batch_trained_on(
    make: Callable[..., Any], tmp_path: Path, fetches_ahead: bool
) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    seen: list[list[int]] = []

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any) -> torch.Tensor:  # noqa: ANN401
            seen.append(batch.example_ids.tolist())
            loss: torch.Tensor = (self.weight * batch.offsets[-1]).sum()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.0)

    class MarkTrained(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, *_: object) -> None:  # noqa: ANN401
            if fetches_ahead:
                trainer.train_dataloader.mark_trained()
            if len(seen) == self.stop:
                trainer.save_checkpoint(tmp_path / "checkpoint")
                raise KilledError

        stop = -1

    def fit(stop: int, checkpoint: Path | None = None) -> None:
        callback = MarkTrained()
        callback.stop = stop
        trainer = lightning.Trainer(
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            callbacks=[callback],
        )
        with make(config=config) as loader:
            wrapped = TrackedLoader(loader) if fetches_ahead else loader
            trainer.fit(Model(), wrapped, ckpt_path=checkpoint)

    # Lightning fetches ahead where a loader has no length.
    policies: Any = {} if fetches_ahead else {"ERASED": "fail"}
    config = LoaderConfig(batch_examples=8, policies=policies)
    fit(-1)
    whole, seen = seen, []
    assert len(whole) == 2 * BATCHES
    for stop in (3, BATCHES - 1, BATCHES + 2):
        with pytest.raises(KilledError):
            fit(stop)
        fit(-1, tmp_path / "checkpoint")
        assert seen == whole
        seen = []


@pytest.mark.filterwarnings("ignore")  # Those of transformers.
def test_the_trainer_of_hugging_face_trains_every_epoch(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    seen: list[list[int]] = []

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, **inputs: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
            seen.append(inputs["example_ids"].tolist())
            return {"loss": (self.weight * inputs["offsets"][-1]).sum()}

    expected = make()
    epochs = [ids(expected), ids(expected)]
    config = LoaderConfig(
        batch_examples=8,
        policies={"ERASED": "fail"},
        transform=lambda batch: {"example_ids": batch.example_ids, "offsets": batch.offsets},
    )
    with make(config=config) as loader:

        class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
            def get_train_dataloader(self) -> ThinRowLoader:
                return loader  # type: ignore[no-any-return]

        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=Model(), args=arguments, train_dataset=loader).train()
    assert seen == epochs[0] + epochs[1]
