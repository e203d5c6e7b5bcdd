"""A model of histories on Ray Train: elastic lookups, checkpoints, and a resume that is exact.

    pip install 'thinrow[ray]' 'ray[train]'
    thinrow serve --store .demo/completejourney/store
    python examples/ray_train.py --rows .demo/completejourney/rows.parquet --server 127.0.0.1:7878

Each worker trains on the histories that its pool of actors looks up. A pool grows while its worker
waits and shrinks while its actors idle. Checkpoints hold the model beside the examples that it was
trained on; started again under the same name, a run that was killed goes on after the last one,
also with another number of workers. The table at the end counts examples that an epoch lost or
trained on twice. RAY_ADDRESS names a cluster, whose nodes then need the rows, the server and the
folder of the checkpoints; without it, Ray runs on this machine only.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from thinrow.client import Projection
from thinrow.client.ray import ExampleIds, LookupPool, RayBatches, ScalingLimits, ThinRowDatasource
from thinrow.client.torch import LoaderConfig
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.client.torch import TensorBatch

ITEMS = 4096
"""Ids of items are taken modulo this."""
WIDTH = 32
FAILURES_MAX = 3
"""Times that Ray replaces workers which failed, before the run does."""


class Ranker(torch.nn.Module):
    """Picks the next item of each history among the next items of its batch.

    A history is the sum of its items, of which older ones count less. Returns the sum of losses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.items = torch.nn.EmbeddingBag(ITEMS, WIDTH, mode="sum", include_last_offset=True)
        torch.nn.init.normal_(self.items.weight, std=0.1)
        self.log_half_life = torch.nn.Parameter(torch.tensor(2.0))

    def forward(
        self, item_id: torch.Tensor, offsets: torch.Tensor, label_item_id: torch.Tensor
    ) -> torch.Tensor:
        ages = offsets[1:].repeat_interleave(offsets.diff()) - torch.arange(len(item_id))
        weights = torch.exp2(-ages / self.log_half_life.exp())
        histories = self.items(item_id % ITEMS, offsets, per_sample_weights=weights)
        candidates = self.items.weight[label_item_id % ITEMS]
        right = torch.arange(len(candidates))
        return torch.nn.functional.cross_entropy(histories @ candidates.T, right, reduction="sum")


@dataclass
class Place:
    """The place of a run: what a checkpoint holds beside the model and the ids of this epoch."""

    epoch: int = 0
    loss: float = 0.0
    """Sum of this epoch's losses."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Lines of the table."""


