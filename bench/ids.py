"""Ids of every kind beside int64, lists beside memory copies, and fills beside first builds.

`make bench-ids` writes docs/reports/ids.md. The sides of a ratio take turns in one process, whose
processor time counts: it has both the server and its client, and other work on the machine changes
it least. With ``--quick`` everything is tiny, and nothing is written but into --out.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import string
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import thinrow
from page import table
from thinrow.client import Batch, Pointers, Projection, connect
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server
from workload import DAY_MS, FIRST_DAY

from server import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
TEMPLATE = Path(__file__).with_name("ids.md.in")
KINDS = ("int64", "string", "uuid")
"""The first is what the others are compared with."""
SCHEMA = """
[item]
item_id = { type = "int64", key = true }
[feedback]
rating = "int8"
watch_ms = "int32"
"""
LISTS = """
[item]
item_id = { type = "int64", key = true }
categories = { type = "list<int64>", length_max = 32 }
"""
CATALOG = """
[catalog]
category = { type = "int32", sparse = true }
price = { type = "float32", sparse = true }
"""
LETTERS = string.ascii_uppercase + string.digits
TEXT_LETTERS = 14
EVENTS_PER_USER = 100
DAYS = 30
ITEMS = 100_000
BATCH_EXAMPLES = 256
SEQUENCE_LENGTH = 100
ID_GOAL = 1.3
USER_BYTES_GOAL = 24
COPY_GOAL = 0.5
FILL_GOAL = 0.5


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the run."""

    events: int
    fill_events: int
    list_events: int
    batches: int
    rounds: int


FULL = Sizes(events=1_500_000, fill_events=5_000_000, list_events=2_000_000, batches=64, rounds=3)
QUICK = Sizes(events=40_000, fill_events=40_000, list_events=40_000, batches=4, rounds=1)


