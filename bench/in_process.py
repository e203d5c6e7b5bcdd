"""A store in the trainer's process beside a server of it on the same machine.

    .venv/bin/python bench/in_process.py [--quick]

prints the table; `make bench` writes it into docs/reports/benchmarks.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from sides import measure
from thinrow.client import Pointers, Projection, connect
from workload import SCHEMA, TRAITS, workload
from world import AT_RANDOM, CLUSTERED, IN_TIME_ORDER, InProcess, Tenant, ThinRows, built, slices

from server import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world import World

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
CALL_EXAMPLES, CALLS = (1, 64, 1024), 300
QUICK_USERS, QUICK_EVENTS_MEDIAN, QUICK_ROUNDS = 60, 1_000, 1

console = Console(highlight=False)


def compared(folder: Path, *, quick: bool = False) -> Iterator[list[str]]:
    """Yields the rows of the table: both sides' results are checked, then timed in turn."""
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
        yield from calls(world, made.watermark_ts)
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
                    f"the loader, {order}",
                    f"{tenant.sequence_length:,}",
                    f"{len(examples):,}",
                    f"{theirs.examples / theirs.round_s:,.0f}",
                    f"{ours.examples / ours.round_s:,.0f}",
                    f"**{theirs.round_s / ours.round_s:.2f}x**",
                    f"{theirs.cpu_s_per_million:.3f}",
                    f"{ours.cpu_s_per_million:.3f}",
                    f"{others:.1f}",
                ]


def calls(world: World, watermark_ts: int) -> Iterator[list[str]]:
    """Yields a row for single calls of each number of examples."""
    tenant = TENANTS[0]
    projection = Projection(tenant.sequence_length, traits=tenant.traits)
    with connect(world.folder / "store") as local:
        for examples in CALL_EXAMPLES:
            users = np.resize(world.histories.users, examples)
            pointers = Pointers(user_ids=users, end_ts=np.full(examples, watermark_ts))
            seconds: dict[str, list[float]] = {"server": [], "local": []}
            for _ in range(CALLS):
                found = []
                for name, client in (("server", world.served.client), ("local", local)):
                    start_s = time.perf_counter()
                    found.append(client.materialize(pointers, projection))
                    seconds[name].append(time.perf_counter() - start_s)
                if not all(
                    np.array_equal(found[0].values[trait], found[1].values[trait])
                    for trait in tenant.traits
                ):
                    raise SystemExit("The two sides differ: nothing was measured.")
            theirs_s, ours_s = median(seconds["server"]), median(seconds["local"])
            yield [
                "`client.materialize`",
                f"{tenant.sequence_length:,}",
                f"{examples:,}",
                f"{examples / theirs_s:,.0f}",
                f"{examples / ours_s:,.0f}",
                f"**{theirs_s / ours_s:.2f}x**",
                "",
                "",
                "",
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
