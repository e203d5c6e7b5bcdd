"""Thin rows through server and client, side by side with fat rows in Parquet.

Run with ``make bench``. It prints what it measured, and writes docs/reports/benchmarks.md and
its plot. Nothing is timed before its result has been compared with the other side's.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from in_process import EVENTS_MEDIAN, USERS, compared
from rich.console import Console
from starvation import CASES, copy_bytes_per_s, measure
from thinrow.client import Pointers, Projection
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.demo.sample_data import complete_journey, mathoverflow, requests_every
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.materialize import materialize
from workload import SCHEMA, workload

from server import machine, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from thinrow.demo.sample_data import SampleData

ROOT = Path(__file__).parent.parent
MATHOVERFLOW = ROOT.parent / "shared/data/mathoverflow_events.parquet"
DAY_MS = 24 * 3600 * 1000
RUNS = 5
BATCH_EXAMPLES = 512
REQUEST_EVERY = 20
MADE_USERS = 1000
MADE_EVENTS_MEDIAN = 4000
MADE_DAYS = 365
MADE_REQUEST_DAYS = 3
LENGTH_USERS = 64
LENGTHS = (1_000, 100_000)
LENGTH_RUNS = 40
NEWEST_EVENTS = 256
ORDERS = {
    "in time order": ["request_ts", "user_id"],
    "clustered by user": ["user_id", "request_ts"],
}

console = Console(highlight=False)
Tensors = list[torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One data set in one order."""

    data: str
    order: str
    examples: int
    events: int
    thin_s: float
    fat_s: float
    stage_s: dict[str, float]
    """Seconds of one thin round that the server spent in each stage."""
    waited_s: dict[str, float]
    """Seconds of one thin round that the consumer waited for each stage of the loader."""
    store_bytes: int
    rows_bytes: int
    fat_bytes: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """Data to compare on."""

    name: str
    events: pl.DataFrame
    schema: str
    requests: pl.DataFrame
    watermark_ts: int
    sequence_length: int


