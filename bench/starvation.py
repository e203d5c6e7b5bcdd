"""Time that a trainer waits for its batches when a step takes no less than their bytes allow.

A step sleeps for as long as copying the batch's bytes takes at half the memory's copying speed.
It sleeps, rather than compute, because a trainer on a GPU leaves the processor to the loader.

    .venv/bin/python bench/starvation.py [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from synthetic import TRAITS, build
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, ThinRowLoader

from server import machine, serving

COPY_BYTES = 1 << 28
COPY_RUNS = 5
WARM_BATCHES = 20

console = Console(highlight=False, width=120)


class Case(NamedTuple):
    """Histories of one length."""

    events: int
    batch_examples: int
    users: int
    requests: int


CASES = [Case(256, 256, 512, 200), Case(4096, 64, 128, 100), Case(16_384, 16, 64, 100)]
QUICK = [Case(64, 16, 32, 40)]


def copy_bytes_per_s() -> float:
    """Speed of copying memory that is warm and larger than any cache; the best of some runs."""
    source, target = np.ones(COPY_BYTES, np.uint8), np.ones(COPY_BYTES, np.uint8)
    seconds = []
    for _ in range(COPY_RUNS):
        start_s = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start_s)
    return COPY_BYTES / min(seconds)


def measure(case: Case, folder: Path, bytes_per_s: float) -> list[str]:
    """One row of the table: the goal, the length of a step, the share of waiting."""
    sample = build(folder, users=case.users, events=case.events, requests=case.requests)
    config = LoaderConfig(batch_examples=case.batch_examples)
    projection = Projection(sequence_length=case.events, traits=TRAITS)
    with (
        serving(sample.store, folder / "server.log") as served,
        ThinRowLoader(sample.rows, served.address, projection, config) as loader,
    ):
        steps = 0
        nbytes = 0
        for number, batch in enumerate(loader):
            if number == WARM_BATCHES:
                waited_s, elapsed_s = loader.starvation.waited_s, loader.starvation.elapsed_s
                steps = nbytes = 0
            time.sleep(2 * batch.nbytes / bytes_per_s)
            steps += 1
            nbytes += batch.nbytes
        now_s = loader.starvation.waited_s
        total_s = loader.starvation.elapsed_s - elapsed_s
    shares = {stage: (now_s[stage] - waited_s[stage]) / total_s for stage in now_s}
    return [
        f"{case.events:,}",
        f"{case.batch_examples} ({nbytes / steps / 1e6:.1f} MB)",
        f"{2e3 * nbytes / steps / bytes_per_s:.1f}",
        f"{nbytes / total_s / 1e9:.2f}",
        f"{sum(shares.values()):.1%}",
        *(f"{share:.1%}" for share in shares.values()),
    ]


def main() -> None:
    """Measures all cases and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small case only, to try it out")
    arguments = parser.parse_args()
    bytes_per_s = copy_bytes_per_s()
    table = Table(title=f"{machine()}: copies {bytes_per_s / 1e9:.1f} GB/s")
    for heading in (
        *("events", "batch", "step, ms", "GB/s", "waiting"),
        *("rows", "lookup", "wire", "widen", "copy"),
    ):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch:
        for number, case in enumerate(QUICK if arguments.quick else CASES):
            table.add_row(*measure(case, Path(scratch) / str(number), bytes_per_s))
    console.print(table)


if __name__ == "__main__":
    main()
