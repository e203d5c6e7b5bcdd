"""A store with its server, and thin rows in the orders that trainers read them."""

from __future__ import annotations

import os
import re
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from expected import Examples, Histories
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.jobs.backfill import backfill
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.thin_rows import thin_rows_writer

from server import Served, serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from sides import Tensors

DAY_MS = 24 * 3600 * 1000
IN_TIME_ORDER, CLUSTERED, AT_RANDOM = "in time order", "clustered by user", "at random"
SHUFFLED = "shuffled"
"""Files in time order, of which a loader shuffles all rows."""


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """Projection of one model."""

    name: str
    sequence_length: int
    """0: all."""
    traits: tuple[str, ...]
    batch_examples: int


@dataclass(frozen=True, kw_only=True)
class World:
    """One data set, stored and served."""

    name: str
    folder: Path
    histories: Histories
    orders: dict[str, pl.DataFrame]
    """Requests in each order."""
    served: Served
    server_pid: int
    store_bytes: int

    def rows(self, order: str) -> Path:
        """The thin rows in one order."""
        return self.folder / f"rows {in_files(order)}.parquet"

    def row_files(self, order: str) -> RowFiles:
        """The rows as a loader reads them."""
        return RowFiles(self.rows(order), order="rows" if order == SHUFFLED else "files")

    @cached_property
    def shuffle(self) -> NDArray[np.int64]:
        """Numbers of the rows in the order that a loader shuffles them in."""
        chunks = self.row_files(SHUFFLED).source(columns=(), traits=()).chunks(1 << 16)
        numbers = np.concatenate([chunk.example_ids for chunk in chunks])
        assert np.array_equal(np.sort(numbers), np.arange(len(self.orders[IN_TIME_ORDER])))
        return numbers

    def examples(self, order: str, tenant: Tenant) -> Examples:
        """Values that a tenant must get."""
        requests = self.orders[in_files(order)]
        return Examples.of(
            self.histories,
            requests[self.shuffle] if order == SHUFFLED else requests,
            tenant.sequence_length,
            tenant.traits,
            tenant.batch_examples,
        )

    def metrics(self) -> dict[str, float]:
        """Counters of the server."""
        with urllib.request.urlopen(f"http://{self.served.metrics}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(r"^thinrow_(read_bytes|sent_bytes)_total (\S+)$", text, re.MULTILINE)
        for kind, stage, value in re.findall(
            r'^thinrow_stage_seconds_(sum|count)\{stage="(\w+)"\} (\S+)$', text, re.MULTILINE
        ):
            found.append((f"{stage} {kind}", value))
        return {name: float(value) for name, value in found}


class ThinRows:
    """Our side: a loader of default configuration, in the file's order or its first shuffle."""

    name = "thin rows"

    def __init__(self, world: World, order: str, tenant: Tenant) -> None:
        self.pids: Sequence[int] = (world.server_pid,)
        self.traits = tenant.traits
        self.loader = self._loader(world, order, tenant, world.served.address)

    @staticmethod
    def _loader(world: World, order: str, tenant: Tenant, server: str | Path) -> ThinRowLoader:
        return ThinRowLoader(
            world.row_files(order),
            server,
            Projection(tenant.sequence_length, traits=tenant.traits),
            LoaderConfig(batch_examples=tenant.batch_examples, columns=()),
        )

    def batches(self) -> Iterator[Tensors]:
        """The first epoch."""
        self.loader.set_epoch(0)
        for batch in self.loader:
            yield [batch.offsets, *(batch.values[trait] for trait in self.traits)]


class InProcess(ThinRows):
    """The same loader on the store itself, without a server."""

    name = "thin rows, in the trainer's process"

    def __init__(self, world: World, order: str, tenant: Tenant) -> None:
        self.pids = ()
        self.traits = tenant.traits
        self.loader = self._loader(world, order, tenant, world.folder / "store")


@contextmanager
def built(
    name: str,
    folder: Path,
    events: pl.DataFrame,
    schema: str,
    orders: dict[str, pl.DataFrame],
    watermark_ts: int,
) -> Iterator[World]:
    """Compacts the events, writes thin rows of the requests in each order, and serves."""
    folder.mkdir()
    raw, schema_file, store = folder / "events.parquet", folder / "schema.toml", folder / "store"
    schema_file.write_text(schema)
    events.write_parquet(raw)
    compact(
        CompactionConfig(
            store=store,
            events=[raw],
            schema=schema_file,
            watermark_ts=watermark_ts,
            cadence_ms=DAY_MS,
        )
    )
    write_rows(folder, store, raw, orders)
    traits = [column for column in events.columns if column not in ("user_id", "event_ts")]
    histories = Histories(events, traits)
    before = children()
    with serving(store, folder / "server.log") as served:
        (server_pid,) = children() - before
        yield World(
            name=name,
            folder=folder,
            histories=histories,
            orders=orders,
            served=served,
            server_pid=server_pid,
            store_bytes=size(store),
        )


def write_rows(folder: Path, store: Path, raw: Path, orders: dict[str, pl.DataFrame]) -> None:
    """Backfills all orders' requests at once, and writes a file for each."""
    request_file, everything = folder / "requests.parquet", folder / "rows.parquet"
    unique = pl.concat(list(orders.values())).unique(maintain_order=True)
    unique.write_parquet(request_file)
    backfill(BackfillConfig(requests=request_file, store=store, events=[raw], rows=everything))
    rows = pq.read_table(everything)
    number = rows["number"].to_numpy()
    place = np.empty(number.max() + 1, np.int64)
    place[number] = np.arange(len(number))
    for order, requests in orders.items():
        ordered = rows.take(place[requests["number"].to_numpy()])
        path = folder / f"rows {order}.parquet"
        ordered = ordered.drop_columns("number")
        with thin_rows_writer(path, ordered.schema) as writer:
            writer.write_table(ordered)
    everything.unlink()


def slices(requests: pl.DataFrame, examples: int, seed: int = 0) -> dict[str, pl.DataFrame]:
    """Requests from the midst of the time, of some users, and at random.

    requests: `user_id` and `request_ts`, by time.
    """
    requests = requests.with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))
    start = max(0, (len(requests) - examples) // 2)
    order = np.random.default_rng(seed).permutation(len(requests))[:examples]
    return {
        IN_TIME_ORDER: requests.slice(start, examples),
        CLUSTERED: requests.sort("user_id", "request_ts", maintain_order=True).head(examples),
        AT_RANDOM: requests[order],
    }


def in_files(order: str) -> str:
    """The order in which files have the rows of an order."""
    return IN_TIME_ORDER if order == SHUFFLED else order


def children() -> set[int]:
    """Processes that this one has started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
