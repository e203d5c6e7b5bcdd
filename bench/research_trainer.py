"""Meta's research trainer on thin rows, beside its own dataset: the same losses, and the time.

Run with ``make bench-research GENERATIVE_RECOMMENDERS=path/to/its/clone``. It writes
docs/reports/research-trainer.md. It trains the HSTU of the repository's
configs/ml-1m/hstu-sampled-softmax-n128-final.gin on the CPU, step by step as
generative_recommenders/research/trainer/train.py does, on MovieLens-100K: each person's newest
film but one is the target, as its training set has it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import fbgemm_gpu  # noqa: F401 - registers the operators of the model
import gin
import polars as pl
import torch
from generative_recommenders.research.data.dataset import DatasetV2
from generative_recommenders.research.modeling.sequential.autoregressive_losses import (
    LocalNegativesSampler,
)
from generative_recommenders.research.modeling.sequential.embedding_modules import (
    LocalEmbeddingModule,
)
from generative_recommenders.research.modeling.sequential.encoder_utils import (
    get_sequential_encoder,
)
from generative_recommenders.research.modeling.sequential.features import (
    movielens_seq_features_from_row,
)
from generative_recommenders.research.modeling.sequential.input_features_preprocessors import (
    LearnablePositionalEmbeddingInputFeaturesPreprocessor,
)
from generative_recommenders.research.modeling.sequential.losses.sampled_softmax import (
    SampledSoftmaxLoss,
)
from generative_recommenders.research.modeling.sequential.output_postprocessors import (
    L2NormEmbeddingPostprocessor,
)
from generative_recommenders.research.modeling.similarity_utils import get_similarity_function
from page import table
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.demo.sample_data import movielens_100k
from thinrow.jobs.research import research
from thinrow.jobs.research_config import ResearchConfig

from server import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from thinrow.client.torch import TensorBatch

ROOT = Path(__file__).parent.parent
LENGTH, BATCH_EXAMPLES, WIDTH, OUTPUT_LENGTH = 200, 128, 50, 10
MODEL = """
hstu_encoder.num_blocks = 2
hstu_encoder.num_heads = 1
hstu_encoder.dqk = 50
hstu_encoder.dv = 50
hstu_encoder.linear_dropout_rate = 0.2
"""
WORKERS, PREFETCHED = 8, 128
"""Worker processes and batches ahead of each, as the repository configures them."""

Row = dict[str, Any]
"""A batch as the trainer's DataLoader gives it."""


class Films:
    """MovieLens-100K as the research trainer's file, and as a store with thin rows."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.epochs = epochs
        log = movielens_100k().events.with_columns(pl.col("rating").cast(pl.Int64))
        self.folder = folder / "films"
        report = research(
            ResearchConfig(events=log.rename({"event_ts": "timestamp"}), out=self.folder)
        )
        self.items = report.items
        self.csv = folder / "sasrec_format.csv"
        people = (
            log.with_columns(
                pl.col("item_id").rank("dense").cast(pl.Int64), pl.col("event_ts") // 1000
            )
            .sort("user_id", "event_ts", maintain_order=True)
            .group_by("user_id", maintain_order=True)
            .agg(
                pl.col(column).cast(pl.String).str.join(",").alias(f"sequence_{name}")
                for column, name in (
                    ("item_id", "item_ids"),
                    ("rating", "ratings"),
                    ("event_ts", "timestamps"),
                )
            )
        )
        people.write_csv(self.csv)
        self.place = {user: place for place, user in enumerate(people["user_id"].to_list())}
        self.batches = [row["user_id"].tolist() for row in self.thin()]

    def thin(self) -> Iterator[Row]:
        """Batches from thin rows, shuffled; the store is read in this process."""
        rows = RowFiles(self.folder / "validation.parquet", order="rows", seed=0)
        projection = Projection(LENGTH, traits=("item_id", "rating", "event_ts"))
        config = LoaderConfig(batch_examples=BATCH_EXAMPLES)
        with ThinRowLoader(rows, self.folder / "store", projection, config) as loader:
            for _ in range(self.epochs):
                yield from map(to_row, loader)

    def own(self, workers: int) -> Iterator[Row]:
        """The same batches from the research trainer's dataset."""
        dataset = DatasetV2(str(self.csv), LENGTH + 1, ignore_last_n=1, chronological=True)
        batches = [[self.place[user] for user in users] for users in self.batches]
        per_epoch = len(batches) // self.epochs
        for epoch in range(self.epochs):
            yield from torch.utils.data.DataLoader(
                dataset,
                batch_sampler=batches[epoch * per_epoch : (epoch + 1) * per_epoch],
                num_workers=workers,
                prefetch_factor=PREFETCHED if workers else None,
                # Otherwise it draws from the generator of dropout and negatives.
                generator=torch.Generator(),
            )


def to_row(batch: TensorBatch) -> Row:
    """Pads a batch as the trainer's dataset does."""
    columns: dict[str, Any] = batch.columns
    lengths = batch.offsets.diff()
    inside = torch.arange(LENGTH) < lengths[:, None]
    padded = {}
    for trait in ("item_id", "rating", "event_ts"):
        padded[trait] = torch.zeros(len(batch), LENGTH, dtype=torch.int64)
        padded[trait][inside] = batch.values[trait]
    return {
        "user_id": columns["user_id"],
        "historical_ids": padded["item_id"],
        "historical_ratings": padded["rating"],
        "historical_timestamps": padded["event_ts"] // 1000,
        "history_lengths": lengths,
        "target_ids": columns["label_item_id"],
        "target_ratings": columns["label_rating"],
        "target_timestamps": columns["request_ts"] // 1000,
    }


