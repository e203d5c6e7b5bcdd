"""A small world for the hazard tests: events, a store, servers, and what it must answer."""

# ruff: noqa: ANN401 - options go through as they are

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from thinrow.access.projection import resolve
from thinrow.client import Batch, Pointers, Projection
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.core.lookup.batch_lookup import BatchLookup
from thinrow.core.pointers import ThinRows
from thinrow.core.wire.response import Response
from thinrow.materialization.request import MaterializeRequest
from thinrow.store.generation import Generation
from thinrow.store.history import HistoryPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.compaction.report import CompactionReport

DAY_MS = 86_400_000
START_TS = 19_675 * DAY_MS
REPEATS = max(1, round(float(os.environ.get("THINROW_EXAMPLES", "1"))))
OWN_HOST = "127.{}.{}.{}".format(*(os.getpid() >> bits & 255 for bits in (16, 8, 0)))
"""A loopback address of this process: a port of it, once left, is taken by no one else."""
THINROW = (sys.executable, "-m", "thinrow.cli.entry")
SCHEMA = """
[item]
item_id = { type = "int64", key = true }
brand = "string"

[feedback]
rating = { type = "int8", sparse = true }
price = "float64"
"""
ALL = Projection()
Answers = list[tuple[int, dict[str, list[Any] | None]]]
"""Status and histories of each example, by trait."""


def some_events(
    count: int = 400, users: int = 5, days: int = 3, seed: int = 0, first_day: int = 0
) -> pa.Table:
    """Events of users 1, 2, …, in no order, with ids, over whole days."""
    rng = random.Random(seed)
    span = range(START_TS + first_day * DAY_MS, START_TS + (first_day + days) * DAY_MS)
    times = [rng.choice(span) for _ in range(count)]
    return pa.table(
        {
            "user_id": pa.array([rng.randint(1, users) for _ in range(count)], pa.int64()),
            "event_ts": pa.array(times, pa.int64()),
            "event_id": pa.array(range(first_day << 32, (first_day << 32) + count), pa.int64()),
            "item_id": pa.array([rng.getrandbits(62) for _ in range(count)], pa.int64()),
            "brand": pa.array([rng.choice(("a", "é", "")) for _ in range(count)]),
            "rating": pa.array([rng.choice((None, 1, 5)) for _ in range(count)], pa.int8()),
            "price": pa.array([rng.random() for _ in range(count)], pa.float64()),
        }
    )


