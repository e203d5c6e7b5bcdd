"""Measures the loader with a GPU: bytes per second to the device, and a trainer's waiting.

    .venv/bin/python bench/gpu.py [--out docs/reports/gpu.md]
    .venv/bin/python bench/gpu.py --device cpu --quick     # tries the script out, measures nothing

Copies are compared with the fastest copy from pinned memory there is, one large piece. Training is
compared with the same steps on one batch that is on the device already: what is left of the
difference is the loader's.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from synthetic import TRAITS, build
from thinrow.client import Answer, Projection, ThinRows, connect, read_thin_rows
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.client.torch.device import DeviceCopy
from thinrow.client.torch.layout import BatchExamples, lay_out

from server import machine, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from synthetic import Sample
    from thinrow.client.torch import TensorBatch
    from torch import Tensor

NOTHING = "These figures were made without a GPU or in a hurry: they mean nothing."
WARM_STEPS = 5
LIMIT_BYTES = 1 << 30
STEPS_AHEAD = 1
"""Steps that the host may be ahead of the device, as trainers are that log now and then."""

console = Console(highlight=False, width=120)


class Case(NamedTuple):
    """Histories of one length, and a model for them."""

    events: int
    batch_examples: int
    users: int
    requests: int
    items: int
    width: int
    layers: int
    runs: int = 20
    """Times that each thing is measured."""


CASES = [Case(4096, 16, 128, 20, 100_000, 256, 4), Case(16_384, 4, 64, 10, 100_000, 256, 4)]
QUICK = [Case(64, 4, 8, 4, 100, 16, 1, runs=2), Case(256, 2, 8, 2, 100, 16, 1, runs=2)]


class Block(torch.nn.Module):
    """Causal attention and a gate, much as an HSTU layer's."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = torch.nn.LayerNorm(width)
        self.inward = torch.nn.Linear(width, 4 * width)
        self.outward = torch.nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (examples, events, width) to the same."""
        parts = torch.nn.functional.silu(self.inward(self.norm(x))).chunk(4, -1)
        query, key, value, gate = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in (query, key, value)), is_causal=True
        )
        return x + self.outward((mixed.transpose(1, 2) * gate).flatten(-2))


class Model(torch.nn.Module):
    """Learns a label from a history of items, actions and times."""

    def __init__(self, items: int, width: int, layers: int) -> None:
        super().__init__()
        self.items = torch.nn.Embedding(items, width)
        self.actions = torch.nn.Embedding(8, width)
        self.layers = torch.nn.Sequential(*(Block(width) for _ in range(layers)))
        self.head = torch.nn.Linear(width, 1)

    def forward(self, batch: TensorBatch) -> Tensor:
        """The loss of a batch."""
        x = self.items(batch.to_padded("item_id") % self.items.num_embeddings)
        x = x + self.actions(batch.to_padded("action"))
        x = x + (batch.to_padded("watch_ms").unsqueeze(-1) / 1e5).to(x.dtype)
        score = self.head(self.layers(x)[:, -1]).squeeze(-1)
        label = batch.columns["label"]
        assert isinstance(label, torch.Tensor)
        return torch.nn.functional.binary_cross_entropy_with_logits(
            score.float(), label.to(torch.float32)
        )


class Trainer:
    """Takes real steps, forward and backward."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.device = device
        self.model = Model(case.items, case.width, case.layers).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.pending: deque[torch.cuda.Event] = deque()

    def step(self, batch: TensorBatch) -> None:
        """One step; waits for the step before the last."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            self.pending.append(torch.cuda.current_stream().record_event())
            if len(self.pending) > STEPS_AHEAD:
                self.pending.popleft().synchronize()

    def step_s(self, batches: Iterable[TensorBatch]) -> float:
        """Seconds per step, in the mean, once it has warmed up."""
        start_s = 0.0
        steps = 0
        for number, batch in enumerate(batches):
            if number == WARM_STEPS:
                self.finish()
                start_s = time.perf_counter()
                steps = 0
            self.step(batch)
            steps += 1
        self.finish()
        return (time.perf_counter() - start_s) / steps

    def finish(self) -> None:
        """Waits for all steps."""
        synchronize(self.device)


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, runs: int) -> float:
    """Median seconds of something, the device's part of it included."""
    taken = []
    for _ in range(runs + 2):
        synchronize(device)
        start_s = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - start_s)
    return median(taken[2:])