def trainer(items: int) -> Callable[[Row], float]:
    """Returns a function that takes a training step and returns its loss."""
    torch.manual_seed(1)
    similarity, _ = get_similarity_function(
        module_type="DotProduct", query_embedding_dim=WIDTH, item_embedding_dim=WIDTH
    )
    model = get_sequential_encoder(
        module_type="HSTU",
        max_sequence_length=LENGTH,
        max_output_length=OUTPUT_LENGTH + 1,
        embedding_module=LocalEmbeddingModule(items, WIDTH),
        interaction_module=similarity,
        input_preproc_module=LearnablePositionalEmbeddingInputFeaturesPreprocessor(
            LENGTH + OUTPUT_LENGTH + 1, WIDTH, dropout_rate=0.2
        ),
        output_postproc_module=L2NormEmbeddingPostprocessor(WIDTH, eps=1e-6),
        verbose=False,
    )
    loss_of = SampledSoftmaxLoss(num_to_sample=128, softmax_temperature=0.05, model=model)
    negatives = LocalNegativesSampler(
        num_items=items,
        item_emb=model._embedding_module._item_emb,
        all_item_ids=list(range(1, items + 1)),
        l2_norm=True,
        l2_norm_eps=1e-6,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0)
    model.train()

    def step(row: Row) -> float:
        features, targets, _ = movielens_seq_features_from_row(row, "cpu", OUTPUT_LENGTH + 1)
        ids, lengths = features.past_ids, features.past_lengths
        ids.scatter_(1, lengths.view(-1, 1), targets.view(-1, 1))
        optimizer.zero_grad()
        embedded = model.get_item_embeddings(ids)
        encoded = model(
            past_lengths=lengths,
            past_ids=ids,
            past_embeddings=embedded,
            past_payloads=features.past_payloads,
        )
        loss, _ = loss_of(
            lengths=lengths,
            output_embeddings=encoded[:, :-1],
            supervision_ids=ids[:, 1:],
            supervision_embeddings=embedded[:, 1:],
            supervision_weights=(ids[:, 1:] != 0).float(),
            negatives_sampler=negatives,
            **features.past_payloads,
        )
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def check_equal(ours: Iterator[Row], theirs: Iterator[Row]) -> None:
    """Every value of every batch must be the same."""
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for name, values in mine.items():
            if not torch.equal(values, torch.as_tensor(other[name])):
                raise SystemExit(f"{name} of batch {number} differs. Nothing was measured.")


def timed(rows: Iterator[Row], step: Callable[[Row], float]) -> tuple[float, list[float]]:
    """Returns the seconds from the first request for a batch, and the losses."""
    start_s = time.perf_counter()
    losses = [step(row) for row in rows]
    return time.perf_counter() - start_s, losses


def main() -> None:
    """Compares batches and losses, takes times, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/reports/research-trainer.md")
    arguments = parser.parse_args()
    gin.parse_config(MODEL)
    load = os.getloadavg()[0]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch,
        Progress(*columns, refresh_per_second=1) as progress,
    ):
        task = progress.add_task("building", total=None)
        films = Films(Path(scratch), arguments.epochs)
        progress.update(task, description="comparing every batch")
        check_equal(films.thin(), films.own(0))
        sides: dict[str, Callable[[], Iterator[Row]]] = {
            "thin rows, store in the trainer's process": films.thin,
            "its dataset, in the trainer's process": lambda: films.own(0),
            f"its dataset, {WORKERS} workers": lambda: films.own(WORKERS),
        }
        seconds: dict[tuple[str, bool], list[float]] = {}
        losses: list[list[float]] = []
        for trains in (False, True):
            for number in range(arguments.rounds):
                for name, rows in sides.items():
                    doing = "training" if trains else "reading"
                    progress.update(task, description=f"{doing}, round {number + 1}: {name}")
                    step: Callable[[Row], float] = trainer(films.items) if trains else read_only
                    took_s, found = timed(rows(), step)
                    seconds.setdefault((name, trains), []).append(took_s)
                    if trains:
                        losses.append(found)
        if any(found != losses[0] for found in losses):
            raise SystemExit("The losses differ. Nothing was written.")
    arguments.out.write_text(page(arguments.epochs, arguments.rounds, load, seconds, losses[0]))
    print(arguments.out.read_text())


def read_only(_: Row) -> float:
    """Takes no step."""
    return 0.0


def page(
    epochs: int,
    rounds: int,
    load: float,
    seconds: dict[tuple[str, bool], list[float]],
    losses: list[float],
) -> str:
    """Returns the text of the page."""
    took = {side: median(found) for side, found in seconds.items()}
    names = list(dict.fromkeys(name for name, _ in took))
    ours = names[0]
    lines = [
        [
            name,
            f"{took[name, False]:.2f}",
            f"**{took[name, False] / took[ours, False]:.2f}x**" if name != ours else "",
            f"{took[name, True]:.1f}",
            f"**{took[name, True] / took[ours, True]:.2f}x**" if name != ours else "",
        ]
        for name in names
    ]
    headings = "batches from | read, s: | thin rows are: | read and trained, s: | thin rows are:"
    return PAGE.format(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=machine(),
        load=f"{load:.1f}",
        epochs=epochs,
        rounds=rounds,
        steps=len(losses),
        first=losses[0],
        last=losses[-1],
        table=table(headings, lines),
    )


PAGE = (Path(__file__).parent / "research_trainer.md.in").read_text()

if __name__ == "__main__":
    main()
