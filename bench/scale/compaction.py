"""Compaction on Spark against this process: processor time, bytes shuffled, memory, and a model.

`make bench-spark` writes docs/reports/compaction-spark.md and its plot. Stores lie in folders of
this machine's disk, behind file:// URLs, for both engines alike. Spark runs in one process with two
workers (`local[2]`), whose processor time includes the start of Java and of the session.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from page import table
from thinrow.core.files.paths import data_files
from thinrow.events.canonical import read_events
from thinrow.events.time_columns import TimeReader
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import RemoteGeneration, require_generation
from thinrow.remote.object_store import ObjectStore
from thinrow.schema import parse_schema
from workload import DAY_MS, FIRST_DAY

from server import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SCHEMA = """
[item]
item_id = { type = "int64", key = true }
action = { type = "string" }

[more]
duration = { type = "int32" }
score = { type = "float32" }
"""
ACTIONS = ("view", "click", "buy", "like")
FILES = 8
DAYS = 40
SHARDS = 16
USERS = 300_000
FIRST_MILLIONS = (2, 8, 20)
"""Events of first builds, in millions; increments follow those but the first."""
INCREMENTS_MILLIONS = (0.5, 2)
WHOLE_EVERY = 7
SAMPLE_S = 0.2
"""Interval at which processes are measured; the last one of each is lost."""
MANY_SHARDS = 16_384
DRIVER_HEAP = "512m"
TEMPLATE = Path(__file__).with_name("compaction.md.in")

# Assumptions of the model beyond what is measured.
TRACKED_SHARE = 1 / 400
"""New events of a day, as a share of those stored: histories of 400 days."""
EVENTS_PER_ACTIVE_USER = 25
"""New events of a day for each user who has any."""
CORES = 1_000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One compaction."""

    engine: str
    new: int
    """Events read."""
    stored: int
    """Events in the generation before."""
    touched: int
    """Users with new events who had some before."""
    cpu_s: float
    wall_s: float
    worker_bytes: int
    """Most memory of one worker of Python."""
    shuffled: int
    digests: list[str | None]
    stored_bytes: int

    @property
    def model_row(self) -> list[float]:
        """Amounts that the coefficients multiply: session, events, users, events rewritten."""
        whole = self.stored * 2 / SHARDS  # two of 16 shards are due in generation 2
        return [1.0, self.new / 1e6, self.touched / 1e6, whole / 1e6]


