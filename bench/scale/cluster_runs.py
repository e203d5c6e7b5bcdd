"""Runs of clusters on this machine: passes by groups, and streams while something happens."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
import thinrow
import xxhash
from rich.console import Console
from simulation import Line, fitted
from support.cluster import Cluster, running_cluster
from support.worlds import cpu_s as process_cpu_s
from thinrow.client import ClientConfig, Pointers, Projection, connect
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from workload import SCHEMA, workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from thinrow.client.torch.rows.files import Order

GROUPS = (1, 2, 4, 8, 16)
SHARDS = 64
PARTS = 16
LOOKUP_EXAMPLES = 4096
LARGE_LOOKUP_EXAMPLES = 4 * LOOKUP_EXAMPLES
DAY_MS = 24 * 3600 * 1000
PROJECTION = Projection(1024, traits=("item_id", "category", "action", "watch_ms"))


class Kind(NamedTuple):
    """A way to read the rows."""

    in_parts: bool
    ranks: int
    order: Order
    lookup_examples: int = LOOKUP_EXAMPLES


KINDS = {
    f"in parts, some of {PARTS} ranks": Kind(True, PARTS, "mixed"),
    "in parts, one rank": Kind(True, 1, "mixed"),
    "not in parts, one rank": Kind(False, 1, "mixed"),
    "not in parts, shuffled": Kind(False, 1, "rows"),
    f"not in parts, shuffled, lookups of {LARGE_LOOKUP_EXAMPLES:,}": Kind(
        False, 1, "rows", LARGE_LOOKUP_EXAMPLES
    ),
}
IDLE_S = 20
"""Time for which servers without requests are measured."""
RANKS_READ = 4
"""Ranks that read where there are many, one after the other."""
EPOCHS = {1: 2, PARTS: 20}
"""Passes over its rows that a rank makes, by the number of ranks; the first one is not measured."""
REQUEST_SIZES = (16, 64, 256, 1024)
"""Examples of requests whose times the simulation takes."""
FAULT_GROUPS = 4
FAULT_LIFETIME_S = 2.0
"""Lifetime of the map where shards move: each move takes more than one."""
FAULT_BATCH = 512
console = Console(highlight=False)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the run."""

    users: int
    events_median: int
    rows: int
    rounds: int
    calls: int
    fault_batches: int


FULL = Sizes(users=8000, events_median=2000, rows=131_072, rounds=3, calls=200, fault_batches=400)
QUICK = Sizes(users=100, events_median=200, rows=8192, rounds=1, calls=20, fault_batches=60)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One reading of the rows by a trainer's ranks."""

    groups: int
    kind: str
    digest: str
    examples: int
    server_s: float
    client_s: float
    fan_out: float
    """Groups that a lookup had requests for, on average."""


def cpu_s(pids: Sequence[int]) -> float:
    """Returns the processor time of running processes so far."""
    return sum(map(process_cpu_s, pids))


def pids(cluster: Cluster) -> list[int]:
    """Returns the processes of a cluster."""
    return [each.running.process.pid for each in cluster.replicas if each.running is not None]


def idle_share(clusters: Sequence[Cluster]) -> float:
    """Returns the processor time that a server without requests uses in a second, seconds."""
    servers = [pid for cluster in clusters for pid in pids(cluster)]
    before_s = cpu_s(servers)
    time.sleep(IDLE_S)
    return (cpu_s(servers) - before_s) / IDLE_S / len(servers)


