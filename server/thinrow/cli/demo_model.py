"""The demo's model: a small next-item transformer, after SASRec (Kang and McAuley, 2018).

Histories come jagged, as the client gives them: example i has ``items[offsets[i]:offsets[i + 1]]``,
oldest first. Items are numbered from 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ModelConfig", "NextItemModel"]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes small enough for seconds on a CPU."""

    sequence_length: int
    """Newest events of a history that the model looks at."""
    width: int = 64
    heads: int = 2
    layers: int = 1
    candidates_max: int = 512
    """Items that each step's softmax runs over beside the target, a random sample."""
    learning_rate: float = 3e-3
    seed: int = 0


class NextItemModel(nn.Module):
    """Predicts each event from those before it; the label comes after the last.

    Starts from the popularity of items: ``counts`` is int64[items + 1], with 0 for item 0.
    """

    def __init__(self, config: ModelConfig, counts: Int64) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.config = config
        self.item = nn.Embedding(len(counts), config.width)  # 0 starts and pads
        self.popularity = nn.Buffer(torch.as_tensor(counts).float().log1p())
        self.bias = nn.Parameter(self.popularity.clone())
        self.position = nn.Embedding(config.sequence_length + 1, config.width)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=0.02)  # so that popularity leads at first
        width, heads = config.width, config.heads
        block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, config.layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.to("cuda" if torch.cuda.is_available() else "cpu")
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=config.learning_rate)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.item.weight.device

    def forward(self, history: Tensor) -> Tensor:
        """Of int64[batch, length], a state after every position: float[batch, length, width]."""
        length = history.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(length, device=self.device)
        inputs = self.item(history) + self.position.weight[:length]
        return cast("Tensor", self.blocks(inputs, mask=causal, is_causal=True))

    def train_step(self, items: Int64, offsets: Int64, labels: Int64) -> float:
        """Takes one step on one batch; returns its mean loss per position, in nats."""
        self.train()
        history, lengths = self.pad(items, offsets)
        targets = functional.pad(history[:, 1:], (0, 1))
        targets[torch.arange(len(labels)), lengths] = self._tensor(labels)
        known = torch.arange(history.shape[1], device=self.device) <= lengths[:, None]
        loss = self._loss(self(history)[known], targets[known])
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def count_hits(
        self, items: Int64, offsets: Int64, labels: Int64, *, repeats: bool, top: int = 10
    ) -> tuple[int, int]:
        """Counts labels among the ``top`` best of all items: by the model, and by popularity alone.

        Without ``repeats``, what is in the history cannot come again and is not offered.
        """
        self.eval()
        history, lengths = self.pad(items, offsets)
        last = self(history)[torch.arange(len(lengths)), lengths]
        never = history[:, :1] if repeats else history  # a history starts with 0, which is no item

        def count(scores: Tensor) -> int:
            best = scores.scatter(1, never, -torch.inf).topk(top).indices
            return int((best == self._tensor(labels)[:, None]).any(1).sum())

        return (
            count(last @ self.item.weight.T + self.bias),
            count(self.popularity.expand(len(labels), -1)),
        )

    def pad(self, items: Int64, offsets: Int64) -> tuple[Tensor, Tensor]:
        """Makes jagged histories int64[batch, length + 1], a 0 first; and says how long each is."""
        bounds = self._tensor(offsets)
        lengths = bounds.diff().clamp(max=self.config.sequence_length)
        places = torch.arange(int(lengths.max()), device=self.device)
        padded = functional.pad(self._tensor(items), (0, 1))  # so that place len(items) exists
        index = ((bounds[1:] - lengths)[:, None] + places).clamp(max=len(items))
        history = torch.where(places < lengths[:, None], padded[index], 0)
        return functional.pad(history, (1, 0)), lengths

    def _loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each target against the step's candidates."""
        candidates = 1 + torch.randperm(len(self.bias) - 1, device=self.device)
        candidates = candidates[: self.config.candidates_max]
        others = states @ self.item(candidates).T + self.bias[candidates]
        others = others.masked_fill(candidates == targets[:, None], -torch.inf)
        own = (states * self.item(targets)).sum(-1, keepdim=True) + self.bias[targets, None]
        return functional.cross_entropy(torch.cat([own, others], 1), torch.zeros_like(targets))

    def _tensor(self, array: Int64) -> Tensor:
        return torch.as_tensor(array, dtype=torch.int64, device=self.device)