def alternating(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of two things done in turn, after one uncounted round."""
    seconds: list[tuple[float, float]] = []
    for _ in range(RUNS + 1):
        pair = []
        for work in (first, second):
            start = time.perf_counter()
            work()
            pair.append(time.perf_counter() - start)
        seconds.append((pair[0], pair[1]))
    counted = seconds[1:]
    return median(a for a, _ in counted), median(b for _, b in counted)


def thin_loader(address: str, rows: Path, projection: Projection) -> ThinRowLoader:
    """A loader of the rows in their file's order, and of nothing beside the histories."""
    config = LoaderConfig(batch_examples=BATCH_EXAMPLES, columns=())
    return ThinRowLoader(RowFiles(rows, order="files"), address, projection, config)


def thin_batches(loader: ThinRowLoader, traits: Sequence[str]) -> Iterator[Tensors]:
    """Final int64 tensors per batch, offsets first, through server, client and loader."""
    for batch in loader:
        yield [batch.offsets, *(batch.values[trait] for trait in traits)]


def fat_batches(fat: Path, traits: Sequence[str]) -> Iterator[Tensors]:
    """The same from fat rows, read by PyArrow."""
    for batch in pq.ParquetFile(fat).iter_batches(BATCH_EXAMPLES, columns=list(traits)):
        columns = [batch.column(trait) for trait in traits]
        offsets = columns[0].offsets.to_numpy().astype(np.int64)
        values = [column.flatten().to_numpy().astype(np.int64, copy=False) for column in columns]
        yield [torch.from_numpy(array) for array in (offsets - offsets[0], *values)]


def consume(batches: Iterator[Tensors]) -> int:
    """Takes all batches and counts their events."""
    return sum(int(tensors[0][-1]) for tensors in batches)


def check_equal(thin: Iterator[Tensors], fat: Iterator[Tensors]) -> None:
    """Both sides must have the very same tensors."""
    for ours, theirs in zip(thin, fat, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            if not torch.equal(mine, other):
                raise SystemExit("The two sides differ: nothing was measured.")


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def real(sample: SampleData) -> Case:
    """Whole histories of real users; every n-th event of a user is a request."""
    last_ts = int(sample.events["event_ts"].to_numpy().max())
    return Case(
        name=sample.name,
        events=sample.events,
        schema=sample.schema,
        requests=requests_every(sample.events, REQUEST_EVERY).select("user_id", "request_ts"),
        watermark_ts=(last_ts // DAY_MS + 1) * DAY_MS,
        sequence_length=0,
    )


def made_up() -> Case:
    """Long histories and many requests, as recommenders have them."""
    made = workload(
        users=MADE_USERS,
        events_median=MADE_EVENTS_MEDIAN,
        days=MADE_DAYS,
        request_days=MADE_REQUEST_DAYS,
    )
    return Case(
        name="made up, newest 4,096",
        events=made.events,
        schema=SCHEMA,
        requests=made.requests,
        watermark_ts=made.watermark_ts,
        sequence_length=4096,
    )


def compare(case: Case, folder: Path) -> Iterator[Comparison]:
    """Builds everything for one case and compares it in both orders."""
    folder.mkdir()
    events, schema, store = folder / "events.parquet", folder / "schema.toml", folder / "store"
    schema.write_text(case.schema)
    # Both sides deliver integers: what differs is only how the data comes.
    integers = tuple(
        name
        for name, kind in case.events.schema.items()
        if kind.is_integer() and name not in ("user_id", "arrival_ts", "event_id")
    )
    projection = Projection(case.sequence_length, traits=integers)
    case.events.write_parquet(events)
    compact(
        CompactionConfig(
            store=store,
            events=[events],
            schema=schema,
            watermark_ts=case.watermark_ts,
            cadence_ms=DAY_MS,
        )
    )
    with serving(store, folder / "server.log") as served:
        for number, (order, keys) in enumerate(ORDERS.items()):
            request_file = folder / f"requests-{number}.parquet"
            rows, fat = folder / f"rows-{number}.parquet", folder / f"fat-{number}.parquet"
            case.requests.sort(keys).write_parquet(request_file)
            backfill(BackfillConfig(requests=request_file, store=store, events=[events], rows=rows))
            materialize(served.client, rows, Projection(case.sequence_length), fat)
            # As a warehouse would have written it: PyArrow's own defaults, zstd.
            rewrite(fat)
            with thin_loader(served.address, rows, projection) as loader:
                check_equal(thin_batches(loader, integers), fat_batches(fat, integers))
                before, waited = served.stage_seconds(), loader.starvation.waited_s
                thin_s, fat_s = alternating(
                    lambda loader=loader: consume(thin_batches(loader, integers)),  # type: ignore[misc]
                    lambda fat=fat: consume(fat_batches(fat, integers)),  # type: ignore[misc]
                )
                after = served.stage_seconds()
                yield Comparison(
                    data=case.name,
                    order=order,
                    examples=len(case.requests),
                    events=consume(fat_batches(fat, integers)),
                    thin_s=thin_s,
                    fat_s=fat_s,
                    stage_s={
                        stage: (after[stage] - before.get(stage, 0.0)) / (RUNS + 1)
                        for stage in after
                    },
                    waited_s={
                        stage: (seconds - waited[stage]) / (RUNS + 1)
                        for stage, seconds in loader.starvation.waited_s.items()
                    },
                    store_bytes=size(store),
                    rows_bytes=size(rows),
                    fat_bytes=size(fat),
                )
            fat.unlink()


def rewrite(fat: Path) -> None:
    """Writes a Parquet file again with PyArrow's defaults and zstd, in bounded memory."""
    temporary = fat.with_suffix(".new")
    file = pq.ParquetFile(fat)
    with pq.ParquetWriter(temporary, file.schema_arrow, compression="zstd") as writer:
        for batch in file.iter_batches(8192):
            writer.write_table(pa.table(batch))
    temporary.replace(fat)


def length_cost(folder: Path) -> tuple[list[float], list[float]]:
    """Milliseconds for the newest events of users with short histories, and with long ones."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    parts = []
    for group, length in enumerate(LENGTHS):
        count = LENGTH_USERS * length
        parts.append(
            pl.DataFrame(
                {
                    "user_id": np.repeat(np.arange(LENGTH_USERS) * 2 + group, length),
                    "event_ts": np.tile(
                        np.linspace(0, 1000 * DAY_MS, length, False, dtype=np.int64),
                        LENGTH_USERS,
                    ),
                    "item_id": rng.zipf(1.3, count).clip(max=10**9),
                    "watch_ms": rng.integers(0, 100_000, count),
                    "action": rng.integers(0, 5, count),
                }
            )
        )
    events, schema, store = folder / "events.parquet", folder / "schema.toml", folder / "store"
    pl.concat(parts).write_parquet(events)
    schema.write_text('[item]\nitem_id = "int64"\n[use]\nwatch_ms = "int32"\naction = "int8"\n')
    end_ts = 1001 * DAY_MS
    compact(CompactionConfig(store=store, events=[events], schema=schema, watermark_ts=end_ts))
    milliseconds: tuple[list[float], list[float]] = ([], [])
    with serving(store, folder / "server.log") as served:
        client = served.client
        for run in range(LENGTH_RUNS + 5):
            for group in range(len(LENGTHS)):
                users = np.arange(LENGTH_USERS) * 2 + group
                pointers = Pointers(user_ids=users, end_ts=np.full(LENGTH_USERS, end_ts))
                start = time.perf_counter()
                batch = client.materialize(pointers, Projection(NEWEST_EVENTS))
                took = 1000 * (time.perf_counter() - start)
                if int(batch.offsets[-1]) != LENGTH_USERS * NEWEST_EVENTS:
                    raise SystemExit("A history came back too short: nothing was measured.")
                if run >= 5:
                    milliseconds[group].append(took)
    return milliseconds


def report(
    comparisons: list[Comparison],
    lengths: tuple[list[float], list[float]],
    starvation: list[str],
    copied: float,
    in_process: list[str],
) -> str:
    """The page docs/reports/benchmarks.md."""
    speed = [
        f"| {c.data} | {c.order} | {c.examples:,} | {c.events / c.examples:,.0f} "
        f"| {c.examples / c.thin_s:,.0f} | {c.events / c.thin_s / 1e6:,.1f} M "
        f"| {c.examples / c.fat_s:,.0f} | {c.events / c.fat_s / 1e6:,.1f} M "
        f"| **{c.fat_s / c.thin_s:.2f}x** |"
        for c in comparisons
    ]
    stored = [
        f"| {c.data} | {c.order} | {c.store_bytes / 1e6:,.1f} | {c.rows_bytes / 1e6:,.1f} "
        f"| {c.fat_bytes / 1e6:,.1f} | **{(c.store_bytes + c.rows_bytes) / c.fat_bytes:.1%}** |"
        for c in comparisons
    ]
    stages = [
        f"| {c.data} | {c.order} | "
        + " | ".join(f"{c.stage_s[stage] / c.thin_s:.0%}" for stage in ("plan", "read", "assemble"))
        + " |"
        for c in comparisons
    ]
    short, long = (median(part) for part in lengths)
    waits = [
        f"| {c.data} | {c.order} | "
        + " | ".join(f"{seconds / c.thin_s:.0%}" for seconds in c.waited_s.values())
        + " |"
        for c in comparisons
    ]
    template = (Path(__file__).parent / "benchmarks.md.in").read_text()
    return template.format(
        machine=machine(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        runs=RUNS,
        batch_examples=BATCH_EXAMPLES,
        request_every=REQUEST_EVERY,
        speed="\n".join(speed),
        stored="\n".join(stored),
        stages="\n".join(stages),
        waits="\n".join(waits),
        made_users=f"{MADE_USERS:,}",
        made_days=MADE_DAYS,
        made_request_days=MADE_REQUEST_DAYS,
        starvation="\n".join(starvation),
        copy_gb_per_s=f"{copied / 1e9:.1f}",
        in_process="\n".join(in_process),
        in_process_users=USERS,
        in_process_events=f"{EVENTS_MEDIAN:,}",
        length_users=LENGTH_USERS,
        length_runs=LENGTH_RUNS,
        newest_events=NEWEST_EVENTS,
        short_ms=f"{short:.2f}",
        long_ms=f"{long:.2f}",
        length_ratio=f"{long / short:.2f}",
    )


def plot(comparisons: list[Comparison], path: Path) -> None:
    """Events per second and bytes stored, side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = [f"{c.data.removeprefix('The ').split(' (')[0]}\n{c.order}" for c in comparisons]
    places = np.arange(len(names))
    figure, (speed, stored) = plt.subplots(2, 1, figsize=(10, 7), layout="constrained")
    for axes, thin, fat, title in (
        (
            speed,
            [c.events / c.thin_s / 1e6 for c in comparisons],
            [c.events / c.fat_s / 1e6 for c in comparisons],
            "million events/s into int64 arrays",
        ),
        (
            stored,
            [(c.store_bytes + c.rows_bytes) / 1e6 for c in comparisons],
            [c.fat_bytes / 1e6 for c in comparisons],
            "MB stored",
        ),
    ):
        for shift, values, label, colour in (
            (-0.2, thin, "thin rows", "#1b7f79"),
            (0.2, fat, "fat rows, zstd Parquet", "#c46a3b"),
        ):
            axes.bar_label(
                axes.bar(places + shift, values, 0.4, label=label, color=colour), fmt="{:,.0f}"
            )
        axes.set_xticks(places, names, fontsize=8)
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    speed.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures everything, shows it, writes it down."""
    samples: list[Callable[[], Case]] = [made_up, lambda: real(complete_journey())]
    if MATHOVERFLOW.exists():
        samples.append(lambda: real(mathoverflow(MATHOVERFLOW)))
    else:
        console.print(f"Without the MathOverflow events: there is no {MATHOVERFLOW}")
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch:
        comparisons = []
        for number, sample in enumerate(samples):
            for comparison in compare(sample(), Path(scratch) / str(number)):
                comparisons.append(comparison)
                console.print(comparison)
        lengths = length_cost(Path(scratch) / "lengths")
        copied = copy_bytes_per_s()
        starvation = [
            "| " + " | ".join(measure(case, Path(scratch) / str(case.events), copied)) + " |"
            for case in CASES
        ]
        in_process = ["| " + " | ".join(row) + " |" for row in compared(Path(scratch) / "local")]
    page = report(comparisons, lengths, starvation, copied, in_process)
    console.print(page, soft_wrap=True)
    (ROOT / "docs/reports/benchmarks.md").write_text(page)
    plot(comparisons, ROOT / "docs/reports/benchmarks.png")


if __name__ == "__main__":
    main()