def passed(cluster: Cluster, rows: Path, kind: str, idle: float) -> Pass:
    """Reads the rows, as a trainer that does nothing with its batches.

    Args:
        cluster: The servers.
        rows: The rows.
        kind: The way to read them.
        idle: Processor time that each server uses in a second without requests, left out.
    """
    hasher, examples, fan_outs = xxhash.xxh3_128(), 0, []
    server_s = client_s = 0.0
    way, servers = KINDS[kind], pids(cluster)
    config = LoaderConfig(lookup_examples=way.lookup_examples, batch_examples=512, columns=())
    for rank in range(min(way.ranks, RANKS_READ)):
        files = RowFiles(rows, order=way.order, seed=1, rank=rank, world_size=way.ranks)
        with ThinRowLoader(
            files, cluster.addresses[rank % len(cluster.addresses)], PROJECTION, config
        ) as loader:
            loader.set_epoch(0)
            for epoch in range(EPOCHS[way.ranks]):
                if epoch == 1:  # the map is read, and connections are open
                    server_s, client_s = server_s - cpu_s(servers), client_s - time.process_time()
                    server_s += idle * len(servers) * time.monotonic()
                for batch in loader:
                    examples += len(batch) if epoch else 0
                    hasher.update(batch.offsets.numpy())
                    for trait in PROJECTION.traits:
                        hasher.update(batch.values[trait].numpy())
            server_s, client_s = server_s + cpu_s(servers), client_s + time.process_time()
            server_s -= idle * len(servers) * time.monotonic()
            fan_outs.append(loader.starvation.groups_per_lookup)
    return Pass(
        groups=len(cluster.groups),
        kind=kind,
        digest=hasher.hexdigest(),
        examples=examples,
        server_s=server_s,
        client_s=client_s,
        fan_out=fmean(fan_outs),
    )


def built(folder: Path, sizes: Sizes) -> tuple[str, Path, Path, Pointers]:
    """Builds a store at a URL; returns it, rows without and with parts, and pointers."""
    made = workload(users=sizes.users, events_median=sizes.events_median, days=120, request_days=8)
    events, schema = folder / "events.parquet", folder / "schema.toml"
    made.events.write_parquet(events)
    schema.write_text(SCHEMA, encoding="utf-8")
    url = f"file://{folder}/store"
    thinrow.compact(
        events, store=url, schema=schema, watermark=made.watermark_ts, cadence="1d", shards=SHARDS
    )
    requests = made.requests.tail(sizes.rows)
    thinrow.backfill(requests, store=url, events=events, out=folder / "rows.parquet")
    thinrow.backfill(requests, store=url, events=events, out=folder / "parts", row_parts=PARTS)
    rows = pl.read_parquet(folder / "rows.parquet").unnest("uih")
    pointers = Pointers(
        user_ids=rows["user_id"].to_numpy(),
        end_ts=rows["end_ts"].to_numpy(),
        request_ts=rows["request_ts"].to_numpy(),
    )
    return url, folder / "rows.parquet", folder / "parts", pointers


@contextmanager
def cluster_of(
    url: str, scratch: Path, name: str, *, groups: int, copies: int, lifetime_s: float = 30
) -> Iterator[Cluster]:
    """Runs a cluster on a copy of the store, since a store has one map."""
    store = scratch / name / "store"
    shutil.copytree(url.removeprefix("file://"), store, copy_function=os.link)
    with running_cluster(
        f"file://{store}", scratch / name, groups=groups, copies=copies, lifetime_s=lifetime_s
    ) as made:
        yield made


def costs(
    scratch: Path, url: str, rows: Path, parts: Path, sizes: Sizes
) -> tuple[list[Pass], float]:
    """Passes over clusters of every size, which all run all the time and take turns.

    Returns:
        The passes, and the processor time of a server without requests in a second, seconds.
    """
    found: list[Pass] = []
    with ExitStack() as stack:
        clusters = [
            stack.enter_context(
                cluster_of(url, scratch, f"groups-{groups}", groups=groups, copies=1)
            )
            for groups in GROUPS
        ]
        idle = idle_share(clusters)
        for number in range(sizes.rounds):
            for cluster in clusters if number % 2 else reversed(clusters):
                for kind, way in KINDS.items():
                    one = passed(cluster, parts if way.in_parts else rows, kind, idle)
                    found.append(one)
                    console.print(f"{one.groups} groups, {kind}: {one.server_s:.2f} s")
    digests = {(one.kind, one.digest) for one in found}
    assert len(digests) == len(KINDS), "clusters of different sizes delivered different batches"
    return found, idle