def write_events(
    folder: Path, count: int, first_day: int, days: int, seed: int
) -> NDArray[np.int64]:
    """Writes files of events; returns the users."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    users = []
    for number in range(FILES):
        rows = count // FILES
        first, last = (
            (first_day * DAY_MS + days * DAY_MS * place // FILES) for place in (number, number + 1)
        )
        ids = rng.integers(0, USERS, rows) * 7919 + 1
        made = pa.table(
            {
                "user_id": ids,
                "event_ts": np.sort(rng.integers(first, last, rows)),
                "item_id": rng.integers(0, 1 << 40, rows),
                "action": pa.DictionaryArray.from_arrays(
                    pa.array(rng.integers(0, len(ACTIONS), rows, np.int32)), pa.array(ACTIONS)
                ),
                "duration": rng.integers(0, 100_000, rows, np.int32),
                "score": rng.random(rows, np.float32),
            }
        )
        pq.write_table(made, folder / f"events-{number}.parquet", row_group_size=1 << 18)
        users.append(np.unique(ids))
    return np.unique(np.concatenate(users))


def canonical_bytes(folder: Path) -> int:
    """Returns the bytes of events in canonical Arrow form."""
    schema = parse_schema(SCHEMA)
    times = TimeReader()
    return sum(
        made.nbytes for file in data_files(folder) for made in read_events(file, schema, times)
    )


class Processes(threading.Thread):
    """Samples the processor time and the memory of the processes below this one.

    Java ends without waiting for its workers of Python, so the kernel adds their time to no one's.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.worker_bytes = 0
        """Most memory of one worker of Python."""
        self._cpu_s: dict[str, float] = {}
        self._ended = threading.Event()

    @property
    def cpu_s(self) -> float:
        """Seconds of all processes."""
        return sum(self._cpu_s.values())

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError, IndexError):  # it has ended
                    self._sample(folder)

    def _sample(self, folder: Path) -> None:
        if folder.name not in self._cpu_s and not _is_below(folder):
            return
        fields = _fields(folder)
        self._cpu_s[folder.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if b"pyspark.daemon" in (folder / "cmdline").read_bytes():
            size = int(fields[21]) * resource.getpagesize()
            self.worker_bytes = max(self.worker_bytes, size)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _fields(folder: Path) -> list[str]:
    """Returns the fields of a process from the third on: proc_pid_stat(5)."""
    return (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def _is_below(folder: Path) -> bool:
    """Returns True if a process descends from this one."""
    if folder.name == str(os.getpid()):
        return False
    while folder.name not in ("0", "1"):
        folder = folder.with_name(_fields(folder)[1])
        if folder.name == str(os.getpid()):
            return True
    return False


def shuffled_bytes(log: Path) -> int:
    """Returns the bytes that tasks wrote for others, by Spark's own log."""
    total = 0
    for path in log.rglob("events_*"):
        for line in path.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["Event"] == "SparkListenerTaskEnd":
                written = event["Task Metrics"]["Shuffle Write Metrics"]
                total += written["Shuffle Bytes Written"]
    return total


def current(store: Path) -> RemoteGeneration:
    """Returns the serving generation of a store."""
    objects = ObjectStore(f"file://{store}")
    record = require_current(objects).record
    return require_generation(objects, record.number, record.manifest_xxh3)


def compacted(
    engine: str, scratch: Path, events: Path, store: Path, watermark_ts: int, touched: int
) -> Measured:
    """Compacts events into a store, and measures it."""
    is_new = not store.exists()
    before = None if is_new else current(store)
    store.mkdir(exist_ok=True)
    log = scratch / f"log-{engine}-{events.name}-{store.name}"
    log.mkdir()
    schema = scratch / "schema.toml"
    schema.write_text(SCHEMA, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("thinrow")), "compact", str(events)]
    command += ["--store", f"file://{store}", "--schema", str(schema)]
    command += ["--watermark", str(watermark_ts), "--engine", engine]
    command += ["--shards", str(SHARDS)] if is_new else []
    if engine == "spark":
        properties = {
            "spark.master": "local[2]",
            "spark.driver.memory": "2g",
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.eventLog.enabled": "true",
            "spark.eventLog.compress": "false",
            "spark.eventLog.dir": f"file://{log}",
        }
        for key, value in properties.items():
            command += ["--spark-conf", f"{key}={value}"]
    processes = Processes()
    processes.start()
    started_s = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started_s
    processes.stop()
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    after = current(store)
    return Measured(
        engine=engine,
        new=after.manifest.event_count - (0 if before is None else before.manifest.event_count),
        stored=0 if before is None else before.manifest.event_count,
        touched=touched,
        cpu_s=processes.cpu_s,
        wall_s=wall_s,
        worker_bytes=processes.worker_bytes,
        shuffled=shuffled_bytes(log),
        digests=[shard.kv_xxh3_128 for shard in after.manifest.shards],
        stored_bytes=after.manifest.stored_bytes,
    )


DRIVER = """
import json, resource, sys
from uuid import uuid4
import pyarrow as pa
from thinrow.compaction.shard import ShardCounts
from thinrow.engines.spark.building import BuiltShard
from thinrow.engines.spark.session import Spark
from thinrow.engines.spark.tasks import RESULT_COLUMNS
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import require_generation
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.publication import commit, complete_generation
from thinrow.store.layout import shard_name
from thinrow.store.manifest import ShardSummary

store, many = sys.argv[1], int(sys.argv[2])
objects = ObjectStore(store)
base = require_current(objects)
one = require_generation(objects, base.record.number, base.record.manifest_xxh3)
manifest, few = one.manifest, one.manifest.shard_count
previous = [manifest.shards[number % few].model_dump_json() for number in range(many)]

def results(batches):
    for batch in batches:
        for number in batch.column("id").to_pylist():
            update = {"name": shard_name(number)}
            summary = ShardSummary.model_validate_json(previous[number])
            shard = one.shards[number % few]
            yield BuiltShard(shard=number, rows=1, counts=ShardCounts(),
                             summary=summary.model_copy(update=update),
                             manifest=shard.model_copy(update=update),
                             uploaded={}, facts=[]).encode()

properties = {"spark.master": "local[2]", "spark.driver.memory": sys.argv[3],
              "spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false"}
with Spark(properties) as spark:
    frame = spark.session.range(0, many, 1, 64).mapInArrow(results, RESULT_COLUMNS)
    built = [BuiltShard.decode(*row) for row in spark.rows(frame, "Collecting results")]
built.sort(key=lambda each: each.shard)
update = {"shards": [each.summary for each in built], "shard_count": many, "run_id": uuid4(),
          "number": manifest.number + 1}
generation = complete_generation(manifest.model_copy(update=update),
                                 {each.shard: each.manifest for each in built})
commit(objects, base, generation, {})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


def driver_bytes(store: Path) -> int:
    """Returns the memory of Python in a driver that publishes the results of MANY_SHARDS tasks."""
    command = [sys.executable, "-c", DRIVER, f"file://{store}", str(MANY_SHARDS), DRIVER_HEAP]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return int(done.stdout.split()[-1])


def fitted(points: Sequence[Measured]) -> NDArray[np.float64]:
    """Returns the seconds of a session, and those for a million events, users, and rewritten
    events, none below 0: by least squares over relative errors."""
    rows = np.array([point.model_row for point in points])
    cpu_s = np.array([point.cpu_s for point in points])
    active = np.ones(rows.shape[1], np.bool_)
    while True:
        found = np.zeros(rows.shape[1])
        found[active] = np.linalg.lstsq(
            rows[:, active] / cpu_s[:, None], np.ones(len(points)), rcond=None
        )[0]
        if (found >= 0).all():
            return found
        active &= found > 0


def plot(coefficients: NDArray[np.float64], points: Sequence[Measured], out: Path) -> None:
    """Draws core-hours and bytes of a day against events stored."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    per_event = points[-1].stored_bytes / (points[-1].stored + points[-1].new)
    stored = np.logspace(6, 13, 50)
    figure, (hours, moved) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    hours.loglog(stored, [day_of(coefficients, one)[0] for one in stored], color="#1b7f79")
    for point in points:
        if point.stored:
            hours.plot(point.stored, point.cpu_s / 3600, "o", color="#c46a3b")
    hours.set(xlabel="events stored", ylabel="core-hours", title="a day's compaction")
    hours.text(0.05, 0.9, "points: measured increments", transform=hours.transAxes, fontsize=8)
    moved.loglog(stored, stored * per_event / 1e12, label="copied to executors")
    moved.loglog(stored, stored * per_event / WHOLE_EVERY / 1e12, label="written again")
    moved.set(xlabel="events stored", ylabel="TB a day", title="bytes between store and executors")
    moved.legend(frameon=False)
    for axes in (hours, moved):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


def day_of(coefficients: NDArray[np.float64], stored: float) -> tuple[float, float, float]:
    """Returns core-hours of a day's compaction, of its new events, and of its whole rewrites."""
    new = stored * TRACKED_SHARE
    amounts = [1.0, new / 1e6, new / EVENTS_PER_ACTIVE_USER / 1e6, stored / WHOLE_EVERY / 1e6]
    parts = coefficients * np.array(amounts) / 3600
    return float(parts.sum()), float(parts[1] + parts[2]), float(parts[3])


def engines_table(pairs: Sequence[tuple[Measured, Measured]], canonical: Sequence[int]) -> str:
    """Both engines, run by run."""
    rows = []
    for (embedded, spark), size in zip(pairs, canonical, strict=True):
        rows.append(
            [
                f"{spark.stored / 1e6:.0f} M",
                f"{spark.new / 1e6:.1f} M",
                f"{embedded.cpu_s:.1f} s",
                f"{spark.cpu_s:.1f} s",
                f"{spark.cpu_s / embedded.cpu_s:.2f}x",
                f"{embedded.wall_s:.0f} s",
                f"{spark.wall_s:.0f} s",
                f"{spark.shuffled / size:.2f}x",
                f"{spark.worker_bytes >> 20:,} MiB",
                "identical" if spark.digests == embedded.digests else "DIFFERENT",
            ]
        )
    return table(
        "stored | new | embedded, CPU: | Spark, CPU: | ratio: | embedded took: | Spark took: "
        "| shuffled / canonical: | most of a worker: | digests of shards",
        rows,
    )


def model_table(coefficients: NDArray[np.float64], points: Sequence[Measured], fits: int) -> str:
    """Measured points, and what the model says of them."""
    rows = []
    for place, point in enumerate(points):
        says = float(np.array(point.model_row) @ coefficients)
        rows.append(
            [
                f"{point.stored / 1e6:.0f} M",
                f"{point.new / 1e6:.1f} M",
                f"{point.touched / 1e3:,.0f} k",
                f"{point.cpu_s:.1f} s",
                f"{says:.1f} s",
                f"{says / point.cpu_s - 1:+.0%}",
                "fitted" if place < fits else "checked",
            ]
        )
    return table("stored | new | users touched: | measured: | model: | difference: | used as", rows)


def days_table(coefficients: NDArray[np.float64], bytes_per_event: float) -> str:
    """A day's compaction at several sizes."""
    rows = []
    for stored in (1e9, 1e10, 1e11, 1e12, 1e13):
        total, new, whole = day_of(coefficients, stored)
        copied = stored * bytes_per_event
        rows.append(
            [
                f"10^{np.log10(stored):.0f}",
                f"{stored * TRACKED_SHARE:.1e}",
                f"{total:,.1f}",
                f"{new:,.1f}",
                f"{whole:,.1f}",
                f"{copied / 1e12:,.2f} TB",
                f"{copied / WHOLE_EVERY / 1e12:,.2f} TB",
                f"{total / CORES:,.2f} h",
            ]
        )
    return table(
        "events stored | new a day: | core-hours: | of new events: | of whole rewrites: "
        f"| copied to executors: | written again: | on {CORES:,} cores:",
        rows,
    )


def main() -> None:
    """Measures, and writes the page and its plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the events")
    parser.add_argument("--out", type=Path, default=Path("docs/reports/compaction-spark.md"))
    given = parser.parse_args()
    pairs: list[tuple[Measured, Measured]] = []
    canonical: list[int] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)

        def both(events: Path, name: str, watermark_ts: int, touched: int) -> None:
            canonical.append(canonical_bytes(events))
            pair = [
                compacted(
                    engine, scratch, events, scratch / f"{name}-{engine}", watermark_ts, touched
                )
                for engine in ("embedded", "spark")
            ]
            pairs.append((pair[0], pair[1]))
            print(engines_table(pairs[-1:], canonical[-1:]), file=sys.stderr)

        end = FIRST_DAY + DAYS
        for millions in FIRST_MILLIONS:
            first = scratch / f"first-{millions}"
            known = write_events(first, int(millions * 1e6 * given.scale), FIRST_DAY, DAYS, 1)
            both(first, f"store-{millions}", end * DAY_MS, 0)
            if millions == FIRST_MILLIONS[0]:
                continue
            for number, more in enumerate(INCREMENTS_MILLIONS):
                day = scratch / f"day-{millions}-{more}"
                users = write_events(day, int(more * 1e6 * given.scale), end, 1, 2 + number)
                name = f"store-{millions}-{more}"
                for engine in ("embedded", "spark"):
                    base = scratch / f"store-{millions}-{engine}"
                    shutil.copytree(base, scratch / f"{name}-{engine}")
                both(day, name, (end + 1) * DAY_MS, len(np.intersect1d(users, known)))
                for engine in ("embedded", "spark"):
                    shutil.rmtree(scratch / f"{name}-{engine}")
        driver = driver_bytes(scratch / f"store-{FIRST_MILLIONS[0]}-spark")
    points = [spark for _, spark in pairs]
    increments = [point for point in points if point.stored]
    chosen = [point for point in points if not point.stored] + increments[::3]
    checked = [point for point in points if point not in chosen]
    coefficients = fitted(chosen)
    largest = increments[-1]
    bytes_per_event = largest.stored_bytes / (largest.stored + largest.new)
    plot(coefficients, points, given.out.with_suffix(".png"))
    page = TEMPLATE.read_text(encoding="utf-8").format(
        machine=machine(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        load=f"{load:.1f}",
        shards=SHARDS,
        users=f"{USERS:,}",
        engines=engines_table(pairs, canonical),
        many=f"{MANY_SHARDS:,}",
        heap=DRIVER_HEAP,
        driver=f"{driver >> 20:,} MiB",
        session=f"{coefficients[0]:.1f}",
        event=f"{coefficients[1]:.2f}",
        user=f"{coefficients[2]:.2f}",
        whole=f"{coefficients[3]:.2f}",
        bytes_per_event=f"{bytes_per_event:.1f}",
        share=f"1/{1 / TRACKED_SHARE:.0f}",
        active=EVENTS_PER_ACTIVE_USER,
        checks=model_table(coefficients, [*chosen, *checked], len(chosen)),
        days=days_table(coefficients, bytes_per_event),
        plot=given.out.with_suffix(".png").name,
    )
    given.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
