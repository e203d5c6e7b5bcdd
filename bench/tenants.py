"""Three tenants on thin rows, beside what others would use, and beside what the machine can do.

Run with ``make bench-peers``. It writes docs/reports/benchmarks-peers.md and its plots. With
``--quick`` everything is tiny: that tries the script out and writes nothing but into --out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import polars as pl
import processes
from compared import compare
from costs import compaction, stored, wire
from goals import goals
from limits import bare_server
from page import page, plots
from peers.duckdb_join import DuckDBJoin
from peers.flight import assembled
from peers.lance_lists import LanceTake
from peers.parquet import PolarsRows, PyArrowRows
from peers.redis_lists import redis_reads
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from run import MATHOVERFLOW, length_cost
from thinrow.demo.sample_data import mathoverflow, requests_every
from workload import SCHEMA, TRAITS, workload
from world import AT_RANDOM, CLUSTERED, DAY_MS, IN_TIME_ORDER, Tenant, built, slices

if TYPE_CHECKING:
    from collections.abc import Callable

    from compared import Compared
    from goals import Found
    from sides import Side
    from world import World

ROOT = Path(__file__).parent.parent
DAYS = 365
REQUEST_EVERY = 20
FEWER = " (fewer)"
UNION_LENGTH, LONG_LENGTH = 16_384, 65_536
LONG = Tenant(name="A, 16K", sequence_length=UNION_LENGTH, traits=TRAITS, batch_examples=64)
LONGER = Tenant(name="A, 64K", sequence_length=LONG_LENGTH, traits=TRAITS, batch_examples=16)
MID = Tenant(
    name="B",
    sequence_length=4096,
    traits=("item_id", "category", "action", "watch_ms"),
    batch_examples=512,
)
SHORT = Tenant(
    name="C",
    sequence_length=100,
    traits=("item_id", "author_id", "category"),
    batch_examples=1024,
)
WHOLE = Tenant(
    name="whole histories", sequence_length=0, traits=("item_id", "action"), batch_examples=512
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the run."""

    rounds: int
    union_users: int
    union_events_median: int
    union_examples: int
    longer_examples: int
    mid_users: int
    mid_events_median: int
    mid_examples: int
    stored_users: int
    stored_days: int
    compaction_users: int


FULL = Sizes(
    rounds=5,
    union_users=300,
    union_events_median=16_000,
    union_examples=4096,
    longer_examples=320,
    mid_users=2000,
    mid_events_median=4000,
    mid_examples=32_768,
    stored_users=30,
    stored_days=30,
    compaction_users=2000,
)
QUICK = Sizes(
    rounds=1,
    union_users=8,
    union_events_median=8000,
    union_examples=64,
    longer_examples=20,
    mid_users=60,
    mid_events_median=500,
    mid_examples=1200,
    stored_users=3,
    stored_days=3,
    compaction_users=6,
)


