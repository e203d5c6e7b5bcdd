"""Trains the demo's model from thin rows and evaluates it on later ones, at any sequence length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from thinrow.client import ClientConfig, Projection, row_count
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.rows import check
from thinrow.demo.model import Histories, ModelConfig, NextItemModel
from thinrow.errors import InputError, UsageError
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from thinrow.client.torch import TensorBatch
    from torch import Tensor

    Progress = Callable[[int, int], None]

__all__ = ["Quality", "Split", "Study"]

BATCH_EXAMPLES = 256
HELD_OUT_SHARE = 0.1
TOP = 10
DECAY_SHARE = 0.7
"""The learning rate falls to 0 over this last part of the steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Thin rows split by time: files of their own."""

    train: Path
    """The earlier."""
    held_out: Path
    """The later, a tenth."""
    newest: Path
    """The last of each user among the earlier: all that is known by then, each event once."""

    @classmethod
    def of(cls, rows: Path, folder: Path) -> Split:
        """Writes the files into ``folder``. Raises InputError where ``rows`` does not fit."""
        folder.mkdir(parents=True, exist_ok=True)
        with open_parquet(rows) as file:
            check(rows, file.schema_arrow)
            table = file.read()
        request_ts = table.column("request_ts").to_numpy()
        if len(np.unique(request_ts)) < 2:
            raise InputError(
                f"{rows} holds requests of one moment; give it those of a longer time."
            )
        cut_ts = np.quantile(request_ts, 1 - HELD_OUT_SHARE)
        train = table.filter(request_ts < cut_ts).sort_by("request_ts")
        users = train.column("user_id").to_numpy()
        last = len(users) - 1 - np.unique(users[::-1], return_index=True)[1]
        parts = {
            "train": train,
            "held_out": table.filter(request_ts >= cut_ts),
            "newest": train.take(pa.array(last)),
        }
        paths = {name: folder / f"{name.replace('_', '-')}-rows.parquet" for name in parts}
        for name, part in parts.items():
            pq.write_table(part, paths[name])
        return cls(**paths)


@dataclass(frozen=True, slots=True)
class Quality:
    """Quality of the predictions of later requests."""

    hit_rate: float
    """Share whose label is among the model's ten best."""
    popularity_hit_rate: float
    """The same of the ten most popular."""
    entropy: float
    """Mean loss of the model, as a share of that of popularity alone."""


class Study:
    """One prediction task on thin rows: what is the next ``target``, an integer trait?

    Every row has the answer as ``label_<target>``. An item that first comes after the training rows
    is unknown, and a miss whatever the model says. Without ``repeats``, what is in a history is not
    guessed again. ``order`` is that of RowFiles. Raises UsageError where the rows have no such
    label.
    """

    def __init__(
        self,
        split: Split,
        server: str | Sequence[str],
        target: str,
        *,
        repeats: bool = True,
        order: Literal["users", "rows"] = "rows",
        client: ClientConfig | None = None,
    ) -> None:
        self.split, self.server, self.target = split, server, target
        self.repeats, self.order, self.client = repeats, order, client or ClientConfig()
        self.label = f"label_{target}"
        schema = pq.read_schema(split.train)
        if self.label not in schema.names or not pa.types.is_integer(schema.field(self.label).type):
            raise UsageError(
                f"The rows have no column {self.label} of integers to learn from; name a trait "
                f"whose label they have with --target."
            )
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        seen: list[Tensor] = []
        with self.loader(split.newest) as loader:
            for batch in loader:
                seen += [batch.values[target], self.labels(batch)]
        self.catalogue, counts = torch.unique(torch.cat(seen), return_counts=True)
        self.counts = functional.pad(counts, (1, 0))

    def train(
        self,
        sequence_length: int,
        epochs: int = 1,
        seed: int = 0,
        progress: Progress = lambda *_: None,
    ) -> tuple[NextItemModel, list[float]]:
        """Trains a new model; returns it, and the loss of every step, in nats."""
        model = NextItemModel(ModelConfig(seed=seed), self.counts)
        optimizer = torch.optim.AdamW(model.parameters(), lr=model.config.learning_rate)
        steps = epochs * -(-row_count(self.split.train) // BATCH_EXAMPLES)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (1 - step / steps) / DECAY_SHARE)
        )
        losses: list[float] = []
        with self.loader(self.split.train, sequence_length, seed) as loader:
            for _ in range(epochs):
                for batch in loader:
                    loss = model.loss(self.histories(batch))
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                    losses.append(loss.item())
                    progress(len(losses), steps)
        return model, losses

    def evaluate(self, model: NextItemModel, sequence_length: int) -> Quality:
        """Evaluates the later requests. Popularity gets the same inputs and the same mask."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        with self.loader(self.split.held_out, sequence_length) as loader:
            for batch in loader:
                items, offsets, labels = self.histories(batch)
                popularity = model.popularity.expand(len(labels), -1).exp()
                both = model.probabilities(items, offsets), popularity.clone()
                losses = [-of.gather(1, labels[:, None]).log().sum() for of in both]
                hits = [self.hits(of, items, offsets, labels) for of in both]
                sums += torch.stack([*hits, *losses])
        hits, popular, loss, popularity_loss = sums.tolist()
        examples = row_count(self.split.held_out)
        return Quality(hits / examples, popular / examples, loss / popularity_loss)

    def hits(self, likely: Tensor, items: Tensor, offsets: Tensor, labels: Tensor) -> Tensor:
        """Counts the labels among the ten likeliest; scratches out of ``likely`` what cannot be."""
        likely[:, 0] = -1
        if not self.repeats:
            places = torch.arange(len(labels), device=self.device).repeat_interleave(offsets.diff())
            likely[places, items] = -1
        return (likely.topk(min(TOP, likely.shape[1])).indices == labels[:, None]).any(1).sum()

    def loader(self, rows: Path, sequence_length: int = 0, seed: int = 0) -> ThinRowLoader:
        """Streams histories of the target alone, in shuffled order."""
        return ThinRowLoader(
            RowFiles(rows, order=self.order, seed=seed),
            self.server,
            Projection(sequence_length, traits=(self.target,)),
            LoaderConfig(batch_examples=BATCH_EXAMPLES, columns=(self.label,), client=self.client),
            device=self.device,
        )

    def labels(self, batch: TensorBatch) -> Tensor:
        """Items that came next, int64, shape (examples,)."""
        return cast("Tensor", batch.columns[self.label])

    def histories(self, batch: TensorBatch) -> Histories:
        """The batch as the model takes it."""
        items, labels = self.numbers(batch.values[self.target]), self.numbers(self.labels(batch))
        return Histories(items, batch.offsets, labels)

    def numbers(self, ids: Tensor) -> Tensor:
        """Numbers the items known from 1, by their ids; others are 0."""
        places = torch.searchsorted(self.catalogue, ids).clamp(max=len(self.catalogue) - 1)
        return (places + 1).where(self.catalogue[places] == ids, 0)
