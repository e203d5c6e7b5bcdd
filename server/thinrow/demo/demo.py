"""``thinrow demo``: the whole loop on real events, ending in a model trained from the stream."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from rich.table import Table
from thinrow.client import Client, Projection, connect, row_count
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.demo.sample_data import SampleData, complete_journey, movielens_100k, requests_every
from thinrow.errors import ThinRowError
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.console import out, progress_bar, readable_bytes
from thinrow.jobs.interactions import PLACE
from thinrow.jobs.materialize import materialize, stream_rows
from thinrow.jobs.verify import verify
from thinrow.store.times import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from thinrow.client import Batch

__all__ = ["Dataset", "run_demo"]

Dataset = Literal["movielens", "completejourney"]
BATCH_EXAMPLES = 256
CHECKED_EXAMPLES = 1000
SERVER_START_S_MAX = 30.0
SERVER_STOP_S_MAX = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Recipe for one of the data sets."""

    load: Callable[[], SampleData]
    users_every: int
    """Takes one user in N, with all events."""
    target: str
    """Trait that the model learns to predict."""
    repeats: bool
    """True where its value can come again."""
    remark: str
    """Remark on the figures."""


RECIPES: dict[Dataset, Recipe] = {
    "movielens": Recipe(
        load=movielens_100k,
        users_every=1,
        target="item_id",
        repeats=False,
        remark="Most people here rated all their films in one evening: most of a history is newer "
        "than that day's store, and travels in the thin row. Thin rows are made for histories of a "
        "year:\n[cyan]$ thinrow demo --dataset completejourney[/]",
    ),
    "completejourney": Recipe(
        load=complete_journey,
        users_every=10,
        target="store_id",
        repeats=True,
        remark="Every tenth household of data that their authors call simulated; the model "
        "predicts where a household shops next.",
    ),
}


def run_demo(
    directory: Path | None = None,
    dataset: Dataset = "movielens",
    *,
    examples_max: int = 20_000,
    epochs: int = 3,
    sequence_length: int = 50,
) -> None:
    """Runs every step in ``directory`` (default ``.demo``), saying what it does and where.

    At most ``examples_max`` requests are made of the events; the model looks at the newest
    ``sequence_length`` events of each history.
    """
    recipe = RECIPES[dataset]
    demo = Demo((directory or Path(".demo")) / dataset)
    watermark_ts = demo.write_inputs(recipe, examples_max)
    demo.compact(watermark_ts)
    demo.backfill()
    with demo.serve() as address, connect(address) as client:
        demo.materialize(client, address)
        demo.verify(client, address)
        demo.measure(client)
        if find_spec("torch"):
            demo.train(address, recipe, epochs, sequence_length)
        else:
            demo.say("No model is trained, for want of PyTorch: pip install torch")
    out.print(demo.summary, recipe.remark, f"All files are in {demo.root}", sep="\n\n")


