"""Two replicas of a Kafka topic under load: one is killed; visibility of events; times of handlers.

Run: make bench-online-replicas, or PYTHONPATH=bench:tests python bench/replica_load.py. Needs
the broker of tests/support/kafka_broker.py. Broker, replicas, callers and appender share the
machine's cores, so that ratios to the floor mean more than times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from online import (
    REQUESTS_PER_S,
    SCHEMA,
    SEQUENCE_LENGTH,
    USERS,
    an_answer,
    appended_to,
    batches,
    between,
    cpu_s,
    load_of,
    return_bytes,
    traits_of,
)
from rich.console import Console
from rich.table import Table
from support.cluster import free_port
from support.kafka_broker import running_broker
from support.worlds import OWN_HOST
from thinrow.client import ClientConfig, Projection
from thinrow.client.online import OnlineClient, connect_online
from thinrow.client.online_replicas import OnlineReplicas
from thinrow.client.online_topology import Topology
from thinrow.client.server_addresses import resolve
from thinrow.core.wire.request import to_wire_projection
from thinrow.errors import ThinRowError
from thinrow.v1 import online_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTITIONS = 8
CALLERS = 48
"""Threads of the client that sends requests on an open schedule."""
FILLED_EVENTS = 200_000
"""Events in the topic before anything is measured."""
PROBERS = 4
"""Threads that append an event, and request it until it is visible."""
PROBE_PAUSE_S, PROBE_POLL_S = 0.05, 0.002
REBUILD_LOOK_S = 0.25
PROJECTION = Projection(SEQUENCE_LENGTH)
READY_S = 120.0
ONE_RETRY = ClientConfig(retry_deadline_s=0, request_deadline_s=10)
"""Each replica gets a request once: the first attempt, and one retry."""


@dataclass
class Requests:
    """Outcomes of requests on an open schedule, each timed from when it was due."""

    latencies_ms: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    """Time of each answer since the start."""
    failed: Counter[str] = field(default_factory=Counter)

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies_ms, 100 * share))


class Replica:
    """One server in a process of its own."""

    def __init__(self, folder: Path, name: str, options: list[object]) -> None:
        self.address = f"{OWN_HOST}:{free_port()}"
        self.metrics = f"{OWN_HOST}:{free_port()}"
        self._command = [sys.executable, "-m", "thinrow.cli.entry", "online"]
        listen = ["--listen", self.address, "--metrics", self.metrics, "--data", folder / name]
        self._command += map(str, [*options, *listen])
        self._data = folder / name
        self._log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log)

    def wait_ready(self) -> None:
        end_s = time.monotonic() + READY_S
        with connect_online(self.address) as client:
            while True:
                try:
                    client.describe()
                    return
                except ThinRowError:
                    if self.process.poll() is not None or time.monotonic() > end_s:
                        raise
                    time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def lose_disk(self) -> None:
        shutil.rmtree(self._data)

    def applied(self) -> float:
        """Events that the process has applied; 0 before its metrics are served."""
        try:
            text = self._text_of_metrics()
        except OSError:
            return 0
        found = re.search(r"thinrow_online_events_applied_total ([\d.e+]+)", text)
        return float(found[1]) if found else 0

    def _text_of_metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def handler(self) -> dict[float, float]:
        """The histogram of the handler's times of snapshots: count by upper bound, seconds."""
        found = re.findall(
            r'thinrow_online_seconds_bucket\{call="snapshot",le="([^"]+)"\} ([\d.e+]+)',
            self._text_of_metrics(),
        )
        return {float(bound): float(count) for bound, count in found}


