"""Two server processes against one, for the short tenant (C: last 100 events, one group).

Both servers run all the time and receive requests in turn from a load in a process of its own: raw
requests whose answers are discarded, over HTTP/2 written by hand, so that as much of the machine as
possible is the servers', and ThinRow's own client. `others` is what else ran: where that is much,
measure again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from caller import DATA, END_HEADERS, HEADERS, Connection, as_message, frame
from rich.console import Console
from rich.table import Table
from thinrow.client import Pointers, Projection, connect
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import ThinRows
from thinrow.core.wire.request import on_stream
from workload import SCHEMA, workload

from server import machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SHORT = Projection(100, traits=("item_id", "author_id", "category"))
EXAMPLES, REQUESTS = 512, 64
PROCESSES = (1, 2)
CONNECTIONS, IN_FLIGHT = 2, 4
"""Streams of the raw load, and requests of each."""
FRAME_BYTES = 1 << 14
SECONDS, WARM_SECONDS = 3.0, 0.5
METHOD = "/thinrow.v1.MaterializationService/MaterializeStream"
TICKS = os.sysconf("SC_CLK_TCK")


# The load, in its own process.


def load(address: str, processes: int, requests: Path, kind: str) -> None:
    """Send requests for some seconds; prints a line at the start, and the examples answered."""
    users, end_ts = np.load(requests)
    batches = [Pointers(user_ids=u, end_ts=e) for u, e in zip(users, end_ts, strict=True)]
    answered = raw(address, processes, batches) if kind == "raw" else client(address, batches)
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


def raw(address: str, processes: int, batches: Sequence[Pointers]) -> Iterator[int]:
    """Bytes there and bytes back, over one connection to each of two processes, or two to one."""
    pieces = [BatchLookup(ThinRows(batch), SHORT).whole() for batch in batches]
    sent = itertools.cycle([as_message(on_stream(0, piece.request(), "")) for piece in pieces])
    streams: dict[bytes, Stream] = {}
    while len(streams) < CONNECTIONS:
        stream = Stream(address, METHOD)
        stream.send(next(sent))
        while not stream.process_name:
            stream.receive()
        # What a process of several says of itself is the same on all of its connections.
        name = stream.process_name if processes > 1 else bytes([len(streams)])
        if name in streams:
            stream.socket.close()
        else:
            streams[name] = stream
    of_socket = {stream.socket: stream for stream in streams.values()}
    for stream in streams.values():
        for _ in range(IN_FLIGHT - 1):
            stream.send(next(sent))
    while True:
        for ready in select.select(list(of_socket), (), ())[0]:
            stream = of_socket[ready]
            for _ in range(stream.receive()):
                stream.send(next(sent))
                yield EXAMPLES


class Stream(Connection):
    """One call of MaterializeStream, whose answers are counted and not looked at."""

    def __init__(self, address: str, method: str) -> None:
        super().__init__(address, method)
        self.socket.sendall(frame(HEADERS, END_HEADERS, 1, self.headers))
        self.process_name = b""
        """The server's first headers, as they came."""
        self._buffer = bytearray(1 << 20)
        self._kept = 0
        """Bytes at the buffer's start that came before."""
        self._data_left = self._message_left = 0
        """Bytes still to come of a frame of data, and of a message."""
        self._prefix = b""
        """The beginning of the next message's length."""

    def send(self, message: bytes) -> None:
        """Sends a message, in frames as large as every server takes."""
        for at in range(0, len(message), FRAME_BYTES):
            self.socket.sendall(frame(DATA, 0, 1, message[at : at + FRAME_BYTES]))

    def receive(self) -> int:
        """Reads what came; returns how many answers are complete by it."""
        view = memoryview(self._buffer)
        size = self.socket.recv_into(view[self._kept :])
        if not size:
            raise ConnectionError("The server closed the connection.")
        at, end, complete = 0, self._kept + size, 0
        while at < end:
            if self._data_left:
                part = view[at : min(end, at + self._data_left)]
                complete += self._ended_in(part)
                self.took(len(part))
                self._data_left -= len(part)
                at += len(part)
                continue
            if end - at < 9:
                break
            head, flags, _ = struct.unpack_from(">IBI", view, at)
            length, kind = head >> 8, head & 0xFF
            if kind == DATA:
                self._data_left = length
            elif end - at - 9 < length:
                break
            else:
                content = bytes(view[at + 9 : at + 9 + length])
                if kind == HEADERS:
                    self.process_name = self.process_name or content
                self.heed(kind, flags, content)
                at += length
            at += 9
        self._kept = end - at
        view[: self._kept] = view[at:end]
        return complete

    def _ended_in(self, content: memoryview) -> int:
        """Goes through the content of messages; returns how many end in it."""
        ended = at = 0
        while at < len(content):
            if self._message_left:
                taken = min(self._message_left, len(content) - at)
                self._message_left -= taken
                ended += not self._message_left
            else:
                taken = min(5 - len(self._prefix), len(content) - at)
                self._prefix += content[at : at + taken]
                if len(self._prefix) == 5:
                    self._message_left = int.from_bytes(self._prefix[1:], "big")
                    self._prefix = b""
            at += taken
        return ended


def client(address: str, batches: Sequence[Pointers]) -> Iterator[int]:
    """ThinRow's own, its answers checked and not widened."""
    with connect(address) as client:
        for answer in client.answers(itertools.cycle(batches), SHORT):
            yield len(answer.rows)


# The comparison.


class Turn(NamedTuple):
    """Figures of one server under load."""

    examples_per_s: float
    server_cores: float
    load_cores: float
    other_cores: float


class Served(NamedTuple):
    """A server of some processes."""

    address: str
    processes: int
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
    command = [sys.executable, __file__, "--load", served.address, str(served.processes)]
    command += [str(requests), kind]
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
    return Served(address, processes, process)


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


def compared(scratch: Path, rounds: int, kinds: Sequence[str]) -> dict[str, dict[int, Turn]]:
    """Medians of each kind of load, by the number of processes."""
    found: dict[str, dict[int, Turn]] = {}
    with ExitStack() as stack:
        store, requests = build(scratch)
        servers = {processes: start(store, processes) for processes in PROCESSES}
        for served in servers.values():
            stack.callback(served.process.wait)
            stack.callback(served.process.terminate)
        for kind in kinds:
            turns: dict[int, list[Turn]] = {processes: [] for processes in PROCESSES}
            for _ in range(rounds):
                for processes, served in servers.items():
                    turns[processes].append(turn(served, requests, kind))
            found[kind] = {
                processes: Turn(*(median(column) for column in zip(*each, strict=True)))
                for processes, each in turns.items()
            }
    return found


def main() -> None:
    """Measures and shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        address, processes, requests, kind = arguments.load
        load(address, int(processes), Path(requests), kind)
    table = Table(
        *("load", "processes", "examples/s", "ratio"),
        *("server cores", "load cores", "others"),
        caption=f"Medians of {arguments.rounds}, alternating. {machine()}",
    )
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch:
        for kind, turns in compared(Path(scratch), arguments.rounds, ("raw", "client")).items():
            for processes, (examples_per_s, *cores) in turns.items():
                table.add_row(
                    kind,
                    str(processes),
                    f"{examples_per_s:,.0f}",
                    f"{examples_per_s / turns[1].examples_per_s:.2f}",
                    *(f"{count:.2f}" for count in cores),
                )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