def limit_bytes_per_s(device: torch.device, size_bytes: int, runs: int) -> float:
    """The fastest copy from the host there is: pinned, and large."""
    source = torch.ones(size_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    return size_bytes / seconds(lambda: target.copy_(source, non_blocking=True), device, runs)


def first_answer(sample: Sample, case: Case, address: str) -> Answer:
    """The answer of one batch, sorted by user as in the loader."""
    rows, _ = next(iter(read_thin_rows(sample.rows, examples=case.users * case.requests)))
    order = np.argsort(rows.pointers.user_ids, kind="stable")[: case.batch_examples]
    with connect(address) as client:
        rows_sorted = [ThinRows(rows.pointers[order])]
        return next(iter(client.answers(rows_sorted, Projection(case.events, traits=TRAITS))))


def copies(case: Case, answer: Answer, device: torch.device, limit: float) -> list[list[str]]:
    """Rows of the table of copies: the copy alone, and with the widening before it."""
    copy = DeviceCopy(device, slots=4)
    examples = len(answer)

    def written() -> TensorBatch:
        of_batch = BatchExamples(
            lengths=answer.lengths,
            statuses=answer.statuses,
            example_ids=np.arange(examples),
            columns={},
            generation=answer.generation,
            watermark_ts=answer.watermark_ts,
        )
        [batch] = lay_out(answer.kinds, [of_batch], allocate=copy.allocate)
        for trait, values in batch.values.items():
            answer.write(trait, values.numpy())
        return batch

    batch = written()
    rows = []
    for name, work in (
        ("copied only", lambda: copy.receive(copy.send(batch))),
        ("widened and copied", lambda: copy.receive(copy.send(written()))),
    ):
        taken_s = seconds(work, device, case.runs)
        rows.append(
            [
                f"{case.events:,} x {case.batch_examples}",
                name,
                f"{batch.nbytes / 1e6:.2f}",
                f"{1e3 * taken_s:.3f}",
                f"{batch.nbytes / taken_s / 1e9:.2f}",
                f"{batch.nbytes / taken_s / limit:.0%}",
            ]
        )
    copy.close()
    return rows


def training(case: Case, sample: Sample, address: str, device: torch.device) -> list[str]:
    """One row of the table of training."""
    trainer = Trainer(case, device)
    config = LoaderConfig(batch_examples=case.batch_examples)
    with ThinRowLoader(
        sample.rows, address, Projection(case.events, traits=TRAITS), config, device=device
    ) as loader:
        resident = next(iter(loader))
    resident_s = trainer.step_s(itertools.repeat(resident, WARM_STEPS + case.runs))
    with ThinRowLoader(
        sample.rows, address, Projection(case.events, traits=TRAITS), config, device=device
    ) as loader:
        loaded_s = trainer.step_s(loader)
        starvation = loader.starvation
    return [
        f"{case.events:,} x {case.batch_examples}",
        f"{resident.nbytes / 1e6:.1f}",
        f"{1e3 * resident_s:.2f}",
        f"{1e3 * loaded_s:.2f}",
        f"{loaded_s / resident_s - 1:+.1%}",
        f"{starvation.share:.2%}",
        ", ".join(f"{stage} {share:.1%}" for stage, share in starvation.shares.items()),
    ]


COPY_HEADINGS = ("batch", "way", "MB", "ms", "GB/s", "of the limit")
TRAINING_HEADINGS = (
    *("batch", "MB", "step on one batch, ms", "step with the loader, ms"),
    *("difference", "waiting", "of it"),
)


def show(title: str, headings: Iterable[str], rows: Iterable[list[str]]) -> None:
    """Prints a table."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(headings: Iterable[str], rows: Iterable[list[str]]) -> str:
    """The same as a table of a page."""
    lines = [list(headings), ["---"] * len(list(headings)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure everything, print it and, if a path is given, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small cases, to try the script out")
    parser.add_argument("--out", type=Path, help="page to write the figures to")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; --device cpu --quick tries the script out.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    meaningless = device.type != "cuda" or arguments.quick
    cases = QUICK if arguments.quick else CASES
    limit = limit_bytes_per_s(device, LIMIT_BYTES >> (6 * arguments.quick), cases[0].runs)
    copied: list[list[str]] = []
    trained: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch:
        for number, case in enumerate(cases):
            folder = Path(scratch) / str(number)
            sample = build(folder, users=case.users, events=case.events, requests=case.requests)
            with serving(sample.store, folder / "server.log") as served:
                address = served.address
                copied += copies(case, first_answer(sample, case, address), device, limit)
                trained.append(training(case, sample, address, device))
    title = f"{name}, torch {torch.__version__}; {machine()}"
    copy_rate = f"A large copy from pinned memory: {limit / 1e9:.1f} GB/s."
    console.print(title, copy_rate, sep="\n")
    show("Host to device", COPY_HEADINGS, copied)
    show("Training", TRAINING_HEADINGS, trained)
    if meaningless:
        console.print(NOTHING)
    if arguments.out:
        page = [
            "# On a GPU",
            f"Written by `make gpu` on {time.strftime('%Y-%m-%d', time.gmtime())}: {title}.",
            *([f"**{NOTHING}**"] if meaningless else []),
            "## Host to device",
            f"{copy_rate} A batch is events x examples.",
            markdown(COPY_HEADINGS, copied),
            "## Training",
            "Forward and backward of attention layers, with batches from a server on the same "
            "machine. *Waiting* is the share of the trainer's time spent in the loader; the "
            "difference to steps on one batch that never moves has everything else in it, too.",
            markdown(TRAINING_HEADINGS, trained),
        ]
        arguments.out.write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
