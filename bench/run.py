"""Thin rows through server and client, side by side with fat rows in Parquet.

Run with ``make bench``. It prints what it measured, and writes docs/benchmarks.md and the plot
in it. Nothing is timed before its result has been compared with the other side's.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from thinrow.cli.fat_rows import materialize, stream_rows
from thinrow.cli.sample_data import complete_journey, mathoverflow, requests_every
from thinrow.client import Client, Pointers, Projection, connect
from thinrow.compaction import CompactionConfig, compact
from thinrow.online import BackfillConfig, backfill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from thinrow.cli.sample_data import SampleData

ROOT = Path(__file__).parent.parent
MATHOVERFLOW = ROOT.parent / "shared/data/mathoverflow_events.parquet"
DAY_MS = 24 * 3600 * 1000
RUNS = 5
BATCH_EXAMPLES = 512
REQUEST_EVERY = 20
LENGTH_USERS = 64
LENGTHS = (1_000, 100_000)
LENGTH_RUNS = 40
NEWEST_EVENTS = 256
ORDERS = {
    "in time order": ["request_ts", "user_id"],
    "clustered by user": ["user_id", "request_ts"],
}

console = Console(highlight=False)
Tensors = list["NDArray[np.int64]"]


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
    store_bytes: int
    rows_bytes: int
    fat_bytes: int


class Served(NamedTuple):
    """A server in a process of its own."""

    client: Client
    metrics: str

    def stage_seconds(self) -> dict[str, float]:
        """Seconds that the server has spent in each stage so far."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(
            r'^thinrow_stage_seconds_sum\{stage="(\w+)"\} (\S+)$', text, re.MULTILINE
        )
        return {stage: float(seconds) for stage, seconds in found}


@contextmanager
def serving(store: Path, log: Path) -> Iterator[Served]:
    """A server of a store, and a client of it."""
    command = ["serve", "--store", str(store)]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "thinrow.cli.entry", *command], stderr=output
        )
    try:
        while '"serving"' not in log.read_text():
            if server.poll() is not None:
                raise SystemExit(f"The server ended: {log.read_text()}")
            time.sleep(0.05)
        told = json.loads(log.read_text().splitlines()[0])
        with connect(told["address"]) as client:
            yield Served(client, told["metrics"])
    finally:
        server.terminate()
        server.wait()


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


def thin_batches(client: Client, rows: Path, traits: list[str]) -> Iterator[Tensors]:
    """Final int64 arrays per batch, offsets first, through server and client."""
    projection = Projection(traits=tuple(traits))
    for batch, _ in stream_rows(client, rows, projection, BATCH_EXAMPLES):
        values = [batch.values[trait].astype(np.int64, copy=False) for trait in traits]
        yield [batch.offsets, *values]


def fat_batches(fat: Path, traits: list[str]) -> Iterator[Tensors]:
    """The same from fat rows, read by PyArrow."""
    for batch in pq.ParquetFile(fat).iter_batches(BATCH_EXAMPLES, columns=traits):
        columns = [batch.column(trait) for trait in traits]
        offsets = columns[0].offsets.to_numpy().astype(np.int64)
        values = [column.flatten().to_numpy().astype(np.int64, copy=False) for column in columns]
        yield [offsets - offsets[0], *values]


def consume(batches: Iterator[Tensors]) -> int:
    """Takes all batches and counts their events."""
    return sum(int(tensors[0][-1]) for tensors in batches)


def check_equal(thin: Iterator[Tensors], fat: Iterator[Tensors]) -> None:
    """Both sides must have the very same tensors."""
    for ours, theirs in zip(thin, fat, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            if not np.array_equal(mine, other):
                raise SystemExit("The two sides differ: nothing was measured.")


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def compare(sample: SampleData, folder: Path) -> Iterator[Comparison]:
    """Builds everything for one data set and compares it in both orders."""
    folder.mkdir()
    events, schema, store = folder / "events.parquet", folder / "schema.toml", folder / "store"
    schema.write_text(sample.schema)
    # Both sides deliver integers: what differs is only how the data comes.
    integers = [
        name
        for name, kind in sample.events.schema.items()
        if kind.is_integer() and name not in ("user_id", "arrival_ts", "event_id")
    ]
    sample.events.write_parquet(events)
    last_ts = int(sample.events["event_ts"].to_numpy().max())
    watermark_ts = (last_ts // DAY_MS + 1) * DAY_MS
    compact(
        CompactionConfig(
            store=store,
            events=[events],
            schema=schema,
            watermark_ts=watermark_ts,
            cadence_ms=DAY_MS,
        )
    )
    requests = requests_every(sample.events, REQUEST_EVERY).select("user_id", "request_ts")
    with serving(store, folder / "server.log") as served:
        client = served.client
        for number, (order, keys) in enumerate(ORDERS.items()):
            asked = folder / f"requests-{number}.parquet"
            rows, fat = folder / f"rows-{number}.parquet", folder / f"fat-{number}.parquet"
            requests.sort(keys).write_parquet(asked)
            backfill(BackfillConfig(requests=asked, store=store, events=[events], rows=rows))
            materialize(client, rows, Projection(), fat)
            # As a warehouse would have written it: PyArrow's own defaults, zstd.
            rewrite(fat)
            check_equal(thin_batches(client, rows, integers), fat_batches(fat, integers))
            before = served.stage_seconds()
            thin_s, fat_s = alternating(
                lambda rows=rows: consume(thin_batches(client, rows, integers)),  # type: ignore[misc]
                lambda fat=fat: consume(fat_batches(fat, integers)),  # type: ignore[misc]
            )
            yield Comparison(
                data=sample.name,
                order=order,
                examples=len(requests),
                events=consume(fat_batches(fat, integers)),
                thin_s=thin_s,
                fat_s=fat_s,
                stage_s={
                    stage: (seconds - before.get(stage, 0.0)) / (RUNS + 1)
                    for stage, seconds in served.stage_seconds().items()
                },
                store_bytes=size(store),
                rows_bytes=size(rows),
                fat_bytes=size(fat),
            )


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


def machine() -> str:
    """What this ran on."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    processor = names[0].split(":")[1].strip() if names else platform.processor()
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "numpy", "pyarrow"))
    return f"{cores} cores of {processor}, Python {platform.python_version()}, {packages}"


def report(comparisons: list[Comparison], lengths: tuple[list[float], list[float]]) -> str:
    """The page docs/benchmarks.md."""
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
    figure, (speed, stored) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
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
                axes.bar(places + shift, values, 0.4, label=label, color=colour), fmt="%.3g"
            )
        axes.set_xticks(places, names, fontsize=8)
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    speed.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures everything, shows it, writes it down."""
    samples = [complete_journey()]
    if MATHOVERFLOW.exists():
        samples.append(mathoverflow(MATHOVERFLOW))
    else:
        console.print(f"Without the MathOverflow events: there is no {MATHOVERFLOW}")
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch:
        comparisons = []
        for number, sample in enumerate(samples):
            for comparison in compare(sample, Path(scratch) / str(number)):
                comparisons.append(comparison)
                console.print(comparison)
        lengths = length_cost(Path(scratch) / "lengths")
    page = report(comparisons, lengths)
    console.print(page, soft_wrap=True)
    (ROOT / "docs/benchmarks.md").write_text(page)
    plot(comparisons, ROOT / "docs/benchmarks.png")


if __name__ == "__main__":
    main()
