"""The steps from events to a served store, each with the command that a user would type."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.demo.sample_data import requests_every
from thinrow.errors import ThinRowError, UsageError
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.console import out, progress_bar, readable_bytes
from thinrow.jobs.interactions import PLACE, fewest_cuts
from thinrow.jobs.research import CUTS_MAX
from thinrow.jobs.verify import verify
from thinrow.store.times import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thinrow.client import Client
    from thinrow.demo.sample_data import SampleData

__all__ = ["Demo", "load_torch", "size"]

CHECKED_EXAMPLES = 1000
SERVER_START_S_MAX = 30.0
SERVER_STOP_S_MAX = 30.0


class Demo:
    """A folder with events, requests, a store and thin rows, made step by step."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.events, self.requests = root / "events.parquet", root / "requests.parquet"
        self.schema, self.store = root / "schema.toml", root / "store"
        self.rows = root / "rows.parquet"
        self.steps = 0
        self.store_bytes = 0

    def say(self, what: str, *command: object) -> None:
        """Announces a step, with the command that a user would type for it."""
        self.steps += 1
        out.print(f"\n{self.steps}. {what}", style="bold")
        if command:
            line = f"$ thinrow {shlex.join(map(str, command))}"
            out.print(line, style="cyan", soft_wrap=True)

    def write_inputs(self, sample: SampleData, examples_max: int) -> None:
        """Writes events, schema and at most ``examples_max`` requests."""
        events = sample.events
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

    def compact(self, cadence_ms: int | None = DAY_MS) -> None:
        """Builds the store: with a cadence up to the last midnight among the events.

        Args:
            cadence_ms: Time between generations; None to cut them as `thinrow research` does, so
                that rows carry hardly an event inside.
        """
        last_ts = int(
            pl.read_parquet(self.events, columns=["event_ts"])["event_ts"].to_numpy().max()
        )
        if cadence_ms is None:
            self.say("Store every history once, cut as `thinrow research` cuts a log that is past")
            watermark_ts, cuts_ts = last_ts + 1, self.research_cuts()
        else:
            watermark_ts, cuts_ts = last_ts // DAY_MS * DAY_MS, None
            watermark = datetime.fromtimestamp(watermark_ts / 1000, UTC)
            self.say(
                "Store every history once, as it stood at each midnight",
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
            cadence_ms=cadence_ms,
            cuts_ts=cuts_ts,
        )
        with progress_bar() as progress:
            report = compact(config, progress)
        self.store_bytes = report.stored_bytes
        out.print(f"{report.event_count:,} events in {readable_bytes(report.stored_bytes)}")

    def research_cuts(self) -> list[int]:
        """Returns watermarks, ms, between each request and the event before it."""
        events = pl.read_parquet(self.events, columns=["user_id", "event_ts"]).sort("event_ts")
        requests = pl.read_parquet(self.requests).sort("request_ts")
        since = requests.join_asof(
            events.with_columns(since_ts="event_ts"),
            left_on="request_ts",
            right_on="event_ts",
            by="user_id",
            allow_exact_matches=False,
            check_sortedness=False,  # both are, by time
        )
        return fewest_cuts(since.drop_nulls("since_ts"), CUTS_MAX)

    def backfill(self) -> None:
        """Writes the thin rows."""
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
        )
        with progress_bar() as progress:
            report = backfill(config, progress)
        out.print(
            f"{report.rows:,} rows in {readable_bytes(size(self.rows))}, with "
            f"{report.mutable_events:,} events inside that were too new for the store of their time"
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
        self.say("Serve the store to every model", *command)
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


def load_torch(what: str) -> None:
    """Raises UsageError where PyTorch is missing, before anything is built."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{what} needs PyTorch: pip install 'thinrow[torch]'.") from error
