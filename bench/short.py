"""Short, shuffled and fresh histories: thin rows beside the same table of fat rows.

Run with ``make bench-short``. It writes docs/reports/benchmarks-short.md. With ``--quick``
everything is tiny: that tries the script out and writes nothing but into --out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from compared import compare
from limits import bare_server
from page import peers_table, profile_table, table, tenants_table
from peers.parquet import PolarsRows, PyArrowRows, ShuffledPolarsRows, ShuffledPyArrowRows
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from tenants import DAYS, MID, SHORT
from thinrow.demo.sample_data import movielens_100k, requests_every
from workload import SCHEMA, workload
from world import CLUSTERED, DAY_MS, IN_TIME_ORDER, SHUFFLED, Tenant, built, in_files, slices

from server import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from goals import Found
    from sides import Side
    from world import World

ROOT = Path(__file__).parent.parent
REQUEST_EVERY = 5
"""Every fifth event of a user is a request, as in `thinrow demo`."""
FILMS = Tenant(name="", sequence_length=0, traits=("item_id", "rating"), batch_examples=256)
MOVIELENS = (
    *(
        replace(FILMS, name=f"whole histories, {examples} a batch", batch_examples=examples)
        for examples in (64, 256, 1024)
    ),
    replace(FILMS, name="newest 50, 256 a batch", sequence_length=50),
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the run."""

    rounds: int
    users: int
    events_median: int
    short_examples: int
    mid_examples: int
    films_every: int
    """One in N people of MovieLens."""


FULL = Sizes(
    rounds=5,
    users=2000,
    events_median=4000,
    short_examples=32_768,
    mid_examples=8192,
    films_every=1,
)
QUICK = Sizes(
    rounds=1, users=60, events_median=500, short_examples=1200, mid_examples=600, films_every=20
)


def movielens(sizes: Sizes, scratch: Path, add: Callable[..., None]) -> None:
    """Histories that are mostly newer than their day's store, and so travel in the rows."""
    sample = movielens_100k()
    events = sample.events.filter(pl.col("user_id") % sizes.films_every == 0)
    # Ratings are whole stars. The ids number a user's events, as the demo has them.
    events = events.select(
        "user_id",
        "event_ts",
        pl.col("event_ts").rank("ordinal").over("user_id").cast(pl.Int64).alias("event_id"),
        "item_id",
        pl.col("rating").cast(pl.Int8),
    )
    requests = requests_every(events, REQUEST_EVERY).select("user_id", "request_ts")
    requests = requests.with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))
    schema = '[item]\nitem_id = { type = "int64", key = true }\n[feedback]\nrating = "int8"\n'
    watermark_ts = int(events["event_ts"].to_numpy().max()) // DAY_MS * DAY_MS
    orders = {IN_TIME_ORDER: requests}
    with built("MovieLens", scratch / "movielens", events, schema, orders, watermark_ts) as world:
        for tenant in MOVIELENS:
            for order in (IN_TIME_ORDER, SHUFFLED):
                add(world, order, tenant)


def made(sizes: Sizes, scratch: Path, add: Callable[..., None]) -> None:
    """The short tenant in every order, and the mid one in full shuffle."""
    drawn = workload(
        users=sizes.users, events_median=sizes.events_median, days=DAYS, request_days=1
    )
    orders = slices(drawn.requests, sizes.short_examples)
    few = slices(drawn.requests, sizes.mid_examples)[IN_TIME_ORDER]
    for name, tenant, chosen in (
        ("mid", SHORT, {order: orders[order] for order in (IN_TIME_ORDER, CLUSTERED)}),
        ("mid, fewer examples", MID, {IN_TIME_ORDER: few}),
    ):
        with built(name, scratch / name, drawn.events, SCHEMA, chosen, drawn.watermark_ts) as world:
            for order in (*chosen, SHUFFLED) if tenant is SHORT else (SHUFFLED,):
                add(world, order, tenant)


def fat_readers(world: World, order: str, tenant: Tenant, fat: Path) -> list[Side]:
    """Readers of a table cut to the tenant's own length, in the same order."""
    if order == SHUFFLED:
        return [
            kind(fat, tenant.traits, tenant.batch_examples, world.shuffle)
            for kind in (ShuffledPyArrowRows, ShuffledPolarsRows)
        ]
    return [kind(fat, tenant.traits, tenant.batch_examples) for kind in (PyArrowRows, PolarsRows)]


def ratios_table(found: Found) -> str:
    """Times of thin rows and of the fastest reader of fat rows, and their ratio."""
    rows = []
    for one in found.values():
        fastest = one.fastest(*(name for name in one.figures if name.startswith("fat rows")))
        rows.append(
            [
                one.world,
                one.tenant.name,
                one.order,
                f"{one.events / one.examples:,.0f}",
                f"{1000 * one.thin.round_s:,.1f}",
                f"{1000 * one.figures[fastest].round_s:,.1f}",
                fastest.removeprefix("fat rows, "),
                f"**{one.ratio(fastest):.2f}x**",
            ]
        )
    headings = (
        "data | tenant | order | events each: | thin rows ms: | fat rows ms: | read by "
        "| thin rows are:"
    )
    return table(headings, rows)


def measured(
    parts: Sequence[str], sizes: Sizes, scratch: Path, report: Callable[[str], None]
) -> Found:
    """Compares every tenant of the parts in every order."""
    found: Found = {}
    with bare_server() as bare:

        def add(world: World, order: str, tenant: Tenant) -> None:
            fat = world.folder / "fat.parquet"
            world.examples(in_files(order), tenant).write_fat_rows(fat)
            found[world.name, tenant.name, order] = compare(
                world,
                order,
                tenant,
                fat_readers(world, order, tenant, fat),
                fat=fat,
                bare=bare,
                rounds=sizes.rounds,
                report=lambda text: report(f"{world.name}: {tenant.name} {order}: {text}"),
            )
            fat.unlink()

        for part in parts:
            report(f"{part}: building")
            PARTS[part](sizes, scratch, add)
    return found


PARTS = {"movielens": movielens, "made": made}


def main() -> None:
    """Measures everything and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny run, to try it out")
    parser.add_argument("--only", choices=PARTS, help="one part, shown and not written down")
    parser.add_argument("--out", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    is_partial = arguments.quick or arguments.only
    out = arguments.out or (None if is_partial else ROOT / "docs/reports")
    load, start_s = os.getloadavg()[0], time.perf_counter()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        Progress(*columns, refresh_per_second=1) as progress,
        tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch,
    ):
        task = progress.add_task("starting", total=None)
        sizes = QUICK if arguments.quick else FULL
        parts = [arguments.only] if arguments.only else list(PARTS)
        found = measured(
            parts, sizes, Path(scratch), lambda text: progress.update(task, description=text)
        )
    text = (
        (Path(__file__).parent / "short.md.in")
        .read_text()
        .format(
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            machine=machine(),
            load=f"{load:.1f}",
            minutes=f"{(time.perf_counter() - start_s) / 60:.0f}",
            sizes=sizes,
            ratios=ratios_table(found),
            peers=peers_table(found),
            tenants=tenants_table(found),
            profile=profile_table(found),
        )
    )
    print(text)
    if out is not None:
        (out / "benchmarks-short.md").write_text(text)


if __name__ == "__main__":
    main()