@dataclass(slots=True)
class Times:
    """Seconds of what was measured, by its name and then by its side."""

    processor_s: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    wall_s: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    @contextmanager
    def measure(self, name: str, side: str) -> Iterator[None]:
        """Adds the seconds of a block."""
        wall_s, processor_s = time.perf_counter(), time.process_time()
        yield
        self.processor_s[name][side].append(time.process_time() - processor_s)
        self.wall_s[name][side].append(time.perf_counter() - wall_s)

    def ratio(self, name: str, side: str, base: str) -> float:
        """Returns how much more processor time a side takes: the median of the rounds' ratios."""
        pairs = zip(self.processor_s[name][side], self.processor_s[name][base], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def cells(self, name: str, side: str, base: str) -> list[str]:
        """Returns the medians of a side, and its ratio to another."""
        processor_s = statistics.median(self.processor_s[name][side])
        wall_s = statistics.median(self.wall_s[name][side])
        return [f"{processor_s:.2f} s", f"{wall_s:.2f} s", f"{self.ratio(name, side, base):.2f}x"]


def ids_of(numbers: NDArray[np.int64], kind: str) -> pa.Array:
    """Returns ids of a kind, each number's own; no kind has them in another's order."""
    known, places = np.unique(numbers, return_inverse=True)
    # An odd factor permutes numbers of 64 bits.
    words = known.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    if kind == "int64":
        return pa.array(words.view(np.int64)[places])
    if kind == "string":
        texts = [in_base_36(word) for word in words.tolist()]
    else:
        others = known.view(np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        texts = [
            f"{high[:8]}-{high[8:12]}-{high[12:]}-{low[:4]}-{low[4:]}"
            for high, low in zip(
                map("{:016x}".format, words.tolist()),
                map("{:016x}".format, others.tolist()),
                strict=True,
            )
        ]
    return pa.array(texts).take(pa.array(places))


def in_base_36(word: int) -> str:
    """Returns a text of TEXT_LETTERS letters and digits, such as reviewers of shops have."""
    return "A" + "".join(LETTERS[word // 36**place % 36] for place in range(TEXT_LETTERS - 1))


def events(count: int, seed: int = 0) -> dict[str, Any]:
    """Makes events of users of about EVENTS_PER_USER each, in the order of their times."""
    rng = np.random.default_rng(seed)
    first_ts = FIRST_DAY * DAY_MS
    return {
        "user_id": rng.integers(0, max(count // EVENTS_PER_USER, 1), count),
        "event_ts": np.sort(rng.integers(first_ts, first_ts + DAYS * DAY_MS, count)),
        "item_id": rng.integers(0, ITEMS, count),
        "rating": rng.integers(0, 10, count).astype(np.int8),
        "watch_ms": rng.integers(0, 1 << 22, count).astype(np.int32),
    }


WATERMARK_TS = (FIRST_DAY + DAYS) * DAY_MS


def compact(file: Path, store: Path, schema: str) -> Any:  # noqa: ANN401 - a report
    """Builds a store from a file of events."""
    toml = store.with_suffix(".toml")
    toml.write_text(schema, encoding="utf-8")
    return thinrow.compact(file, store=store, schema=toml, watermark=WATERMARK_TS)


def pointers(users: pa.Array, seed: int) -> Pointers:
    """Returns pointers of random users at the watermark."""
    chosen = np.random.default_rng(seed).integers(0, len(users), BATCH_EXAMPLES)
    return Pointers(
        user_ids=users.take(pa.array(chosen)).to_numpy(zero_copy_only=False),
        end_ts=[WATERMARK_TS] * BATCH_EXAMPLES,
    )


def rows_file(path: Path, users: pa.Array, batches: int) -> None:
    """Writes thin rows of random users, as serving would have logged them."""
    count = batches * BATCH_EXAMPLES
    chosen = np.random.default_rng(7).integers(0, len(users), count)
    uih = {
        "start_ts": np.zeros(count, np.int64),
        "end_ts": np.full(count, WATERMARK_TS),
        "max_length": np.zeros(count, np.int64),
        "digest": np.zeros(count, np.uint64),
    }
    event = pa.struct([("event_ts", pa.int64()), ("arrival_ts", pa.int64())])
    columns = {
        "user_id": users.take(pa.array(chosen)),
        "request_ts": np.full(count, WATERMARK_TS + 1),
        "uih": pa.StructArray.from_arrays(list(map(pa.array, uih.values())), list(uih)),
        "mutable": pa.array([[]] * count, pa.list_(event)),
    }
    pq.write_table(pa.table(columns), path)


def read(
    name: str, kind: str, wanted: Projection, store: Path, users: pa.Array, times: Times, count: int
) -> None:
    """Measures a server with its client, and a loader, that read some batches."""
    requested = [pointers(users, seed) for seed in range(count)]
    config = ServerConfig(store=store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as server, connect(server.address) as client:
        list(client.stream(requested[:2], wanted))
        with times.measure(name.format("serve"), kind):
            found = sum(int(batch.offsets[-1]) for batch in client.stream(requested, wanted))
        assert found
    rows = store.with_suffix(".rows.parquet")
    rows_file(rows, users, count)
    config_of_loader = LoaderConfig(batch_examples=BATCH_EXAMPLES)
    with (
        times.measure(name.format("load"), kind),
        ThinRowLoader(rows, store, wanted, config_of_loader) as loader,
    ):
        assert sum(1 for _ in loader) == count


def measured_ids(sizes: Sizes, scratch: Path, times: Times) -> dict[tuple[str, str], int]:
    """Measures each kind of users' and of events' ids; returns bytes of stores."""
    made = events(sizes.events)
    numbers = np.unique(made["user_id"])
    stored: dict[tuple[str, str], int] = {}
    for of in ("users", "events"):
        files = {}
        for kind in KINDS:
            columns, users_kind = dict(made), kind if of == "users" else KINDS[0]
            columns["user_id"] = ids_of(made["user_id"], users_kind)
            if of == "events":
                columns["event_id"] = ids_of(np.arange(sizes.events), kind)
            file = scratch / f"{of}-{kind}.parquet"
            pq.write_table(pa.table(columns), file)
            schema = f'{SCHEMA}[{of.removesuffix("s")}]\nid = "{kind}"\n'
            files[kind] = file, schema, ids_of(numbers, users_kind)
        for turn in range(sizes.rounds):
            for kind, (file, schema, users) in files.items():
                store = scratch / f"{of}-{kind}-{turn}"
                with times.measure(f"{of}: compact", kind):
                    report = compact(file, store, schema)
                stored[of, kind] = report.stored_bytes
                wanted = Projection(sequence_length=SEQUENCE_LENGTH)
                read(f"{of}: {{}}", kind, wanted, store, users, times, sizes.batches)
                if of == "events":
                    wanted = replace(wanted, traits=("event_id", "item_id", "rating"))
                    read(f"{of}: {{}} with ids", kind, wanted, store, users, times, sizes.batches)
                shutil.rmtree(store)
        for file, _, _ in files.values():
            file.unlink()
    return stored


def measured_lists(sizes: Sizes, scratch: Path, times: Times) -> int:
    """Measures the decoding of lists beside a copy of their values; returns a round's bytes."""
    made = events(sizes.list_events)
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 33, sizes.list_events)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.integers(0, 1 << 62, int(ends[-1]))
    columns = {name: made[name] for name in ("user_id", "event_ts", "item_id")}
    columns["categories"] = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values))
    file, store = scratch / "lists.parquet", scratch / "lists"
    pq.write_table(pa.table(columns), file)
    compact(file, store, LISTS)
    users = pa.array(np.unique(made["user_id"]))
    requested = [pointers(users, seed) for seed in range(sizes.batches)]
    copied = 0
    with connect(store) as client:
        for _ in range(sizes.rounds):
            answers = list(client.answers(requested, Projection(traits=("categories",))))
            with times.measure("lists", "decode"):
                batches = [Batch.from_answers([answer]) for answer in answers]
            listed = [batch.values["categories"] for batch in batches]
            with times.measure("lists", "copy"):
                copies = [each.copy() for each in listed]
            copied = sum(each.nbytes for each in copies)
            del batches, listed, copies
    shutil.rmtree(store)
    return copied


def measured_fills(sizes: Sizes, scratch: Path, times: Times) -> None:
    """Measures fills of a new group beside the first build."""
    made = events(sizes.fill_events)
    made["event_id"] = np.arange(sizes.fill_events)
    file = scratch / "fill-events.parquet"
    pq.write_table(pa.table(made), file)
    rng = np.random.default_rng(2)
    tables = {
        "fill by event_id": {"user_id": made["user_id"], "event_id": made["event_id"]},
        "fill by item_id": {"item_id": np.arange(ITEMS)},
    }
    catalog = scratch / "catalog.toml"
    catalog.write_text(CATALOG, encoding="utf-8")
    values = {}
    for name, key in tables.items():
        rows = len(next(iter(key.values())))
        values[name] = scratch / f"{name}.parquet"
        added = {
            "category": rng.integers(0, 1000, rows).astype(np.int32),
            "price": rng.random(rows, np.float32),
        }
        pq.write_table(pa.table(key | added), values[name])
    for turn in range(sizes.rounds):
        store = scratch / f"fill-{turn}"
        with times.measure("fill", "first build"):
            compact(file, store, SCHEMA)
        for name, path in values.items():
            copy = scratch / f"filled-{turn}"
            shutil.copytree(store, copy, symlinks=True)
            with times.measure("fill", name):
                report = thinrow.fill("catalog", path, store=copy, schema=catalog)
            assert report.record.events == sizes.fill_events
            shutil.rmtree(copy)
        shutil.rmtree(store)


def verdict(is_met: bool) -> str:
    """Returns a cell that says whether a goal is met."""
    return "yes" if is_met else "**no**"


def page(sizes: Sizes, times: Times, stored: dict[tuple[str, str], int], copied: int) -> str:
    """Returns the text of the page."""
    users = max(sizes.events // EVENTS_PER_USER, 1)
    counted = {"users": users, "events": sizes.events}
    base = KINDS[0]
    id_rows = []
    for name in times.processor_s:
        of, _, what = name.partition(": ")
        if of not in counted:
            continue
        for kind in KINDS:
            cells, is_met = times.cells(name, kind, base), times.ratio(name, kind, base) <= ID_GOAL
            id_rows.append([of, what, kind, *cells, verdict(is_met) if kind != base else ""])
    byte_rows = [
        [
            of,
            kind,
            f"{stored[of, kind]:,}",
            f"{(stored[of, kind] - stored[of, base]) / counted[of]:+.1f}" if kind != base else "",
        ]
        for of in counted
        for kind in KINDS
    ]
    decode_s, copy_s = (
        statistics.median(times.processor_s["lists"][side]) for side in ("decode", "copy")
    )
    share = 1 / times.ratio("lists", "decode", "copy")
    fills = []
    for name in ("first build", "fill by event_id", "fill by item_id"):
        is_met = times.ratio("fill", name, "first build") <= FILL_GOAL
        cells = times.cells("fill", name, "first build")
        fills.append([name, *cells, verdict(is_met) if name.startswith("fill") else ""])
    return TEMPLATE.read_text(encoding="utf-8").format(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=machine(),
        sizes=sizes,
        users=users,
        per_user=EVENTS_PER_USER,
        examples=BATCH_EXAMPLES,
        length=SEQUENCE_LENGTH,
        user_bytes=USER_BYTES_GOAL,
        ids=table("ids of | work | kind | processor: | wall: | ratio: | at most 1.3x", id_rows),
        bytes=table("ids of | kind | bytes of the store: | more than int64, each: ", byte_rows),
        lists=table(
            "bytes of values: | decoded: | copied: | rate of a copy: | at least 50 %",
            [
                [
                    f"{copied:,}",
                    f"{copied / decode_s / 1e9:.2f} GB/s",
                    f"{copied / copy_s / 1e9:.2f} GB/s",
                    f"{share:.0%}",
                    verdict(share >= COPY_GOAL),
                ]
            ],
        ),
        fills=table("work | processor: | wall: | ratio: | at most 0.5x", fills),
    )


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny run, to try it out")
    parser.add_argument("--out", type=Path, help="folder of the page")
    given = parser.parse_args()
    sizes = QUICK if given.quick else FULL
    out = given.out or (None if given.quick else ROOT / "docs/reports")
    times = Times()
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as folder:
        scratch = Path(folder)
        stored = measured_ids(sizes, scratch, times)
        copied = measured_lists(sizes, scratch, times)
        measured_fills(sizes, scratch, times)
    text = page(sizes, times, stored, copied)
    print(text)
    if out is not None:
        (out / "ids.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