def percentile_of(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """A percentile between two histograms, ms, interpolated within its bucket."""
    bounds = sorted(after)
    counts = [after[bound] - before[bound] for bound in bounds]
    wanted, low, below = share * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            inside = (wanted - below) / (count - below) if count > below else 1.0
            return 1e3 * (low + (bound - low) * inside) if bound != float("inf") else 1e3 * low
        low, below = bound, count
    return 1e3 * low


@contextmanager
def replicas(folder: Path) -> Iterator[list[Replica]]:
    """A broker, and two replicas of a topic of it that hold FILLED_EVENTS."""
    (folder / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    with running_broker(in_memory=True) as broker, ExitStack() as stack:
        topic = broker.topic(PARTITIONS).name
        options: list[object] = ["--store", folder / "store", "--schema", folder / "schema.toml"]
        options += ["--events", f"kafka:{topic}", "--bootstrap-servers", broker.address]
        both = [Replica(folder, name, options) for name in ("one", "two")]
        for each in both:
            each.start()
            stack.callback(each.kill)
        for each in both:
            each.wait_ready()
        with connect_online([each.address for each in both]) as client:
            for _ in client.append_all(batches(client, 0, 4000, FILLED_EVENTS // 4000)):
                pass
        yield both


@contextmanager
def routed(both: list[Replica], config: ClientConfig) -> Iterator[OnlineReplicas]:
    """The part of a client that chooses a replica: its answers are not widened.

    Widening takes the callers more of the machine than the servers have.
    """
    addresses = [each.address for each in both]
    with closing(OnlineReplicas(Topology(addresses, resolve(addresses), config))) as servers:
        for user in range(1, 101):
            servers.snapshot(request_of(user), config.request_deadline_s)
        yield servers


def request_of(user: int) -> online_pb2.SnapshotRequest:
    return online_pb2.SnapshotRequest(user_id=user, projection=to_wire_projection(PROJECTION))


def send_requests(
    servers: OnlineReplicas, seconds: float, seed: int, at: dict[float, Any] | None = None
) -> Requests:
    """REQUESTS_PER_S, each due at a time of its own; runs `at` beside them.

    at: What to do, by the seconds since the start.
    """
    rng = np.random.default_rng(seed)
    count = int(seconds * REQUESTS_PER_S)
    due = np.cumsum(rng.exponential(1 / REQUESTS_PER_S, count)).tolist()
    users = rng.integers(1, USERS + 1, count).tolist()
    waiting: queue.SimpleQueue[tuple[float, int] | None] = queue.SimpleQueue()
    found = Requests()
    lock = threading.Lock()

    def call() -> None:
        while (one := waiting.get()) is not None:
            due_s, user = one
            try:
                servers.snapshot(request_of(user), servers.config.request_deadline_s)
            except ThinRowError as error:
                with lock:
                    found.failed[type(error).__name__] += 1
                continue
            now_s = time.perf_counter() - start_s
            with lock:
                found.latencies_ms.append(1e3 * (now_s - due_s))
                found.ended_s.append(now_s)

    with ThreadPoolExecutor(CALLERS + 1) as pool:
        start_s = time.perf_counter()
        for _ in range(CALLERS):
            pool.submit(call)
        if at:
            pool.submit(run_at, at, start_s)
        for due_s, user in zip(due, users, strict=True):
            time.sleep(max(0.0, start_s + due_s - time.perf_counter()))
            waiting.put((due_s, user))
        for _ in range(CALLERS):
            waiting.put(None)
    return found


def run_at(at: dict[float, Any], start_s: float) -> None:
    for due_s, act in sorted(at.items()):
        time.sleep(max(0.0, start_s + due_s - time.perf_counter()))
        act()


def killed_under_load(both: list[Replica], seconds: float, rounds: int) -> list[Requests]:
    """One replica is killed in the middle of each round, and started again after it."""
    found = []
    with routed(both, ONE_RETRY) as servers:
        for number in range(rounds):
            victim = both[number % 2]
            found.append(send_requests(servers, seconds, number, {seconds / 2: victim.kill}))
            victim.start()
            victim.wait_ready()
            time.sleep(3.0)  # the client looks at its servers every 2 s
    return found


def longest_gap_s(found: Requests) -> float:
    """The longest time without an answer."""
    return float(np.diff(np.sort(found.ended_s)).max())


def visible_after(both: list[Replica], seconds: float) -> list[float]:
    """Time from the acknowledgement of an event until a snapshot shows it, ms, beside appends."""
    took: list[float] = []

    def probe(prober: int, client: OnlineClient, end_s: float) -> None:
        rng = np.random.default_rng(prober)
        user = USERS + 1 + prober * 1_000_000  # a new one for each event
        while time.monotonic() < end_s:
            user += 1
            client.append([user], [int(time.time() * 1000)], traits_of(rng, 1), [user])
            acknowledged_s = time.perf_counter()
            while not len(client.snapshot(user, PROJECTION).thin_row.mutable):
                time.sleep(PROBE_POLL_S)
            took.append(1e3 * (time.perf_counter() - acknowledged_s))
            time.sleep(PROBE_PAUSE_S)

    with (
        connect_online([each.address for each in both]) as client,
        appended_to(both[0].address, seconds),
        ThreadPoolExecutor(PROBERS) as pool,
    ):
        probes = [pool.submit(probe, n, client, time.monotonic() + seconds) for n in range(PROBERS)]
        for each in probes:
            each.result()
    return took


def rebuilt(replica: Replica) -> tuple[float, float, float]:
    """Events, events/s and cores of a replica that has lost its disk, between its looks."""
    replica.kill()
    replica.lose_disk()
    replica.start()
    looks: list[tuple[float, float, float]] = []
    while len(looks) < 2 or looks[-1][1] > looks[-2][1]:
        if replica.process.poll() is not None:
            raise RuntimeError("the replica ended")
        events = replica.applied()
        if events:
            looks.append((time.perf_counter(), events, cpu_s(replica.process.pid)))
        time.sleep(REBUILD_LOOK_S)
    (began_s, first, cpu_before_s), (ended_s, last, cpu_after_s) = looks[0], looks[-2]
    took_s = ended_s - began_s
    replica.wait_ready()
    return last, (last - first) / took_s, (cpu_after_s - cpu_before_s) / took_s


@contextmanager
def floor_of(address: str) -> Iterator[str]:
    """A server that returns the bytes of an answer: its address."""
    here, there = multiprocessing.Pipe()
    floor = multiprocessing.get_context("spawn").Process(
        target=return_bytes, args=(an_answer(address), there)
    )
    floor.start()
    yield f"127.0.0.1:{here.recv()}"
    here.send(None)
    floor.join()


def measure(seconds: float, rounds: int) -> Table:
    """Everything, as a table."""
    table = Table("what", "goal", "measured")
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd() / ".cache") as name,
        replicas(Path(name)) as both,
    ):
        first = both[0]
        service = "/thinrow.v1.OnlineService/SnapshotStream"
        shown: dict[str, list[float]] = {}
        handler = []
        with appended_to(both[1].address, rounds * (2 * seconds + 5)) as appends:
            for seed in range(rounds):
                before, before_s = first.handler(), cpu_s(first.process.pid)
                began_s = time.perf_counter()
                load = load_of(first.address, service, seconds, seed)
                cores = (cpu_s(first.process.pid) - before_s) / (time.perf_counter() - began_s)
                handler.append(percentile_of(before, first.handler(), 0.99))
                shown.setdefault("snapshot", []).append(load.percentile(0.99))
                shown.setdefault("failed", []).append(load.failed)
                shown.setdefault("cores", []).append(cores)
                # Answers grow with the appends, so each round has a floor of its own.
                with floor_of(first.address) as floor:
                    least = load_of(floor, "/Floor/AskStream", seconds, seed)
                shown.setdefault("floor", []).append(least.percentile(0.99))
        ratios = [one / least for one, least in zip(shown["snapshot"], shown["floor"], strict=True)]
        beside = f"{appends[0].count / appends[0].seconds:,.0f} appends/s"
        table.add_row(f"handler of a snapshot, p99, beside {beside}", "0.5 ms", between(handler))
        table.add_row("snapshot on a stream, p99, ms", "", between(shown["snapshot"]))
        table.add_row("floor that returns the same bytes, p99, ms", "", between(shown["floor"]))
        table.add_row("snapshot against its floor", "1.3x", between(ratios))
        table.add_row(
            "failed, server's cores", "0", f"{sum(shown['failed']):.0f}, {between(shown['cores'])}"
        )
        events, rate, cores = rebuilt(both[1])
        table.add_row(
            f"rebuild of {events:,.0f} events, events/s; cores",
            "150,000 a core",
            f"{rate:,.0f}; {cores:.2f}",
        )
        took = visible_after(both, seconds)
        table.add_row(
            f"event visible after acknowledgement, p50 and p99 of {len(took)}, ms",
            "p99 250 ms",
            f"{np.percentile(took, 50):,.0f}, {np.percentile(took, 99):,.0f}",
        )
        with routed(both, ONE_RETRY) as servers:
            steady = send_requests(servers, seconds, 0)
        table.add_row(
            "snapshots routed to two replicas, p50 and p99, ms",
            "",
            f"{steady.percentile(0.5):,.1f}, {steady.percentile(0.99):,.1f}",
        )
        kills = killed_under_load(both, seconds, rounds)
        requests = sum(len(one.latencies_ms) + one.failed.total() for one in kills)
        failures = sum((one.failed for one in kills), Counter[str]())
        table.add_row(
            f"failed of {requests:,} at {REQUESTS_PER_S:,}/s, a replica killed {rounds} times",
            "0",
            f"{failures.total()} {dict(failures) or ''}",
        )
        table.add_row(
            "longest time without an answer, s",
            "1 s",
            between([longest_gap_s(one) for one in kills]),
        )
        table.add_row(
            "slowest request, s", "", between([max(one.latencies_ms) / 1e3 for one in kills])
        )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    Console(width=110).print(measure(options.seconds, options.rounds))