class Run:
    """One worker's share of a run."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.ranker = Ranker()
        self.model = ray.train.torch.prepare_model(self.ranker)  # with one worker, the same
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.place, self.done = Place(), ExampleIds()
        self.trained = torch.zeros(self.source().rows, dtype=torch.int32)
        """Times that this worker trained on each example, in all epochs; a proof, not a need."""
        if checkpoint := ray.train.get_checkpoint():
            with checkpoint.as_directory() as folder:
                self.load(Path(folder))

    def source(self) -> ThinRowDatasource:
        wanted = Projection(sequence_length=self.given.length, traits=("item_id",))
        columns = ("label_item_id",)
        return ThinRowDatasource(
            self.given.rows, self.given.server, wanted, columns=columns, done=self.done
        )

    def load(self, folder: Path) -> None:
        saved = torch.load(folder / "run.pt")
        self.ranker.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.place = Place(**saved["place"])
        if self.rank == 0:  # sums over all workers go to one of them
            self.trained = saved["trained"]
        else:
            self.place.loss = 0.0
        # Workers have seen different examples, and any number of workers may go on.
        ranges = [json.loads(path.read_text()) for path in folder.glob("done-*.json")]
        self.done = ExampleIds([pair for of_worker in ranges for pair in of_worker])

    def save(self) -> None:
        """Reports a checkpoint, to which every worker adds the ids of its examples."""
        loss, trained = torch.tensor(self.place.loss), self.trained.clone()
        distributed.all_reduce(loss)
        distributed.all_reduce(trained)
        self.place.loss = loss.item() if self.rank == 0 else 0.0
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / f"done-{self.rank}.json").write_text(json.dumps(self.done.to_ranges()))
            if self.rank == 0:
                saved = {
                    "model": self.ranker.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "place": asdict(self.place),
                    "trained": trained,
                }
                torch.save(saved, folder / "run.pt")
            ray.train.report(
                {"epoch": self.place.epoch}, ray.train.Checkpoint.from_directory(folder)
            )

    def train_epoch(self) -> None:
        given = self.given
        limits = ScalingLimits(actors_max=given.actors_max)
        config = LoaderConfig(batch_examples=given.batch_examples, columns=("label_item_id",))
        with LookupPool(
            self.source(),
            limits=limits,
            rank=self.rank,
            world_size=self.workers,
            actor_cpus=given.actor_cpus,
            interval_s=given.interval_s,
        ) as pool:
            batches = iter(RayBatches(pool, config, self.done))
            for step, (batch, examples) in enumerate(in_step(batches)):
                # Here, the batches before this one are in `done` and in the model.
                if step and step % given.save_steps == 0:
                    self.save()
                self.train_step(batch, examples)
        self.end_epoch(pool)

    def train_step(self, batch: TensorBatch | None, examples: int) -> None:
        """Trains on a batch of each worker; DDP divides the sum of gradients by their number."""
        if batch is None:
            nothing = torch.zeros(0, dtype=torch.int64)
            loss = self.model(nothing, torch.zeros(1, dtype=torch.int64), nothing)
        else:
            loss = self.model(**batch)
            self.trained += torch.bincount(batch.example_ids, minlength=len(self.trained)).int()
        self.optimizer.zero_grad()
        (loss * self.workers / examples).backward()
        self.optimizer.step()
        self.place.loss += loss.item()

    def end_epoch(self, pool: LookupPool) -> None:
        """Adds a line to the table, and saves the start of the next epoch."""
        trained, loss = self.trained.clone(), torch.tensor(self.place.loss)
        distributed.all_reduce(trained)
        distributed.all_reduce(loss)
        pools: list[Any] = [None] * self.workers
        distributed.all_gather_object(pools, (pool.starvation.share, pool.sizes))
        times = self.place.epoch + 1
        self.place.epochs.append(
            {
                "epoch": self.place.epoch,
                "examples": len(trained),
                "lost": int((trained < times).sum()),
                "doubled": int((trained > times).sum()),
                "loss": f"{loss.item() / len(trained):.4f}",
                "waited": f"{np.mean([share for share, _ in pools]):.0%}",
                "actors": " / ".join("-".join(map(str, sizes)) for _, sizes in pools),
            }
        )
        self.place.epoch, self.place.loss, self.done = times, 0.0, ExampleIds()
        self.save()


def in_step(batches: Iterator[TensorBatch]) -> Iterator[tuple[TensorBatch | None, int]]:
    """Yields batches while any worker has one, and the number of examples of all workers.

    A worker whose share of the rows has ended gets None, so that all take the same steps.
    """
    while True:
        batch = next(batches, None)
        examples = torch.tensor(0 if batch is None else len(batch))
        distributed.all_reduce(examples)
        if not examples:
            return
        yield batch, int(examples)


def train(settings: dict[str, Any]) -> None:
    """Trains one worker's share. Ray Train runs it in every worker."""
    run = Run(argparse.Namespace(**settings))
    while run.place.epoch < run.given.epochs:
        run.train_epoch()


def main() -> None:
    """Runs the workers, and prints a line for each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=".demo/completejourney/rows.parquet")
    parser.add_argument("--server", default="127.0.0.1:7878", help="any server of a cluster")
    parser.add_argument("--length", type=int, default=50, help="events of a history")
    parser.add_argument("--batch-examples", type=int, default=256, help="of each worker")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save-steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--actors-max", type=int, default=4, help="of each worker")
    parser.add_argument("--actor-cpus", type=float, default=1.0)
    parser.add_argument("--interval-s", type=float, default=5.0, help="between two sizes of a pool")
    parser.add_argument("--name", default="ranker", help="the run; the same name resumes it")
    parser.add_argument("--storage", type=Path, default=Path("ray_results"))
    given = parser.parse_args()
    rows = given.rows if "://" in given.rows else str(Path(given.rows).absolute())
    cpus = given.workers * (1 + given.actor_cpus * given.actors_max)
    # Workers keep their CPUs, so that a small machine would have none left for actors.
    ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else round(cpus + 0.5))
    result = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={**vars(given), "rows": rows},
        scaling_config=ray.train.ScalingConfig(num_workers=given.workers),
        run_config=ray.train.RunConfig(
            name=given.name,
            storage_path=str(given.storage.absolute()),
            failure_config=ray.train.FailureConfig(max_failures=FAILURES_MAX),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    ).fit()
    with result.checkpoint.as_directory() as folder:
        epochs = torch.load(Path(folder, "run.pt"))["place"]["epochs"]
    for line in [dict(zip(epochs[0], epochs[0], strict=True)), *epochs]:
        print("  ".join(f"{value:>8}" for value in line.values()))


if __name__ == "__main__":
    main()
