"""Raw figures for `thinrow wall`: bytes and CPU seconds of fat and thin rows at several lengths.

Run with ``make bench-wall``. It writes server/thinrow/wall/figures.json, the default figures of
`thinrow wall`. Nothing is counted before its tensors have been compared.

Streaming reads one example of each user, since a lookup of a platform with many users brings
hardly any user twice. Batch reads all requests of a day of other users, one user after another.
Every round has a new server, whose caches are empty: at the scale of a platform they hold next to
nothing. So a round includes a connection, and the small lookups that a loader begins with.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from expected import Histories
from peers.parquet import PyArrowRows
from sides import check_equal, process_s
from thinrow.compaction.compact import compact
from thinrow.compaction.config import CompactionConfig
from thinrow.wall.model import rewritten_events
from workload import SCHEMA, TRAITS, workload
from world import DAY_MS, Tenant, ThinRows, World, children, size, write_rows

from server import machine, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from sides import Side

FIGURES = Path(__file__).parent.parent / "server/thinrow/wall/figures.json"
COLUMNS = (*TRAITS, "event_ts")
"""Columns that both sides deliver: all traits and the time of each event."""
LENGTHS = (1024, 4096, 16_384, 65_536)
EVENTS_PER_DAY = 180
REQUESTS_PER_DAY = 20
EVENTS = 1 << 21
"""Events of each store."""
BATCH_USERS_SHARE = 1 / 8
"""Users whose requests batch order reads; streaming reads one request of each of the others."""
BATCH_EVENTS = 1 << 20
ROUNDS = 3
INCREMENTS = 7
"""Daily generations of a cycle, in which each shard is written whole once."""
SHARDS = 4


def main() -> None:
    """Measures every length, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--events", type=int, default=EVENTS, help="events of each store")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=FIGURES, help="file of the figures")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    lines, stores = [], []
    for length in arguments.lengths:
        start_s = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as scratch:
            of_orders, store = measured(
                Path(scratch), length, arguments.events // length, arguments.rounds
            )
        lines += of_orders
        stores.append(store)
        print(f"{length}: {time.perf_counter() - start_s:.0f} s")
    figures = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load_before": round(load, 1),
        "rounds": arguments.rounds,
        "stores": stores,
        "lines": lines,
    }
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"The figures are {arguments.out}")


