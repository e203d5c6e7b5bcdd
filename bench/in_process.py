"""A store in the trainer's process beside a server of it on the same machine.

    .venv/bin/python bench/in_process.py [--quick]

prints the table; `make bench` writes it into docs/reports/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from sides import measure
from workload import SCHEMA, TRAITS, workload
from world import AT_RANDOM, CLUSTERED, IN_TIME_ORDER, InProcess, Tenant, ThinRows, built, slices

from server import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

TENANTS = (
    Tenant(
        name="short",
        sequence_length=100,
        traits=("item_id", "author_id", "category"),
        batch_examples=1024,
    ),
    Tenant(
        name="mid",
        sequence_length=1024,
        traits=("item_id", "category", "action", "watch_ms"),
        batch_examples=256,
    ),
    Tenant(name="long", sequence_length=8192, traits=TRAITS, batch_examples=64),
)
EXAMPLES = {"short": 131_072, "mid": 32_768, "long": 4_096}
REQUESTS_PER_DAY = 80
USERS, EVENTS_MEDIAN, DAYS, ROUNDS = 600, 8_000, 365, 7
QUICK_USERS, QUICK_EVENTS_MEDIAN, QUICK_ROUNDS = 60, 1_000, 1

console = Console(highlight=False)


def compared(folder: Path, *, quick: bool = False) -> Iterator[list[str]]:
    """Yields the rows of the table: both sides' tensors are checked, then timed in turn."""
    made = workload(
        users=QUICK_USERS if quick else USERS,
        events_median=QUICK_EVENTS_MEDIAN if quick else EVENTS_MEDIAN,
        days=DAYS,
        request_days=3,
        requests_per_day=REQUESTS_PER_DAY,
    )
    orders = {
        f"{order}, {tenant.name}": requests
        for tenant in TENANTS
        for order, requests in slices(made.requests, EXAMPLES[tenant.name]).items()
    }
    with built("made up", folder, made.events, SCHEMA, orders, made.watermark_ts) as world:
        for tenant in TENANTS:
            for order in (IN_TIME_ORDER, CLUSTERED, AT_RANDOM):
                name = f"{order}, {tenant.name}"
                examples = world.examples(name, tenant)
                served, local = ThinRows(world, name, tenant), InProcess(world, name, tenant)
                figures, others = measure(
                    (served, local),
                    examples.batches,
                    QUICK_ROUNDS if quick else ROUNDS,
                    lambda _: None,
                )
                served.loader.close()
                local.loader.close()
                ours, theirs = figures[local.name], figures[served.name]
                yield [
                    order,
                    f"{tenant.sequence_length:,}",
                    f"{len(examples):,}",
                    f"{theirs.examples / theirs.round_s:,.0f}",
                    f"{ours.examples / ours.round_s:,.0f}",
                    f"**{theirs.round_s / ours.round_s:.2f}x**",
                    f"{theirs.cpu_s_per_million:.3f}",
                    f"{ours.cpu_s_per_million:.3f}",
                    f"{others:.1f}",
                ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny run, to try it out")
    quick = parser.parse_args().quick
    console.print(machine())
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch:
        for row in compared(Path(scratch) / "world", quick=quick):
            console.print("| " + " | ".join(row) + " |", soft_wrap=True)


if __name__ == "__main__":
    main()