class Demo:
    """The steps, in order; those that measure add to the summary."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.events, self.requests = root / "events.parquet", root / "requests.parquet"
        self.schema, self.store = root / "schema.toml", root / "store"
        self.rows, self.fat = root / "rows.parquet", root / "fat.parquet"
        self.steps = 0
        self.store_bytes = 0
        self.summary = Table("", "thin rows", "fat rows", title="\nWhat came of it")
        for column in self.summary.columns[1:]:
            column.justify = "right"

    def say(self, what: str, *command: object) -> None:
        """Announces a step, with the command that a user would type for it."""
        self.steps += 1
        out.print(f"\n[bold]{self.steps}. {what}[/]")
        if command:
            out.print(f"[cyan]$ thinrow {shlex.join(map(str, command))}[/]", soft_wrap=True)

    def write_inputs(self, recipe: Recipe, examples_max: int) -> int:
        """Writes events, schema and requests; returns the last midnight among the events, ms."""
        sample = recipe.load()
        events = sample.events.filter(pl.col("user_id") % recipe.users_every == 0)
        every = math.ceil(len(events) / examples_max)
        requests = requests_every(events, every)
        # Many events share their time: ids number a user's events, and equal times as logged.
        in_order = events.sort("event_ts", maintain_order=True)
        in_order.with_columns(event_id=PLACE).write_parquet(self.events)
        requests.write_parquet(self.requests)
        self.schema.write_text(sample.schema)
        self.say(f"{sample.name}: {len(events):,} events of {events['user_id'].n_unique():,} users")
        out.print(
            f"One in {every} is a request to learn from: what came before it, and the event itself "
            f"as its label. Events, {len(requests):,} requests and the schema are in {self.root}"
        )
        return int(events["event_ts"].to_numpy().max()) // DAY_MS * DAY_MS

    def compact(self, watermark_ts: int) -> None:
        watermark = datetime.fromtimestamp(watermark_ts / 1000, UTC)
        self.say(
            "Store the histories once, as built at every midnight",
            *("compact", self.events, "--store", self.store, "--schema", self.schema),
            *("--cadence", "1d", "--watermark", watermark.date()),
        )
        if (self.store / "CURRENT").exists():
            shutil.rmtree(self.store)  # an earlier demo's
        config = CompactionConfig(
            store=self.store,
            events=[self.events],
            schema=self.schema,
            watermark_ts=watermark_ts,
            cadence_ms=DAY_MS,
        )
        with progress_bar() as progress:
            report = compact(config, progress)
        self.store_bytes = report.stored_bytes
        out.print(f"{report.event_count:,} events in {readable_bytes(report.stored_bytes)}")

    def backfill(self) -> None:
        self.say(
            "Write a thin row for each request, as if it had been logged then",
            *("backfill", self.requests, "--store", self.store, "--events", self.events),
            *("--out", self.rows),
        )
        config = BackfillConfig(
            requests=self.requests,
            store=self.store,
            events=[self.events],
            rows=self.rows,
            cadence_ms=DAY_MS,
        )
        with progress_bar() as progress:
            report = backfill(config, progress)
        out.print(
            f"{report.rows:,} rows in {readable_bytes(size(self.rows))}, with "
            f"{report.mutable_events:,} events inside that were too new for that day's store"
        )

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Runs the server in a process of its own; yields its address."""
        command = [
            "serve",
            "--store",
            str(self.store),
            "--listen",
            "127.0.0.1:0",
            "--metrics",
            "off",
        ]
        self.say("Serve the store", *command)
        log = self.root / "server.log"
        with log.open("w") as output:
            server = subprocess.Popen(  # noqa: S603  (our own command)
                [sys.executable, "-m", "thinrow.cli.entry", *command],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            address = wait_until_serving(server, log)
            out.print(f"It listens at {address} and logs to {log}")
            yield address
        finally:
            server.terminate()
            server.wait(SERVER_STOP_S_MAX)

    def materialize(self, client: Client, address: str) -> None:
        self.say(
            "Put the histories back inside the rows, as training data are kept today",
            *("materialize", self.rows, "--server", address, "--out", self.fat),
        )
        with progress_bar() as progress:
            report = materialize(client, self.rows, Projection(), self.fat, progress)
        out.print(f"{report.rows:,} fat rows in {readable_bytes(size(self.fat))}")
        thin, fat = size(self.rows), size(self.fat)
        self.summary.add_row("examples", f"{report.rows:,}", f"{report.rows:,}")
        self.summary.add_row(
            "events in their histories", f"{report.events:,}", f"{report.events:,}"
        )
        self.summary.add_row("stored: the rows", readable_bytes(thin), readable_bytes(fat))
        self.summary.add_row("stored: the histories", readable_bytes(self.store_bytes), "inside")
        thin += self.store_bytes
        self.summary.add_row("stored, all", readable_bytes(thin), readable_bytes(fat))

    def verify(self, client: Client, address: str) -> None:
        """Compares some rows with fat rows made from the raw events, by other code."""
        thin, fat = self.root / "checked-rows.parquet", self.root / "checked-fat.parquet"
        self.say(
            "Check some against fat rows joined from the raw events",
            *("verify", thin, "--server", address, "--against", fat),
        )
        rows = pq.read_table(self.rows)
        chosen = np.random.default_rng(0).permutation(len(rows))[:CHECKED_EXAMPLES]
        pq.write_table(rows.take(np.sort(chosen)), thin)
        requests = pl.read_parquet(thin, columns=["user_id", "request_ts"]).with_row_index("row")
        events = pl.read_parquet(self.events)
        ids = ("user_id", "event_ts", "event_id")
        traits = [name for name in events.columns if name not in ids]
        histories = (
            requests.lazy()
            .join(events.lazy(), on="user_id")
            .filter(pl.col("event_ts") < pl.col("request_ts"))
            .sort("row", "event_ts", "event_id")
            .group_by("row")
            .agg("event_ts", *traits)
        )
        requests.lazy().join(histories, on="row", how="left").sort("row").collect().write_parquet(
            fat
        )
        with progress_bar() as progress:
            report = verify(client, thin, fat, progress=progress)
        if report.rows_that_differ:
            raise ThinRowError(
                f"{report.rows_that_differ} rows differ; the command above says where."
            )
        out.print(f"All {report.events:,} events of {report.rows:,} rows are equal")

    def measure(self, client: Client) -> None:
        """Reads everything once, streamed and from the fat rows."""
        self.say("Stream every example with its whole history")
        events = 0
        started = time.perf_counter()
        for batch, _ in self.batches(client, self.rows, Projection()):
            events += int(batch.offsets[-1])
        thin_s = time.perf_counter() - started
        started = time.perf_counter()
        for _ in pq.ParquetFile(self.fat).iter_batches(BATCH_EXAMPLES):
            pass
        fat_s = time.perf_counter() - started
        examples = row_count(self.rows)
        out.print(f"{thin_s:.1f} s; reading the fat rows with PyArrow takes {fat_s:.1f} s")
        for name, count in (("examples/s", examples), ("events/s", events)):
            self.summary.add_row(name, f"{count / thin_s:,.0f}", f"{count / fat_s:,.0f}")

    def train(self, address: str, recipe: Recipe, epochs: int, sequence_length: int) -> None:
        """Trains on the earlier requests and evaluates on the later ones."""
        # PyTorch takes seconds to import, and only this step needs it.
        from thinrow.demo.training import Split, Study

        self.say(f"Train a small HSTU from the stream to predict each request's {recipe.target}")
        split = Split.of(self.rows, self.root)
        study = Study(split, address, recipe.target, repeats=recipe.repeats)
        with progress_bar() as progress:
            model, losses = study.train(
                sequence_length,
                epochs,
                progress=lambda step, steps: progress("Training", step, steps),
            )
        out.print(f"{epochs} passes over {row_count(split.train):,} examples, on {study.device}")
        quality = study.evaluate(model, sequence_length)
        out.print(
            f"Of {row_count(split.held_out):,} later requests the label is among ten guesses in "
            f"{quality.hit_rate:.1%}; among the ten most popular in "
            f"{quality.popularity_hit_rate:.1%}"
        )
        self.summary.add_section()
        self.summary.add_row("loss, first → last step", f"{losses[0]:.2f} → {losses[-1]:.2f}")
        self.summary.add_row("hit rate@10: model", f"{quality.hit_rate:.1%}")
        self.summary.add_row("hit rate@10: most popular", f"{quality.popularity_hit_rate:.1%}")

    def batches(
        self, client: Client, rows: Path, projection: Projection
    ) -> Iterator[tuple[Batch, pa.Table]]:
        """Streams a file of thin rows: histories, and the columns beside them."""
        done, total = 0, row_count(rows)
        with progress_bar() as progress:
            for batch, table in stream_rows(client, rows, projection, BATCH_EXAMPLES):
                yield batch, table
                done += len(batch)
                progress(f"Streaming {rows.name}", done, total)


def size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


def wait_until_serving(server: subprocess.Popen[bytes], log: Path) -> str:
    """Waits for the server's line in the log that has its address."""
    deadline = time.monotonic() + SERVER_START_S_MAX
    while server.poll() is None and time.monotonic() < deadline:
        for line in log.read_text().splitlines(keepends=True):
            if '"serving"' in line and line.endswith("\n"):
                return str(json.loads(line)["address"])
        time.sleep(0.05)
    raise ThinRowError(f"The server did not start; {log} says why.")
