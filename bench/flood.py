"""Latencies of a tenant's calls, with and without another tenant that floods the server.

The steady tenant requests one batch after the other. The flood requests long histories with many
concurrent calls, by ThinRow's client, or by raw calls that retry at once when they are rejected.
Its processes run only when no other process wants the processor, because a real flood comes from
other machines and takes no processor time from the server by calling it. A flood of another
server on this machine, "beside", shows the cost of two processes that share its processors and
memory. `refused` are the flood's calls that ended in TENANT_LIMIT.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import grpc
import numpy as np
from processes import build, start
from rich.console import Console
from rich.table import Table
from thinrow.client import ClientConfig, Pointers, connect
from thinrow.v1 import materialization_pb2 as wire

from server import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

TENANTS = """
[steady]
sequence_length = 100
traits = ["item_id", "author_id", "category"]

[flood]
sequence_length = 1000
"""
SECONDS, WARM_SECONDS = 6.0, 1.0
FLOOD_EXAMPLES, FLOOD_PROCESSES, FLOOD_CALLS = 128, 2, 48
PAUSE_S = 0.01
"""Pause of the steady tenant, for its trainer's step."""
BESIDE = ", beside"
"""A flood of another server on this machine: what the machine itself costs."""
FLOODS = ("none", "client", "raw", f"client{BESIDE}", f"raw{BESIDE}")
METHOD = "/thinrow.v1.MaterializationService/Materialize"


class Latency(NamedTuple):
    """Latencies of the steady tenant's calls, in milliseconds."""

    p50_ms: float
    p99_ms: float
    calls: int


def steady(address: str, requests: Path) -> Latency:
    """Request one batch after the other."""
    users, end_ts = np.load(requests)
    batches = [Pointers(user_ids=u, end_ts=e) for u, e in zip(users, end_ts, strict=True)]
    times_ms = []
    with connect(address) as client:
        warm_s = time.perf_counter() + WARM_SECONDS
        for batch in itertools.cycle(batches):
            begin_s = time.perf_counter()
            if begin_s > warm_s + SECONDS:
                break
            client.materialize(batch, "steady")
            if begin_s > warm_s:
                times_ms.append(1000 * (time.perf_counter() - begin_s))
            time.sleep(PAUSE_S)
    return Latency(*np.percentile(times_ms, [50, 99]), len(times_ms))


def flood(address: str, requests: Path, kind: str) -> None:
    """Send requests until it is killed; prints how many of its calls were refused each second."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    users, end_ts = (array[:, :FLOOD_EXAMPLES] for array in np.load(requests))
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    counts = {"refused": 0, "answered": 0}

    def raw() -> None:
        call = grpc.insecure_channel(address, options).unary_unary(METHOD)
        for u, e in itertools.cycle(zip(users, end_ts, strict=True)):
            request = wire.MaterializeRequest(user_ids=u, end_ts=e, tenant="flood")
            try:
                call(request.SerializeToString())
                counts["answered"] += 1
            except grpc.RpcError:
                counts["refused"] += 1

    def client() -> None:
        batches = [Pointers(user_ids=u, end_ts=e) for u, e in zip(users, end_ts, strict=True)]
        with connect(address, ClientConfig(retry_deadline_s=600)) as client:
            for _ in client.answers(itertools.cycle(batches), "flood"):
                counts["answered"] += 1

    for _ in range(FLOOD_CALLS):
        threading.Thread(target={"raw": raw, "client": client}[kind], daemon=True).start()
    while True:
        time.sleep(1)
        print(counts["answered"], counts["refused"], flush=True)


@contextmanager
def flooded(address: str, requests: Path, kind: str) -> Iterator[list[tuple[int, int]]]:
    """A flood until the block ends; then what its processes counted: answered, refused."""
    command = [sys.executable, __file__, "--flood", address, str(requests), kind]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(FLOOD_PROCESSES)
    ]
    counts: list[tuple[int, int]] = []
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield counts
    finally:
        for process in processes:
            process.kill()
            lines = process.communicate()[0].splitlines()
            if lines:
                answered, refused = lines[-1].split()
                counts.append((int(answered), int(refused)))


def main() -> None:
    """Measures and shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flood", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.flood:
        address, requests, kind = arguments.flood
        flood(address, Path(requests), kind)
    table = Table(
        *("flood", "p50 ms", "p99 ms", "p99 against alone", "calls", "answered", "refused"),
        caption=f"Medians of {arguments.rounds}, alternating. {machine()}",
    )
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch, ExitStack() as stack:
        store, requests = build(Path(scratch))
        tenants = Path(scratch) / "tenants.toml"
        tenants.write_text(TENANTS)
        served, beside = (start(store, 1, "--tenants", str(tenants)) for _ in range(2))
        for server in (served, beside):
            stack.callback(server.process.wait)
            stack.callback(server.process.terminate)
        found: dict[str, list[Latency]] = {kind: [] for kind in FLOODS}
        flows = dict.fromkeys(found, (0, 0))
        for _ in range(arguments.rounds):
            for kind, each in found.items():
                if kind == "none":
                    each.append(steady(served.address, requests))
                    continue
                address = beside.address if kind.endswith(BESIDE) else served.address
                with flooded(address, requests, kind.removesuffix(BESIDE)) as counts:
                    each.append(steady(served.address, requests))
                flows[kind] = tuple(map(sum, zip(*counts, strict=True)))  # type: ignore[assignment]
        alone = median(latency.p99_ms for latency in found["none"])
        for kind, each in found.items():
            p50_ms, p99_ms, calls = (median(column) for column in zip(*each, strict=True))
            table.add_row(
                *(kind, f"{p50_ms:.1f}", f"{p99_ms:.1f}", f"{p99_ms / alone:.2f}x"),
                *(f"{calls:,.0f}", *(f"{count:,}" for count in flows[kind])),
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