class Benchmark:
    """One run: what is measured goes into `found`."""

    def __init__(
        self, sizes: Sizes, scratch: Path, bare: tuple[str, int], report: Callable[[str], None]
    ) -> None:
        self.sizes = sizes
        self.scratch = scratch
        self.bare = bare
        self.report = report
        self.found: Found = {}

    def add(
        self,
        world: World,
        order: str,
        tenant: Tenant,
        peers: list[Side],
        fat: Path | None = None,
        *,
        profiled: bool = False,
    ) -> Compared:
        """Compares one tenant in one order."""
        prefix = f"{world.name}: {tenant.name} {order}"
        one = compare(
            world,
            order,
            tenant,
            peers,
            fat=fat,
            bare=self.bare,
            rounds=self.sizes.rounds,
            report=lambda text: self.report(f"{prefix}: {text}"),
            profiled=profiled,
        )
        self.found[world.name, tenant.name, order.removesuffix(FEWER)] = one
        return one

    def union(self) -> None:
        """One data set for all tenants, as the paper's Table 1 has it: fat rows of 16K events."""
        self.report("union: building")
        made = workload(
            users=self.sizes.union_users,
            events_median=self.sizes.union_events_median,
            days=DAYS,
            request_days=1,
        )
        orders = slices(made.requests, self.sizes.union_examples)
        del orders[AT_RANDOM]
        longer = slices(made.requests, self.sizes.longer_examples)
        orders |= {order + FEWER: longer[order] for order in orders}
        with built(
            "union", self.scratch / "union", made.events, SCHEMA, orders, made.watermark_ts
        ) as world:
            del made
            fat = world.folder / "fat.parquet"
            for order in (IN_TIME_ORDER, CLUSTERED):
                self.report(f"union: fat rows {order}")
                examples = world.examples(order, LONG)
                examples.write_fat_rows(fat)
                with assembled(examples, world.folder / "flight") as flights:
                    self.add(
                        world,
                        order,
                        LONG,
                        [*fat_readers(fat, LONG, UNION_LENGTH), *flights],
                        fat,
                        profiled=order == CLUSTERED,
                    )
                (world.folder / "flight").rmdir()
                for kind in (MID, SHORT):
                    tenant = replace(kind, batch_examples=LONG.batch_examples)
                    self.add(world, order, tenant, fat_readers(fat, tenant, UNION_LENGTH), fat)
                few = order + FEWER
                world.examples(few, LONGER).write_fat_rows(fat)
                self.add(world, few, LONGER, fat_readers(fat, LONGER, LONG_LENGTH), fat)
                fat.unlink()

    def mid(self) -> None:
        """More users with shorter histories, and for each tenant the tables it would choose."""
        self.report("mid: building")
        made = workload(
            users=self.sizes.mid_users,
            events_median=self.sizes.mid_events_median,
            days=DAYS,
            request_days=1,
        )
        orders = slices(made.requests, self.sizes.mid_examples)
        with built(
            "mid", self.scratch / "mid", made.events, SCHEMA, orders, made.watermark_ts
        ) as world:
            del made
            self.mid_fat(world)
            self.mid_short(world)
            self.report("mid: bytes on the wire")
            self.wire = wire(world)

    def mid_fat(self, world: World) -> None:
        """B beside fat rows of its own length."""
        fat = world.folder / "fat.parquet"
        everything = Tenant(
            name="", sequence_length=MID.sequence_length, traits=TRAITS, batch_examples=1
        )
        for order in (IN_TIME_ORDER, CLUSTERED):
            self.report(f"mid: fat rows {order}")
            world.examples(order, everything).write_fat_rows(fat)
            self.add(
                world,
                order,
                MID,
                fat_readers(fat, MID, MID.sequence_length),
                fat,
                profiled=order == IN_TIME_ORDER,
            )
            fat.unlink()
        self.add(world, AT_RANDOM, MID, [])

    def mid_short(self, world: World) -> None:
        """C beside stores that others look histories up in."""
        with ExitStack() as stack:
            self.report("mid: loading Redis")
            examples = world.examples(IN_TIME_ORDER, SHORT)
            everyone = world.examples(AT_RANDOM, SHORT)
            reads = stack.enter_context(redis_reads(everyone, world.folder / "redis"))
            self.report("mid: writing Lance")
            lance = LanceTake(world.folder / "lance", examples)
            fat = world.folder / "fat.parquet"
            for order in (IN_TIME_ORDER, CLUSTERED):
                examples = world.examples(order, SHORT)
                self.report("mid: writing DuckDB")
                duck = DuckDBJoin(
                    world.folder / f"duckdb {order}",
                    examples,
                    world.orders[order]["request_ts"].to_numpy(),
                    SHORT.sequence_length,
                )
                lance.examples = examples
                for read in reads:
                    read.examples = examples
                examples.write_fat_rows(fat)
                readers = fat_readers(fat, SHORT, SHORT.sequence_length)
                self.add(
                    world,
                    order,
                    SHORT,
                    [*readers, *reads, lance, duck],
                    fat,
                    profiled=order == IN_TIME_ORDER,
                )
                duck.close()
                shutil.rmtree(world.folder / f"duckdb {order}")

    def real(self) -> None:
        """Whole histories of MathOverflow."""
        if not MATHOVERFLOW.exists():
            return
        sample = mathoverflow(MATHOVERFLOW)
        events = sample.events
        requests = requests_every(events, REQUEST_EVERY).select("user_id", "request_ts")
        requests = requests.sort("request_ts", "user_id").with_row_index("number")
        requests = requests.with_columns(pl.col("number").cast(pl.Int64))
        orders = {
            IN_TIME_ORDER: requests,
            CLUSTERED: requests.sort("user_id", "request_ts", maintain_order=True),
        }
        watermark_ts = (int(events["event_ts"].to_numpy().max()) // DAY_MS + 1) * DAY_MS
        folder = self.scratch / "real"
        with built("MathOverflow", folder, events, sample.schema, orders, watermark_ts) as world:
            fat = folder / "fat.parquet"
            for order in orders:
                world.examples(order, WHOLE).write_fat_rows(fat)
                self.add(world, order, WHOLE, fat_readers(fat, WHOLE, 0), fat)

    def costs(self) -> None:
        """Bytes on disk, the cost of length, compaction."""
        sizes = self.sizes
        self.report("bytes on disk")
        self.stored = stored(self.scratch / "stored", sizes.stored_users, sizes.stored_days)
        self.report("long histories against short ones")
        short_ms, long_ms = length_cost(self.scratch / "lengths")
        self.lengths_ms = (median(short_ms), median(long_ms))
        self.report("two server processes against one")
        folder = self.scratch / "processes"
        folder.mkdir()
        self.processes = processes.compared(folder, sizes.rounds, ("raw",))["raw"]
        self.compaction = compaction(
            self.scratch / "compaction", sizes.compaction_users, sizes.rounds, self.report
        )


def fat_readers(fat: Path, tenant: Tenant, stored_length: int) -> list[Side]:
    """PyArrow and Polars on a table of rows that may be longer than the tenant wants."""
    wanted = tenant.sequence_length if tenant.sequence_length < stored_length else 0
    return [
        kind(fat, tenant.traits, tenant.batch_examples, wanted)
        for kind in (PyArrowRows, PolarsRows)
    ]


def main() -> None:
    """Measures everything and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny run, to try it out")
    parser.add_argument("--out", type=Path, help="folder of the page and its plots")
    arguments = parser.parse_args()
    out = arguments.out or (None if arguments.quick else ROOT / "docs/reports")
    sizes = QUICK if arguments.quick else FULL
    start_s = time.perf_counter()
    load = os.getloadavg()[0]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        Progress(*columns, refresh_per_second=1) as progress,
        tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch,
        bare_server() as bare,
    ):
        task = progress.add_task("starting", total=None)
        run = Benchmark(
            sizes, Path(scratch), bare, lambda text: progress.update(task, description=text)
        )
        for part in (run.union, run.mid, run.real, run.costs):
            part()
            progress.console.print(f"{part.__name__}: {time.perf_counter() - start_s:.0f} s")
    lines = list(
        goals(run.found, run.stored, run.wire, run.lengths_ms, run.processes, run.compaction)
    )
    packages = ("duckdb", "pylance", "polars", "redis", "torch", "rocksdict")
    text = page(
        sizes,
        run.found,
        lines,
        load=load,
        took_s=time.perf_counter() - start_s,
        packages=", ".join(f"{name} {version(name)}" for name in packages),
    )
    print(text)
    if out is not None:
        out.mkdir(exist_ok=True)
        (out / "benchmarks-peers.md").write_text(text)
        plots(run.found, lines, out)


if __name__ == "__main__":
    main()
