"""Ray Data and pools of actors against the loader: the same rows, server and machine.

`make bench-ray` writes docs/reports/ray.md. The sides take turns, a process does nothing with their
batches, and the server, the tasks and the trainer share this machine's cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data
import thinrow
import xxhash
from page import table
from thinrow.client import Projection
from thinrow.client.ray import LookupPool, RayBatches, ScalingLimits, ThinRowDatasource
from thinrow.client.torch import LoaderConfig, RowFiles, ThinRowLoader
from workload import SCHEMA, workload

from server import machine, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from thinrow.client.torch import TensorBatch

PROJECTION = Projection(1024, traits=("item_id", "category", "action", "watch_ms"))
CONFIG = LoaderConfig(lookup_examples=4096, batch_examples=512, columns=())
CLOCKED = (0.1, 0.95)
"""Shares of the examples at which the clock starts and stops: before lie the start of processes and
the first answers, after it their end."""
ACTORS = 2
STORE_BYTES = 500 << 20
GOAL = 0.7
TICKS = os.sysconf("SC_CLK_TCK")
TEMPLATE = Path(__file__).with_name("ray.md.in")
ROLES = ("trainer", "server", "tasks and actors", "Ray's own")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the run."""

    users: int
    events_median: int
    requests_per_day: int
    rounds: int


FULL = Sizes(users=1000, events_median=3000, requests_per_day=200, rounds=5)
QUICK = Sizes(users=100, events_median=300, requests_per_day=20, rounds=1)
REQUEST_DAYS = 8


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One reading of all rows, while the clock runs."""

    start_s: float
    """Seconds to the first batch."""
    events: int
    seconds: float
    cpu_s: dict[str, float]
    """Processor time by role."""

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds


def loader(rows: Path, server: str) -> Iterator[TensorBatch]:
    """ThinRowLoader, in the order of the files."""
    with ThinRowLoader(RowFiles(rows, order="files"), server, PROJECTION, CONFIG) as batches:
        yield from batches


def datasource(rows: Path, server: str) -> ThinRowDatasource:
    return ThinRowDatasource(rows, server, PROJECTION, columns=())


def dataset(rows: Path, server: str) -> Iterator[TensorBatch]:
    """Ray Data, as docs/guides/engines.md has it."""
    yield from RayBatches(ray.data.read_datasource(datasource(rows, server)), CONFIG)


def pool(rows: Path, server: str) -> Iterator[TensorBatch]:
    """A pool of a fixed size: its growth is no part of the comparison."""
    limits = ScalingLimits(actors_min=ACTORS, actors_max=ACTORS)
    with LookupPool(datasource(rows, server), limits=limits) as actors:
        yield from RayBatches(actors, CONFIG)


LOADER, DATASET, POOL = "`ThinRowLoader`", "Ray Data, `RayBatches`", "`LookupPool`"
SIDES: dict[str, Callable[[Path, str], Iterator[TensorBatch]]] = {
    LOADER: loader,
    DATASET: dataset,
    POOL: pool,
}


def processor_s() -> dict[str, float]:
    """Returns the processor time so far of this process and of those below it, by role."""
    parents, seconds, roles = dict[int, int](), dict[int, float](), dict[int, str]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        pid, fields = int(folder.name), rest.split()
        parents[pid] = int(fields[1])
        seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS
        is_work = "(ray::" in name or b"default_worker.py" in command
        roles[pid] = "tasks and actors" if is_work else "Ray's own"
        if b"thinrow" in command and b"serve" in command:
            roles[pid] = "server"
    roles[os.getpid()] = "trainer"
    total = dict.fromkeys(ROLES, 0.0)
    for pid in parents:
        above = pid
        while above > 1 and above != os.getpid():
            above = parents.get(above, 0)
        if above == os.getpid():
            total[roles[pid]] += seconds[pid]
    return total


def passed(batches: Iterator[TensorBatch], examples: int) -> Pass:
    """Reads all batches, as a trainer that does nothing with them."""
    began_s, seen, events = time.perf_counter(), 0, 0
    start_s = 0.0
    marks: list[tuple[float, int, dict[str, float]]] = []
    for batch in batches:
        start_s = start_s or time.perf_counter() - began_s
        seen, events = seen + len(batch), events + int(batch.offsets[-1])
        if len(marks) < len(CLOCKED) and seen >= CLOCKED[len(marks)] * examples:
            marks.append((time.perf_counter(), events, processor_s()))
    assert seen == examples, f"{seen} of {examples} examples came"
    (first_s, first, before), (last_s, last, after) = marks
    cpu_s = {role: after[role] - before[role] for role in ROLES}
    return Pass(start_s=start_s, events=last - first, seconds=last_s - first_s, cpu_s=cpu_s)


def digests(batches: Iterator[TensorBatch], examples: int) -> NDArray[np.uint64]:
    """Returns a digest of each example's values, by its id; each must come once."""
    found, times = np.zeros(examples, np.uint64), np.zeros(examples, np.int64)
    for batch in batches:
        ids, ends = batch.example_ids.numpy(), batch.offsets.tolist()
        columns = [batch.values[trait].numpy() for trait in PROJECTION.traits]
        times[ids] += 1
        for place, number in enumerate(ids.tolist()):
            hasher = xxhash.xxh3_64()
            for column in columns:
                hasher.update(column[ends[place] : ends[place + 1]])
            found[number] = hasher.intdigest()
    assert (times == 1).all(), "an example came twice, or not at all"
    return found


