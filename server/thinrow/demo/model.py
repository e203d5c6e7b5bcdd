"""The model of the demo and the ladder: which item comes next, after a history of any length.

The newest events see one another in HSTU blocks (Zhai et al., 2024); what comes out then looks at
the whole history once, and may point at something in it that comes again, as in RepeatNet (Ren et
al., 2019). So the work grows with the number of events and nothing is padded but the newest few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Histories", "ModelConfig", "NextItemModel"]

PROBABILITY_MIN = 1e-12


class Histories(NamedTuple):
    """Jagged histories of numbered items, and what came next; item 0 stands for all unknown."""

    items: Tensor
    """int64, shape (events,): example i has items[offsets[i]:offsets[i + 1]], oldest first."""
    offsets: Tensor
    """int64, shape (examples + 1,)."""
    labels: Tensor
    """int64, shape (examples,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes small enough for seconds on a CPU; none depends on the length of histories."""

    width: int = 64
    recent: int = 16
    """Newest events that see one another."""
    layers: int = 1
    ages: int = 32
    """Kinds of distance from the end that are distinguished, two to each doubling."""
    candidates: int = 1024
    """Items that stand for all in a training step, a random sample."""
    learning_rate: float = 3e-3
    gain: float = 10.0
    """Factor on the learning rate of the parameters of decay and repetition."""
    seed: int = 0


class Block(nn.Module):
    """HSTU: gated attention with SiLU in place of softmax."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, 4 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.place = nn.Parameter(torch.zeros(config.recent, config.recent))

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        """Attention of float (examples, recent, width) with a bool mask (…, recent, recent)."""
        projected = functional.silu(self.project(self.norm_in(states)))
        gate, values, queries, keys = projected.chunk(4, -1)
        scores = queries @ keys.mT / states.shape[-1] ** 0.5 + self.place
        attention = functional.silu(scores) * seen / states.shape[1]
        return states + cast("Tensor", self.out(self.norm_out(attention @ values) * gate))


class Look(NamedTuple):
    """Encodings of histories."""

    states: Tensor
    """float, shape (examples, recent, width): after each of the newest events."""
    example: Tensor
    """int64, shape (events,): whose event it is."""
    attention: Tensor
    """float, shape (events,): how much the last state looks at it; sums to 1 for each example."""
    again: Tensor
    """float, shape (examples,): how likely what comes next is in the history."""


class NextItemModel(nn.Module):
    """Gives every item a probability to come next.

    It starts from popularity: ``counts`` is int64, shape (items,), of item 0 (unknown) first.
    """

    def __init__(self, config: ModelConfig, counts: Tensor) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.config = config
        width = config.width
        self.popularity = nn.Buffer(((counts + 1) / (counts + 1).sum()).log())
        self.bias = nn.Parameter(self.popularity.clone())
        self.item = nn.Embedding(len(counts), width)
        nn.init.normal_(self.item.weight, std=0.02)  # so that popularity leads at first
        self.place = nn.Parameter(torch.zeros(config.recent, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.query, self.pooled = nn.Linear(width, width), nn.Linear(width, width)
        # At first an event counts as one by the square root of its distance from the end.
        halves = torch.arange(config.ages) * torch.tensor(2.0).log() / 2
        self.forgetting = nn.Parameter(-halves / 2 / config.gain)
        self.repeat = nn.Linear(width + 1, 1)
        self.to("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.item.weight.device

    def forward(self, items: Tensor, offsets: Tensor) -> Look:
        """Looks at histories, as in ``Histories``."""
        window, known = self.newest(items, offsets)
        seen = known[:, None, :] & known.new_ones(2 * [self.config.recent]).tril()
        states = self.item(window) * known[..., None] + self.place
        for block in self.blocks:
            states = block(states, seen)
        lengths = offsets.diff()
        example = torch.arange(len(lengths), device=self.device).repeat_interleave(
            lengths, output_size=len(items)
        )
        age = offsets[1:][example] - torch.arange(len(items), device=self.device)
        kind = (2 * age.float().log2()).long().clamp(max=self.config.ages - 1)
        events = self.item(items)
        scores = (events * self.query(states[:, -1])[example]).sum(-1)
        scores = scores + self.config.gain * self.forgetting[kind]
        highest = scores.new_full(lengths.shape, -torch.inf)
        highest = highest.scatter_reduce(0, example, scores.detach(), "amax")
        weights = (scores - highest[example]).exp()
        attention = (
            weights / weights.new_zeros(len(lengths)).index_add(0, example, weights)[example]
        )
        pooled = states.new_zeros(len(lengths), self.config.width)
        pooled = self.pooled(pooled.index_add(0, example, attention[:, None] * events))
        states = torch.cat([states[:, :-1], states[:, -1:] + pooled[:, None]], 1)
        about = torch.cat([states[:, -1], lengths[:, None].float().log1p()], 1)
        again = (self.config.gain * self.repeat(about)).squeeze(1).sigmoid() * (lengths > 0)
        return Look(states, example, attention, again)

    def newest(self, items: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The newest items, int64 (examples, recent), the last at the right; and which exist."""
        places = offsets[1:, None] + torch.arange(-self.config.recent, 0, device=self.device)
        known = places >= offsets[:-1, None]
        padded = functional.pad(items, (0, 1))  # so that there is a place to point at
        return padded[places.where(known, len(items))], known

    def loss(self, histories: Histories) -> Tensor:
        """Loss of labels, and of each newest event after those before it, in nats: their mean."""
        items, offsets, labels = histories
        look: Look = self(items, offsets)
        window, known = self.newest(items, offsets)
        targets = torch.cat([window[:, 1:], labels[:, None]], 1)
        known[:, -1] = True
        new = self.log_likelihood(look.states[known], targets[known])
        pointed = look.attention * (items == labels[look.example])
        old = torch.zeros_like(look.again).index_add(0, look.example, pointed)
        last = known.sum(1).cumsum(0) - 1
        likely = new[last].exp() * (1 - look.again) + old * look.again
        return -(likely.clamp(min=PROBABILITY_MIN).log().mean() + new.mean()) / 2

    def log_likelihood(self, states: Tensor, targets: Tensor) -> Tensor:
        """Estimated loss of each target after its state, from a sample of the other items."""
        items = len(self.bias)
        sample = torch.randint(items, (min(self.config.candidates, items),), device=self.device)
        others = states @ self.item(sample).T + self.bias[sample] + math.log(items / len(sample))
        others = others.masked_fill(sample == targets[:, None], -torch.inf)
        own = (states * self.item(targets)).sum(-1) + self.bias[targets]
        together = torch.cat([own[:, None], others], 1).logsumexp(1)
        return cast("Tensor", own - together)

    @torch.no_grad()
    def probabilities(self, items: Tensor, offsets: Tensor) -> Tensor:
        """Score of every item to come next, float, shape (examples, items)."""
        look: Look = self(items, offsets)
        new = (look.states[:, -1] @ self.item.weight.T + self.bias).softmax(1)
        likely = new * (1 - look.again[:, None])
        places = look.example * likely.shape[1] + items
        likely.view(-1).index_add_(0, places, look.attention * look.again[look.example])
        return likely.clamp_(min=PROBABILITY_MIN)
