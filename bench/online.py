"""The online half under load: snapshots while events come in, and how fast they can come in.

Run: python bench/online.py [--seconds 10] [--rounds 3]. A server, its caller and its appender
share the machine's cores. Snapshots are requested by unary calls and on a stream. In
each round the same requests go to a server that only returns bytes, as many as a snapshot has: the
least that gRPC in Python takes here at this time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from caller import field, number_field, send_steadily
from rich.console import Console
from rich.table import Table
from thinrow.client import Projection
from thinrow.client.online import OnlineClient, connect_online
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.wire.request import to_wire_projection
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

USERS = 20_000
EVENTS_PER_USER = 400
SEQUENCE_LENGTH = 256
REQUESTS_PER_S = 1000
EVENTS_PER_S = 20_000
BATCH_EVENTS = 500
FULL_BATCH_EVENTS = 4096
SCHEMA = """
[item]
item_id = { type = "int64", key = true }
category = "categorical"

[engagement]
action = "int8"
watch_ms = "uint32"
score = { type = "float32", sparse = true }
liked = { type = "bool", sparse = true, default = false }
"""


@dataclass(frozen=True)
class Load:
    """Measurements of one kind of caller."""

    seconds: float
    count: int
    latencies_ms: list[float]
    failed: int = 0

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies_ms, 100 * share))


def traits_of(rng: np.random.Generator, count: int) -> dict[str, Any]:
    return {
        "item_id": rng.integers(0, 1_000_000, count),
        "category": rng.integers(0, 50, count),
        "action": rng.integers(0, 6, count).astype(np.int8),
        "watch_ms": rng.integers(0, 100_000, count).astype(np.uint32),
        "score": rng.random(count).astype(np.float32),
        "liked": rng.random(count) < 0.1,
    }


def build(folder: Path) -> None:
    """A store that knows every user, up to now."""
    rng = np.random.default_rng(0)
    count, now_ts = USERS * EVENTS_PER_USER, int(time.time() * 1000)
    columns = {
        "user_id": rng.integers(1, USERS + 1, count),
        "event_ts": now_ts - 1 - rng.integers(0, 90 * 86_400_000, count),
        "event_id": np.arange(count),
        **traits_of(rng, count),
    }
    pq.write_table(pa.table(columns), folder / "events.parquet")
    (folder / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    compact(
        CompactionConfig(
            store=folder / "store",
            events=[folder / "events.parquet"],
            schema=folder / "schema.toml",
            watermark_ts=now_ts,
        )
    )


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """`thinrow online`: its address and process."""
    command = [sys.executable, "-m", "thinrow.cli.entry", "online", "--store", folder / "store"]
    command += ["--listen", "127.0.0.1:17888", "--metrics", "off", "--cache-bytes-max", 1 << 30]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*map(str, command)], stderr=log)
    try:
        with connect_online("127.0.0.1:17888") as client:
            while True:
                try:
                    client.describe()
                    break
                except Exception:
                    if process.poll() is not None:
                        raise
                    time.sleep(0.1)
        yield "127.0.0.1:17888", process.pid
    finally:
        process.terminate()
        process.wait()


def batches(client: OnlineClient, seed: int, size: int, count: int) -> list[online_pb2.EventBatch]:
    """Made beforehand: making them is not the tier's work."""
    rng = np.random.default_rng(seed)
    now_ts = int(time.time() * 1000)
    return [
        client.events(
            rng.integers(1, USERS + 1, size),
            np.full(size, now_ts),
            traits_of(rng, size),
            rng.integers(0, 1 << 62, size),
        )
        for _ in range(count)
    ]


def append_steadily(address: str, seconds: float, found: Connection[Any, Any]) -> None:
    """EVENTS_PER_S in batches of BATCH_EVENTS; returns the time that each took to be durable."""
    with connect_online(address) as client:
        ready = batches(client, 1, BATCH_EVENTS, int(seconds * EVENTS_PER_S / BATCH_EVENTS))
        found.send(None)
        found.recv()
        start_s, took = time.perf_counter(), []
        sent: list[float] = []

        def paced() -> Iterator[online_pb2.EventBatch]:
            for number, batch in enumerate(ready):
                due_s = start_s + number * BATCH_EVENTS / EVENTS_PER_S
                time.sleep(max(0.0, due_s - time.perf_counter()))
                sent.append(due_s)
                yield batch

        for number, _ in enumerate(client.append_all(paced())):
            took.append(1e3 * (time.perf_counter() - sent[number]))
        elapsed_s = time.perf_counter() - start_s
    found.send(Load(elapsed_s, len(took) * BATCH_EVENTS, took))


def append_fast(address: str, seconds: float) -> Load:
    """Send batches as fast as one stream takes them."""
    with connect_online(address) as client:
        ready = batches(client, 2, FULL_BATCH_EVENTS, int(seconds * 40))
        start_s = time.perf_counter()
        took = [1e3 * (time.perf_counter() - start_s) for _ in client.append_all(ready)]
        return Load(time.perf_counter() - start_s, len(ready) * FULL_BATCH_EVENTS, took)