@dataclass(frozen=True)
class World:
    """A folder with a schema, events and a store."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def schema(self) -> Path:
        return self.folder / "schema.toml"

    def write(self, name: str, table: pa.Table, **options: Any) -> Path:
        path = self.folder / name
        pq.write_table(table, path, **options)
        return path

    def compact(self, events: pa.Table, day: int, **options: Any) -> CompactionReport:
        """The generation up to the end of a day, counted from START_TS."""
        path = self.write(f"events-{day}.parquet", events)
        return compact(self.compaction([path], day, **options))

    def compaction(self, events: list[Path], day: int, **options: Any) -> CompactionConfig:
        return CompactionConfig(
            store=self.store,
            events=events,
            schema=self.schema,
            watermark_ts=START_TS + day * DAY_MS,
            **{"shards": 2, **options},
        )


def new_world(folder: Path, schema: str = SCHEMA) -> World:
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder)
    world.schema.write_text(schema, encoding="utf-8")
    return world


def built_world(folder: Path, **options: Any) -> World:
    """One generation of three days."""
    world = new_world(folder)
    world.compact(some_events(**options), 3)
    return world


def pointers_to(
    watermarks: Sequence[int], users: Sequence[int] = (1, 2, 3, 4, 5, 99), digests: Any = None
) -> Pointers:
    """The whole history of every user, as of every watermark."""
    return Pointers(
        user_ids=[user for _ in watermarks for user in users],
        end_ts=[end_ts for end_ts in watermarks for _ in users],
        digests=digests,
    )


def days(*numbers: int) -> list[int]:
    return [START_TS + number * DAY_MS for number in numbers]


def shown(batch: Batch) -> Answers:
    """A batch as Python values, so that two can be compared."""
    lists = {trait: batch.to_lists(trait) for trait in batch.values}
    return [
        (status, {trait: column[n] for trait, column in lists.items()})
        for n, status in enumerate(batch.statuses.tolist())
    ]


def read_store(store: Path, pointers: Pointers, projection: Projection = ALL) -> Answers:
    """Answer of a server, without one: opens, reads, assembles, widens."""
    piece = BatchLookup(ThinRows(pointers), projection).whole()
    request = MaterializeRequest(piece.request(), 1 << 20)
    with Generation.open_current(store) as generation:
        resolved = resolve(request.tenant, request.projection, generation.schema, {})
        plan = HistoryPlan(
            generation,
            request,
            resolved.truncation,
            resolved.groups,
        )
        plan.read()
        plan.resolve()
        message, _ = plan.answer(resolved.traits, 1 << 30)
    piece.answered(Response.read(message))
    return shown(Batch.from_answers([piece.lookup.answer()]))


def leftovers(store: Path) -> list[str]:
    """Files in a store that are neither a generation nor permanent."""
    known = {"CURRENT", "HIGHEST", "LOCK"}
    return [
        path.name
        for path in store.iterdir()
        if path.name not in known and not path.name.startswith("generation-")
    ]


def thinrow(*arguments: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs the command line as people do."""
    return subprocess.run(
        [*THINROW, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def compact_command(world: World, events: Sequence[Path], day: int) -> list[str]:
    return [
        *THINROW,
        "compact",
        *map(str, events),
        *("--store", str(world.store), "--schema", str(world.schema)),
        *("--watermark", str(START_TS + day * DAY_MS)),
    ]


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    address: str
    metrics: str
    log: Path

    def events(self) -> list[dict[str, Any]]:
        """Lines that it logged; the line being written is left out."""
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, event: str, timeout_s: float = 60, **fields: Any) -> dict[str, Any]:
        """The first line that logs this."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            ended = self.process.poll() is not None
            for line in self.events():
                if line["event"] == event and fields.items() <= line.items():
                    return line
            if ended:
                break
            time.sleep(0.01)
        raise AssertionError(f"no {event!r} in the log:\n{self.log.read_text(encoding='utf-8')}")

    def scrape(self) -> dict[str, float]:
        """Every series of the metrics endpoint, with its labels."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def most_bytes(self) -> int:
        """Returns the most memory that the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def cpu_s(pid: int) -> float:
    """CPU time of a process: how far it is, however busy the machine; until it is waited for."""
    return time.clock_gettime(~pid << 3 | 2)


def let_work(process: subprocess.Popen[bytes], work_s: float) -> None:
    """Lets a process run for so much more CPU time, or to its end."""
    end_s = None
    while process.poll() is None and (end_s is None or cpu_s(process.pid) < end_s):
        end_s = end_s or cpu_s(process.pid) + work_s
        time.sleep(0.0005)


def freeze(pid: int) -> None:
    """SIGSTOP, and waits until no thread of the process runs any more: it takes a moment."""
    os.kill(pid, signal.SIGSTOP)
    end_s = time.monotonic() + 60
    threads = Path(f"/proc/{pid}/task")
    while any(
        (thread / "stat").read_text(encoding="utf-8").rpartition(") ")[2][0] != "T"
        for thread in threads.iterdir()
    ):
        assert time.monotonic() < end_s, f"process {pid} runs on after SIGSTOP"
        time.sleep(0.001)


@contextmanager
def running_server(
    store: Path | str, *options: object, listen: str = "127.0.0.1:0", log: Path | None = None
) -> Iterator[Running]:
    """`thinrow serve`, once it serves; killed at the end."""
    if log is None:
        folder = Path(store).parent
        log = folder / f"server-{len(list(folder.glob('server-*.log')))}.log"
    command: list[object] = [*THINROW, "serve", "--store", store, "--listen", listen]
    command += ["--metrics", "127.0.0.1:0", *options]
    with log.open("wb") as sink:
        process = subprocess.Popen([*map(str, command)], stderr=sink)
    try:
        running = Running(process, "", "", log)
        result = running.wait_for("serving")
        running.address, running.metrics = result["address"], result["metrics"]
        yield running
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_online(world: World, *options: object) -> Iterator[Running]:
    """`thinrow online`, once it serves; killed at the end."""
    log = world.folder / f"online-{len(list(world.folder.glob('online-*.log')))}.log"
    command = [*THINROW, "online", "--store", world.store, "--schema", world.schema]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *options]
    with log.open("wb") as sink:
        process = subprocess.Popen([*map(str, command)], stderr=sink)
    try:
        running = Running(process, "", "", log)
        result = running.wait_for("serving")
        running.address, running.metrics = result["address"], result["metrics"]
        yield running
    finally:
        process.kill()
        process.wait()


def flipped(path: Path, bit: int) -> None:
    """Flips one bit of a file in place."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def random_bits(files: Sequence[Path], count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Places to flip: every file as likely as any other, for most of what is small matters."""
    rng = random.Random(seed)
    files = [file for file in files if file.stat().st_size]
    for _ in range(count):
        file = rng.choice(files)
        yield file, rng.randrange(8 * file.stat().st_size)


def store_files(world: World) -> list[Path]:
    """Every file of the serving generation."""
    folder = world.store / (world.store / "CURRENT").read_text(encoding="utf-8").strip()
    return sorted(path for path in folder.rglob("*") if path.is_file())


def as_of(day: int) -> int:
    return START_TS + day * DAY_MS


def int64(values: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)