def request_lines(scratch: Path, url: str, pointers: Pointers, sizes: Sizes) -> tuple[Line, Line]:
    """Measures single requests of one server: their times, and its processor time."""
    seconds, processor = [], []
    rng = np.random.default_rng(0)
    with (
        cluster_of(url, scratch, "single", groups=1, copies=1) as cluster,
        connect(cluster.addresses[0]) as client,
    ):
        starts = range(0, len(pointers), LOOKUP_EXAMPLES)
        chunks = (pointers[start : start + LOOKUP_EXAMPLES] for start in starts)
        for _ in client.stream(chunks, PROJECTION):
            pass  # fills caches
        for size in REQUEST_SIZES:
            taken = []
            before_s = cpu_s(pids(cluster))
            for _ in range(sizes.calls):
                chosen = pointers[rng.integers(0, len(pointers), size)]
                started_s = time.perf_counter()
                client.materialize(chosen, PROJECTION)
                taken.append(time.perf_counter() - started_s)
            seconds.append(np.array(taken))
            processor.append(np.array([(cpu_s(pids(cluster)) - before_s) / sizes.calls]))
    return fitted(REQUEST_SIZES, seconds), fitted(REQUEST_SIZES, processor)


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Times between the batches of a stream."""

    name: str
    p99_s: float
    longest_s: float
    extra_requests: float
    """Hedges, as a share of the requests."""
    digest: str


def streamed(
    name: str,
    cluster: Cluster,
    pointers: Pointers,
    sizes: Sizes,
    fault: Callable[[], object] = lambda: None,
) -> Gaps:
    """Streams batches, lets something happen after a third of them, and goes on until it has."""
    rng = np.random.default_rng(1)
    batches = [
        pointers[rng.integers(0, len(pointers), FAULT_BATCH)] for _ in range(sizes.fault_batches)
    ]
    happening = threading.Thread(target=fault)
    digests: dict[int, str] = {}
    gaps: list[float] = []

    def pulled() -> Iterator[Pointers]:
        for number in itertools.count():
            if number >= sizes.fault_batches and happening.ident and not happening.is_alive():
                return
            yield batches[number % len(batches)]

    config = ClientConfig(requests_in_flight=2 * FAULT_GROUPS)
    with connect(cluster.addresses[0], config) as client:
        last_s = time.perf_counter()
        for number, batch in enumerate(client.stream(pulled(), PROJECTION)):
            now_s = time.perf_counter()
            if number:  # connections are opened for the first one
                gaps.append(now_s - last_s)
            values = (batch.values[trait] for trait in PROJECTION.traits)
            digest = xxhash.xxh3_128_hexdigest(b"".join(map(bytes, (batch.offsets, *values))))
            assert digests.setdefault(number % len(batches), digest) == digest
            if number == len(batches) // 3:
                happening.start()
            last_s = time.perf_counter()
        routing = client.routing
    happening.join()
    return Gaps(
        name=name,
        p99_s=float(np.quantile(gaps, 0.99)),
        longest_s=max(gaps),
        extra_requests=routing.hedges / (FAULT_GROUPS * (len(gaps) + 1)),
        digest=xxhash.xxh3_128_hexdigest("".join(digests[n] for n in range(len(batches))).encode()),
    )


def faults(scratch: Path, url: str, pointers: Pointers, sizes: Sizes) -> list[Gaps]:
    """Streams while nothing happens, a replica pauses, one dies, and shards move."""
    found = []
    with cluster_of(
        url, scratch, "faults", groups=FAULT_GROUPS, copies=2, lifetime_s=FAULT_LIFETIME_S
    ) as cluster:
        streamed("", cluster, pointers, sizes)  # fills caches
        for _ in range(sizes.rounds):
            found.append(streamed("healthy", cluster, pointers, sizes))
            paused = cluster.replicas[::2] if len(found) % 2 else cluster.replicas[1::2]
            victim = paused[0]
            found.append(streamed("a replica pauses", cluster, pointers, sizes, victim.pause))
            victim.resume()
            victim = cluster.replicas[2 + len(found) % 2]
            found.append(streamed("a replica dies", cluster, pointers, sizes, victim.kill))
            victim.start()
        cluster.start(cluster.grow(2 * FAULT_GROUPS))
        found.append(streamed("shards move", cluster, pointers, sizes, cluster.apply))
    assert len({one.digest for one in found}) == 1, "streams delivered different batches"
    return found
