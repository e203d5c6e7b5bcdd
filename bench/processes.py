"""Two server processes against one, for the short tenant (C: last 100 events, one group).

Both servers stand all the time and are asked in turn by a load in a process of its own: raw
requests whose answers nobody reads, so that as much of the machine as possible is the servers', and
ThinRow's own client. `at most` is what the machine's cores allow where an example costs what it
costs with one process. `others` is what else ran: where that is much, measure again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, cast

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table
from thinrow.client import Pointers, Projection, connect
from thinrow.client.lookup import Lookup
from thinrow.client.pointers import ThinRows
from thinrow.client.request import on_stream
from thinrow.compaction import CompactionConfig, compact
from workload import SCHEMA, workload

from server import machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SHORT = Projection(100, traits=("item_id", "author_id", "category"))
EXAMPLES, REQUESTS = 512, 64
PROCESSES = (1, 2)
STREAMS, IN_FLIGHT = 2, 4
"""Of the raw load, and requests of each."""
SECONDS, WARM_SECONDS = 3.0, 0.5
METHOD = "/thinrow.v1.MaterializationService/MaterializeStream"
TICKS = os.sysconf("SC_CLK_TCK")


# The load, in its own process.


def load(address: str, requests: Path, kind: str) -> None:
    """Asks for some seconds; prints a line when it begins, and how many examples were answered."""
    users, end_ts = np.load(requests)
    batches = [Pointers(user_ids=u, end_ts=e) for u, e in zip(users, end_ts, strict=True)]
    answered = {"raw": raw, "client": client}[kind](address, batches)
    end_s = time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < end_s:
        next(answered)
    print("begun", flush=True)
    end_s = time.perf_counter() + SECONDS
    examples = 0
    while time.perf_counter() < end_s:
        examples += next(answered)
    print(examples, flush=True)
    time.sleep(60)  # until killed: ending would take processor time


def raw(address: str, batches: Sequence[Pointers]) -> Iterator[int]:
    """Bytes there and bytes back, by one stream to each process."""
    asked = [
        on_stream(0, Lookup(ThinRows(batch), SHORT).whole().request(), "") for batch in batches
    ]
    sent = itertools.cycle(asked)
    answered = threading.Semaphore(0)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]

    def ask(room: threading.Semaphore) -> Iterator[bytes]:
        while room.acquire():
            yield next(sent)

    def take(room: threading.Semaphore, call: Iterable[bytes]) -> None:
        for _ in call:
            room.release()
            answered.release()

    reached: set[str] = set()
    for number in itertools.count():
        room = threading.Semaphore(IN_FLIGHT)
        call = grpc.insecure_channel(address, options).stream_stream(METHOD)(ask(room))
        told = dict(call.initial_metadata())
        # A server of one process has no name.
        process = str(told.get("thinrow-process", number))
        if process in reached:
            call.cancel()
            continue
        reached.add(process)
        threading.Thread(
            target=take, args=(room, cast("Iterable[bytes]", call)), daemon=True
        ).start()
        if len(reached) == STREAMS:
            break
    while answered.acquire():
        yield EXAMPLES


def client(address: str, batches: Sequence[Pointers]) -> Iterator[int]:
    """ThinRow's own, its answers checked and not widened."""
    with connect(address) as asking:
        for answer in asking.answers(itertools.cycle(batches), SHORT):
            yield len(answer.rows)


# The comparison.


class Turn(NamedTuple):
    """What one server did under load."""

    examples_per_s: float
    server_cores: float
    load_cores: float
    other_cores: float


class Served(NamedTuple):
    """A server of some processes."""

    address: str
    process: subprocess.Popen[bytes]

    def pids(self) -> list[int]:
        """All its processes."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return [self.process.pid, *children]


def used_s(pids: Iterable[int]) -> float:
    """Seconds of processor time that processes have used so far."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / TICKS


def busy_s() -> float:
    """Seconds that the machine's processors have worked so far."""
    user, nice, system, _, _, *interrupts = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + sum(interrupts[:3])) / TICKS


def turn(served: Served, requests: Path, kind: str) -> Turn:
    """Loads one server."""
    command = [sys.executable, __file__, "--load", served.address, str(requests), kind]
    pids = served.pids()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as loading:
        assert loading.stdout is not None
        assert loading.stdout.readline() == b"begun\n"
        before = (time.perf_counter(), used_s(pids), used_s([loading.pid]), busy_s())
        examples = int(loading.stdout.readline())
        after = (time.perf_counter(), used_s(pids), used_s([loading.pid]), busy_s())
        loading.kill()
    seconds, server_s, load_s, all_s = (b - a for a, b in zip(before, after, strict=True))
    other_s = all_s - server_s - load_s
    return Turn(examples / seconds, server_s / seconds, load_s / seconds, other_s / seconds)


def start(store: Path, processes: int, *options: str) -> Served:
    """Starts a server and waits until it serves."""
    command = [sys.executable, "-m", "thinrow.cli.entry", "serve", "--store", str(store)]
    command += ["--listen", "127.0.0.1:0", "--metrics", "off", "--processes", str(processes)]
    command += options
    log = store.parent / f"server-{processes}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)
    while '"serving"' not in log.read_text():
        if process.poll() is not None:
            raise SystemExit(f"The server ended: {log.read_text()}")
        time.sleep(0.05)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (address,) = [line["address"] for line in lines if line["event"] == "serving"]
    return Served(address, process)


def build(folder: Path) -> tuple[Path, Path]:
    """A store, and requests at its watermark: user_ids and end_ts, each (REQUESTS, EXAMPLES)."""
    made = workload(users=2000, events_median=1000, days=365, request_days=1)
    events, schema, store = folder / "events.parquet", folder / "schema.toml", folder / "store"
    made.events.write_parquet(events)
    schema.write_text(SCHEMA)
    compact(
        CompactionConfig(
            store=store, events=[events], schema=schema, watermark_ts=made.watermark_ts
        )
    )
    users = np.resize(made.requests["user_id"].to_numpy(), (REQUESTS, EXAMPLES))
    np.save(folder / "requests.npy", [users, np.full_like(users, made.watermark_ts)])
    return store, folder / "requests.npy"


def main() -> None:
    """Measures and shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        address, requests, kind = arguments.load
        load(address, Path(requests), kind)
    table = Table(
        *("load", "processes", "examples/s", "ratio", "at most"),
        *("server cores", "load cores", "others"),
        caption=f"Medians of {arguments.rounds}, alternating. {machine()}",
    )
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch, ExitStack() as stack:
        store, asked = build(Path(scratch))
        servers = {processes: start(store, processes) for processes in PROCESSES}
        for served in servers.values():
            stack.callback(served.process.wait)
            stack.callback(served.process.terminate)
        for kind in ("raw", "client"):
            turns: dict[int, list[Turn]] = {processes: [] for processes in PROCESSES}
            for _ in range(arguments.rounds):
                for processes, served in servers.items():
                    turns[processes].append(turn(served, asked, kind))
            alone = Turn(*(median(column) for column in zip(*turns[1], strict=True)))
            possible = len(os.sched_getaffinity(0)) / (alone.server_cores + alone.load_cores)
            for processes, each in turns.items():
                examples_per_s, *cores = (median(column) for column in zip(*each, strict=True))
                table.add_row(
                    kind,
                    str(processes),
                    f"{examples_per_s:,.0f}",
                    f"{examples_per_s / alone.examples_per_s:.2f}",
                    f"{min(processes, possible):.2f}",
                    *(f"{count:.2f}" for count in cores),
                )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