def load_of(address: str, method: str, seconds: float, seed: int) -> Load:
    """REQUESTS_PER_S, each timed from when it was due."""
    projection = to_wire_projection(Projection(SEQUENCE_LENGTH))
    rng = np.random.default_rng(seed)
    count = int(seconds * REQUESTS_PER_S)
    snapshots = [
        online_pb2.SnapshotRequest(user_id=user, projection=projection)
        for user in rng.integers(1, USERS + 1, count).tolist()
    ]
    requests = [
        online_pb2.StreamedRequest(request=one).SerializeToString()
        if method.endswith("Stream")
        else one.SerializeToString()
        for one in snapshots
    ]
    due = np.cumsum(rng.exponential(1 / REQUESTS_PER_S, count)).tolist()
    start_s = time.perf_counter()
    took, failed = send_steadily(address, method, requests, due)
    return Load(time.perf_counter() - start_s, count, took, failed)


def an_answer(address: str) -> bytes:
    projection = to_wire_projection(Projection(SEQUENCE_LENGTH))
    with connect_online(address) as client:
        request = online_pb2.SnapshotRequest(user_id=1, projection=projection)
        return client.stub.Snapshot(request).SerializeToString()


def return_bytes(answer: bytes, found: Connection[Any, Any]) -> None:
    """A server that does nothing else, on gRPC's thread pool as ThinRow's servers are."""
    response = field(2, answer)

    def same(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return answer

    def same_streamed(
        messages: Iterator[online_pb2.SnapshotStreamRequest], _context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        for message in messages:
            cursors = [one.cursor for one in message.requests]
            yield b"".join(field(1, number_field(1, cursor) + response) for cursor in cursors)

    with ThreadPoolExecutor(64) as pool:
        server = grpc.server(pool)
        handlers = {
            "Ask": grpc.unary_unary_rpc_method_handler(same),
            "AskStream": grpc.stream_stream_rpc_method_handler(
                same_streamed, online_pb2.SnapshotStreamRequest.FromString
            ),
        }
        server.add_registered_method_handlers("Floor", handlers)
        found.send(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        found.recv()
        server.stop(None).wait()


def warm_up(address: str) -> None:
    """Request every user once, so that directories and newest stripes are in memory."""
    with connect_online(address) as client:
        for first in range(1, USERS, 500):
            client.snapshot_batch(range(first, first + 500), Projection(SEQUENCE_LENGTH))


def cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def appended_to(address: str, seconds: float) -> Iterator[list[Load]]:
    """Appends go on for so long; what was found is in the list at the end."""
    here, there = multiprocessing.Pipe()
    appender = multiprocessing.get_context("spawn").Process(
        target=append_steadily, args=(address, seconds, there)
    )
    appender.start()
    here.recv()
    here.send(None)
    loads: list[Load] = []
    yield loads
    loads.append(here.recv())
    appender.join()


def between(values: list[float]) -> str:
    """The middle one, and the extremes."""
    low, high = min(values), max(values)
    return f"{float(np.median(values)):,.2f} ({low:,.2f} to {high:,.2f})"


def measure(seconds: float, rounds: int) -> Table:
    """Everything, as a table."""
    with tempfile.TemporaryDirectory(dir=Path.cwd() / ".cache") as name:
        folder = Path(name)
        build(folder)
        table = Table("what", "rate", "p50 ms", "p99 ms", "failed", "server's CPU")
        found: dict[str, list[Load]] = defaultdict(list)
        used: dict[str, float] = defaultdict(float)
        with served(folder) as (address, process):
            warm_up(address)
            here, there = multiprocessing.Pipe()
            floor = multiprocessing.get_context("spawn").Process(
                target=return_bytes, args=(an_answer(address), there)
            )
            floor.start()
            floor_address, floor_process = f"127.0.0.1:{here.recv()}", floor.pid or 0
            service = "/thinrow.v1.OnlineService"
            services = {
                "calls": (address, f"{service}/Snapshot", process),
                "streamed": (address, f"{service}/SnapshotStream", process),
                "floor of calls": (floor_address, "/Floor/Ask", floor_process),
                "floor of a stream": (floor_address, "/Floor/AskStream", floor_process),
            }

            def run_all(when: str, seed: int) -> None:
                for what, (where, method, server) in services.items():
                    before_s = cpu_s(server)
                    load = load_of(where, method, seconds, seed)
                    found[f"{what}, {when}"].append(load)
                    used[f"{what}, {when}"] += (cpu_s(server) - before_s) / load.seconds

            run_all("no appends", rounds)
            with appended_to(address, (len(services) * rounds + 1) * (seconds + 1)) as appends:
                for seed in range(rounds):
                    run_all("beside appends", seed)
            found[f"appends, {BATCH_EVENTS} a batch"] = appends
            here.send(None)
            floor.join()
            for what, loads in found.items():
                rates = [load.count / load.seconds for load in loads]
                table.add_row(
                    what,
                    f"{np.median(rates):,.0f}/s",
                    *(between([load.percentile(q) for load in loads]) for q in (0.5, 0.99)),
                    f"{sum(load.failed for load in loads)}",
                    f"{used[what] / len(loads):.2f} cores" if what in used else "",
                )
            before_s = cpu_s(process)
            fast = append_fast(address, seconds / 2)
            cores = (cpu_s(process) - before_s) / fast.seconds
            table.add_row(
                f"appends alone, {FULL_BATCH_EVENTS} a batch",
                f"{fast.count / fast.seconds:,.0f}/s",
                *("", "", ""),
                f"{cores:.2f} cores",
            )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    Console().print(measure(options.seconds, options.rounds))