def measured(
    folder: Path,
    length: int,
    users: int,
    rounds: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measures one length: a line for each order, and the store with its increments."""
    # Requests fall on the last day: with two days more than the length, all of them see enough.
    made = workload(
        users=users,
        events_median=length + 2 * EVENTS_PER_DAY,
        days=length // EVENTS_PER_DAY + 2,
        request_days=1,
        requests_per_day=REQUESTS_PER_DAY,
        spread=0,
    )
    raw, store = folder / "events.parquet", folder / "store"
    (folder / "schema.toml").write_text(SCHEMA)
    made.events.write_parquet(raw)
    of_store = {"length": length, "users": users} | daily_increments(
        folder, store, made.events, made.watermark_ts
    )
    requests = made.requests.with_row_index("number").with_columns(pl.col("number").cast(pl.Int64))
    batch_users = max(1, round(users * BATCH_USERS_SHARE))
    in_batch = pl.col("user_id") < batch_users
    orders = {
        "streaming": requests.filter(~in_batch).unique(
            "user_id", keep="first", maintain_order=True
        ),
        "batch": requests.filter(in_batch).sort("user_id", "request_ts"),
    }
    write_rows(folder, store, raw, orders)
    histories = Histories(made.events, TRAITS)
    histories.traits["event_ts"] = histories.event_ts
    del made
    return list(compared(folder, histories, orders, length, rounds)), of_store


def daily_increments(
    folder: Path, store: Path, events: pl.DataFrame, watermark_ts: int
) -> dict[str, Any]:
    """Builds a store up to a cycle before its watermark, and then day by day.

    Where a cycle is most of the history, builds all of it at once, and measures no increments.
    """
    first_ts = watermark_ts - INCREMENTS * DAY_MS
    if 2 * (events["event_ts"] < first_ts).sum() < len(events):
        first_ts = watermark_ts
    seen: set[int] = set()
    written = {"whole": 0, "layer": 0}
    shards = {"whole": 0, "layer": 0}
    rewritten = read_bytes = 0
    cpu_s = 0.0
    start_ts = 0
    days = range(first_ts, watermark_ts + 1, DAY_MS)
    for until_ts in days:
        path = folder / f"events until {until_ts}.parquet"
        events.filter(
            pl.col("event_ts").is_between(start_ts, until_ts, closed="left")
        ).write_parquet(path)
        config = CompactionConfig(
            store=store,
            events=[path],
            schema=folder / "schema.toml",
            watermark_ts=until_ts,
            cadence_ms=DAY_MS,
            shards=SHARDS,
            keep=INCREMENTS + 1,
        )
        before = read_by(os.getpid()), time.process_time()
        report = compact(config)
        after = read_by(os.getpid()), time.process_time()
        new = list(new_bytes(store, seen))
        if start_ts:
            for kind, count in new:
                written[kind] += count
                shards[kind] += 1
            # New files are read once for their checksums, from the page cache.
            read_bytes += after[0] - before[0] - sum(count for _, count in new)
            cpu_s += after[1] - before[1]
            rewritten += int(rewritten_events(*user_counts(events, start_ts, until_ts)).sum())
        start_ts = until_ts
    found: dict[str, Any] = {
        "events": report.event_count,
        "event_bytes": report.stored_bytes / report.event_count,
    }
    if len(days) > 1:
        total = sum(written.values())
        layered = shards["layer"] / sum(shards.values())
        found |= {
            "written_bytes_per_day": total / (len(days) - 1),
            "whole_shards_share": 1 - layered,
            "layer_event_bytes": written["layer"] / (rewritten * layered),
            "read_bytes_per_day": read_bytes / (len(days) - 1),
            "cpu_s_per_written_mb": cpu_s / (total / 1e6),
        }
    return found


def new_bytes(store: Path, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Kind and new bytes of each shard of the newest generation; older files are linked."""
    newest = max(store.glob("generation-*"))
    for shard in sorted(path for path in newest.glob("shard-*") if path.is_dir()):
        files = [file.stat() for file in shard.iterdir()]
        new = [file for file in files if file.st_ino not in seen]
        seen.update(file.st_ino for file in files)
        yield "whole" if len(new) == len(files) else "layer", sum(file.st_size for file in new)


def user_counts(
    events: pl.DataFrame, *until_ts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Events of each user before two moments, of users who have more before the second."""
    before, after = (
        np.bincount(events.filter(pl.col("event_ts") < ts)["user_id"].to_numpy(), minlength=users)
        for ts in until_ts
        for users in [int(events["user_id"].max()) + 1]  # type: ignore[arg-type]
    )
    return before[after > before], after[after > before]


def read_by(pid: int) -> int:
    """Bytes that a process has read from files so far, those in the page cache too."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def compared(
    folder: Path, histories: Histories, orders: dict[str, pl.DataFrame], length: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Reads both orders from both sides in turn, and yields a line for each order."""
    tenant = Tenant(
        name="",
        sequence_length=length,
        traits=COLUMNS,
        batch_examples=max(1, BATCH_EVENTS // length),
    )
    found: dict[str, dict[str, Any]] = {}
    readers: dict[str, PyArrowRows] = {}
    with served(folder, histories, orders) as world:
        for order, requests in orders.items():
            examples = world.examples(order, tenant)
            fat = folder / f"fat {order}.parquet"
            write_cpu_s = examples.write_fat_rows(fat)
            readers[order] = PyArrowRows(fat, COLUMNS, tenant.batch_examples)
            check_equal(readers[order], examples.batches())
            sent_bytes = world.metrics()["sent_bytes"]
            thin = ThinRows(world, order, tenant)
            check_equal(thin, examples.batches())
            thin.loader.close()
            events = int(examples.lengths.sum())
            found[order] = {
                "order": order,
                "length": length,
                "examples": len(examples),
                "events": events,
                "sharing": len(requests) / requests["user_id"].n_unique(),
                "fat_event_bytes": fat.stat().st_size / events,
                "fat_write_cpu_s_per_million": 1e6 * write_cpu_s / events,
                "thin_row_bytes": world.rows(order).stat().st_size / len(examples),
                "sent_event_bytes": (world.metrics()["sent_bytes"] - sent_bytes) / events,
            }
    passes: dict[str, list[dict[str, float]]] = {order: [] for order in orders}
    for _ in range(rounds):
        with served(folder, histories, orders) as world:
            for order, reader in readers.items():
                thin = ThinRows(world, order, tenant)
                costs = one_pass(thin, world.server_pid)
                thin.loader.close()
                passes[order].append(costs | {"fat_read_cpu_s": client_cpu_s(reader)})
    for order, taken in passes.items():
        events = found[order]["events"]
        middle = {name: median(one[name] for one in taken) for name in taken[0]}
        found[order]["store_read_event_bytes"] = middle.pop("store_read_bytes") / events
        for name, cpu_s in middle.items():
            found[order][f"{name}_per_million"] = 1e6 * cpu_s / events
        yield found[order]


@contextmanager
def served(folder: Path, histories: Histories, orders: dict[str, pl.DataFrame]) -> Iterator[World]:
    """A new server of the store, whose caches are empty."""
    before = children()
    with serving(folder / "store", folder / "server.log") as server:
        (server_pid,) = children() - before
        yield World(
            name="",
            folder=folder,
            histories=histories,
            orders=orders,
            served=server,
            server_pid=server_pid,
            store_bytes=size(folder / "store"),
        )


def one_pass(thin: ThinRows, server_pid: int) -> dict[str, float]:
    """CPU seconds of both processes, and bytes that the server reads from files."""
    server_s, read_bytes = process_s(server_pid), read_by(server_pid)
    client_s = client_cpu_s(thin)
    return {
        "client_cpu_s": client_s,
        "server_cpu_s": process_s(server_pid) - server_s,
        "store_read_bytes": read_by(server_pid) - read_bytes,
    }


def client_cpu_s(side: Side) -> float:
    """CPU seconds of this process while it takes all batches of a side."""
    before_s = time.process_time()
    for _ in side.batches():
        pass
    return time.process_time() - before_s


if __name__ == "__main__":
    main()