def built(folder: Path, sizes: Sizes) -> tuple[Path, Path, int]:
    """Builds a store; returns it, its thin rows and their number."""
    made = workload(
        users=sizes.users,
        events_median=sizes.events_median,
        days=120,
        request_days=REQUEST_DAYS,
        requests_per_day=sizes.requests_per_day,
    )
    events, schema, store = folder / "events.parquet", folder / "schema.toml", folder / "store"
    made.events.write_parquet(events)
    schema.write_text(SCHEMA, encoding="utf-8")
    thinrow.compact(
        events, store=store, schema=schema, watermark=made.watermark_ts, cadence="1d", shards=8
    )
    rows = folder / "rows.parquet"
    thinrow.backfill(made.requests, store=store, events=events, out=rows)
    return store, rows, len(made.requests)


@contextmanager
def small_ray() -> Iterator[None]:
    """Runs Ray on this machine, with little memory."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - 15 would yield to any other program
    ray.init(
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=f"/tmp/ray-{random.getrandbits(32):x}",  # noqa: S108 - sockets need short paths
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def measured(folder: Path, sizes: Sizes) -> tuple[dict[str, list[Pass]], int]:
    """Compares all batches, then reads them in turn; returns passes by side, and the rows."""
    store, rows, examples = built(folder, sizes)
    found: dict[str, list[Pass]] = {name: [] for name in SIDES}
    with small_ray(), serving(store, folder / "server.log") as served:
        expected = digests(loader(rows, served.address), examples)
        for name, side in SIDES.items():
            same = np.array_equal(digests(side(rows, served.address), examples), expected)
            assert same, f"{name} has other values than the loader"
        for number in range(sizes.rounds):
            for name in list(SIDES) if number % 2 else reversed(SIDES):
                one = passed(SIDES[name](rows, served.address), examples)
                found[name].append(one)
                print(f"{name}: {one.events_per_s / 1e6:.1f} M events/s, {one.seconds:.1f} s")
    return found, examples


def of(passes: Sequence[Pass], value: Callable[[Pass], float]) -> float:
    """Returns the median of a figure."""
    return median(value(one) for one in passes)


def ratio(found: dict[str, list[Pass]], name: str) -> float:
    """Returns the median over rounds of a side's speed as a multiple of the loader's."""
    pairs = zip(found[name], found[LOADER], strict=True)
    return median(one.events_per_s / base.events_per_s for one, base in pairs)


def speed_table(found: dict[str, list[Pass]]) -> str:
    rows = [
        [
            name,
            f"{of(passes, lambda one: one.events_per_s) / 1e6:,.0f} M",
            f"**{ratio(found, name):.2f}x**",
            f"{of(passes, lambda one: one.seconds):.1f} s",
            f"{of(passes, lambda one: one.start_s):.2f} s",
            "identical",
        ]
        for name, passes in found.items()
    ]
    return table(
        "side | events/s: | against the loader: | a round: | to the first batch: | values", rows
    )


def cpu_table(found: dict[str, list[Pass]]) -> str:
    """Processor time by role."""

    def per_billion(one: Pass, roles: Sequence[str]) -> float:
        return 1e9 * sum(one.cpu_s[role] for role in roles) / one.events

    rows = []
    for name, passes in found.items():
        cells = [
            f"{of(passes, lambda one, role=role: per_billion(one, [role])):.1f}"  # type: ignore[misc]
            for role in ROLES
        ]
        total = of(passes, lambda one: per_billion(one, ROLES))
        base = of(found[LOADER], lambda one: per_billion(one, ROLES))
        cores = of(passes, lambda one: sum(one.cpu_s.values()) / one.seconds)
        rows.append([name, *cells, f"{total:.1f}", f"{total / base:.2f}x", f"{cores:.1f}"])
    headings = " | ".join(f"{role}:" for role in ROLES)
    return table(f"side | {headings} | all: | against the loader: | cores busy:", rows)


def verdict(found: dict[str, list[Pass]]) -> str:
    names = {name: ratio(found, name) for name in (DATASET, POOL)}
    return "; ".join(
        f"{name} has {value:.2f}x, so it {'meets' if value >= GOAL else 'misses'} the goal"
        for name, value in names.items()
    )


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny run, to try it out")
    parser.add_argument("--out", type=Path, help="the page")
    given = parser.parse_args()
    sizes = QUICK if given.quick else FULL
    out = given.out or (None if given.quick else Path("docs/reports/ray.md"))
    load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as folder:
        found, examples = measured(Path(folder), sizes)
    values: dict[str, Any] = {
        "machine": machine(),
        "ray": version("ray"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": f"{load:.1f}",
        "sizes": sizes,
        "examples": f"{examples:,}",
        "length": f"{PROJECTION.sequence_length:,}",
        "lookup": f"{CONFIG.lookup_examples:,}",
        "batch": CONFIG.batch_examples,
        "first": f"{CLOCKED[0]:.0%}",
        "last": f"{1 - CLOCKED[1]:.0%}",
        "actors": ACTORS,
        "store": STORE_BYTES >> 20,
        "goal": GOAL,
        "verdict": verdict(found),
        "speed": speed_table(found),
        "cpu": cpu_table(found),
    }
    page = TEMPLATE.read_text(encoding="utf-8").format(**values)
    if out is not None:
        out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
