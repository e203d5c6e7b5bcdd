"""``thinrow wall``: what fat rows and thin rows cost at every length, and where the wall is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table
from thinrow.client import Projection, read_thin_rows, row_count
from thinrow.core.files.parquet import open_parquet
from thinrow.errors import InputError, UsageError
from thinrow.jobs.connecting import connected
from thinrow.jobs.console import out, readable_bytes
from thinrow.jobs.materialize import materialize
from thinrow.jobs.pyplot import load_pyplot
from thinrow.store.times import DAY_MS
from thinrow.wall.model import (
    SHARE_MAX,
    Bytes,
    Curve,
    Workload,
    bytes_of,
    find_wall,
    increment_events,
    share_at,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.client import Client
    from thinrow.jobs.connecting import Access
    from thinrow.wall.config import GivenFigures, Power

__all__ = ["ASSUMED", "measured_workload", "parse_tenants", "run_wall"]

SAMPLE_ROWS = 4096
"""Thin rows that are measured, from the middle of their file."""
LENGTH_STEP = 2
"""Ratio of one measured length to the next."""
REQUEST_EXAMPLES = 512
SHORTEST_PLOTTED = 64
ASSUMED_ROW_BYTES = 50
ASSUMED = Workload(
    users=1e6,
    requests_per_day=20,
    histories=np.array([65_536.0]),
    stored_events=65_536,
    events_per_day=180,
    increment_events=increment_events(np.array([65_536.0]), 180),
    rows_kept_days=30,
    row_age_days=1,
    fat_row=Curve.line(ASSUMED_ROW_BYTES, 4),
    thin_row=120,
    store_event=25,
    answer=Curve.line(ASSUMED_ROW_BYTES, 28),
    sharing=8,
)
"""Defaults of values that are neither measured nor given: a large platform, with the bytes of the
made-up workload of bench/workload.py when eight examples of a user stand near each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A model and the length it trains with."""

    name: str
    length: int


def parse_tenants(texts: Sequence[str]) -> list[Tenant]:
    """Tenants written as NAME=LENGTH. Raises UsageError for anything else."""
    tenants = []
    for text in texts:
        name, _, length = text.partition("=")
        if not name or not length.isdecimal() or not int(length):
            raise UsageError(f"{text!r} is no tenant; write NAME=LENGTH, such as long=16384.")
        tenants.append(Tenant(name=name, length=int(length)))
    return tenants


def run_wall(
    tenants: Sequence[Tenant],
    power: Power,
    given: GivenFigures,
    rows: Path | None,
    server: Sequence[str],
    picture: Path,
    access: Access | None = None,
) -> None:
    """Prints and plots bytes and the wall. What is ``given`` counts before what is measured.

    Raises UsageError for thin rows without a server, or where Matplotlib is missing.
    """
    plt = load_pyplot("The wall")
    if (rows is None) != (not server):
        raise UsageError("Thin rows and their server belong together; give both or neither.")
    workload = ASSUMED
    if rows is not None:
        with connected(server, access) as client:
            workload = measured_workload(client, rows)
    workload = with_given(workload, given)
    out.print(*to_tables(workload, tenants, power), sep="\n")
    plot(plt, workload, tenants, power, picture)
    out.print(f"The picture is {picture}")


def with_given(workload: Workload, given: GivenFigures) -> Workload:
    """Replaces measured or assumed figures with given ones."""
    changes: dict[str, Any] = {k: v for k, v in asdict(given).items() if v is not None}
    for line in ("fat_row", "answer"):
        if f"{line}_event" in changes:
            changes[line] = Curve.line(ASSUMED_ROW_BYTES, changes.pop(f"{line}_event"))
    if "retention_days" in changes or "events_per_day" in changes:
        days = changes.pop("retention_days", workload.stored_events / workload.events_per_day)
        stored = changes.get("events_per_day", workload.events_per_day) * days
        scale = stored / workload.stored_events
        histories = workload.histories * scale
        changes |= {
            "stored_events": stored,
            "histories": histories,
            "increment_events": increment_events(histories, stored / days),
        }
    return replace(workload, **changes)


def measured_workload(client: Client, rows: Path) -> Workload:
    """Takes every figure from thin rows and the store that they point at.

    A sample of the rows is requested at two lengths, written as fat rows, and weighed.
    Raises InputError where there are no rows, or none of them has a history.
    """
    store = client.describe_store()
    keys = open_parquet(rows).read(["user_id", "request_ts"])
    if not len(keys) or not store.event_count:
        raise InputError(f"{rows} and its store hold nothing to measure; give other ones.")
    bounds = pc.min_max(keys["request_ts"]).as_py()
    days = max((bounds["max"] - bounds["min"]) / DAY_MS, 1)
    users = pc.count_distinct(keys["user_id"]).as_py()
    with TemporaryDirectory() as folder:
        part = Path(folder) / "rows.parquet"
        table = open_parquet(rows).read()
        pq.write_table(table.slice(max(0, (len(table) - SAMPLE_ROWS) // 2), SAMPLE_ROWS), part)
        whole, oldest_ts = _history_lengths(client, part)
        steps = int(np.ceil(np.log(whole.max()) / np.log(LENGTH_STEP)))
        lengths = np.unique([min(LENGTH_STEP**n, whole.max()) for n in range(steps + 1)]).tolist()
        sent, fat = zip(*(_weighed(client, part, length) for length in lengths), strict=True)
    # A row's own bytes cannot be requested: length 0 stands for all. Those of one event stand in.
    events = (0.0, *(float(np.minimum(whole, length).mean()) for length in lengths))
    sent, fat = (sent[0], *sent), (fat[0], *fat)
    retention_days = max((store.watermark_ts - oldest_ts) / DAY_MS, 1)
    stored_events = store.event_count / store.user_count
    return Workload(
        users=store.user_count,
        requests_per_day=len(keys) / users / days,
        histories=whole.astype(np.float64),
        stored_events=stored_events,
        events_per_day=stored_events / retention_days,
        increment_events=increment_events(whole, stored_events / retention_days),
        rows_kept_days=days,
        row_age_days=max((store.watermark_ts - pc.mean(keys["request_ts"]).as_py()) / DAY_MS, 0),
        fat_row=Curve(events, fat),
        thin_row=rows.stat().st_size / len(keys),
        store_event=store.stored_bytes / store.event_count,
        answer=Curve(events, sent),
    )


def _history_lengths(client: Client, rows: Path) -> tuple[np.ndarray[Any, Any], int]:
    """Events of each row's history, and the oldest one's ``event_ts``."""
    lengths, oldest = [], []
    batches = (thin_rows for thin_rows, _ in read_thin_rows(rows, examples=REQUEST_EXAMPLES))
    for batch in client.stream(batches, Projection(traits=("event_ts",))):
        lengths.append(np.diff(batch.offsets))
        oldest += [int(batch.values["event_ts"].min(initial=np.iinfo(np.int64).max))]
    found = np.concatenate(lengths)
    if not found.any():
        raise InputError(f"None of {rows}'s sample has a history; give other rows.")
    return found, min(oldest)


def _weighed(client: Client, rows: Path, length: int) -> tuple[float, float]:
    """Bytes of an answer and of a fat row, for each row."""
    count = row_count(rows)
    projection = Projection(length)
    batches = (thin_rows for thin_rows, _ in read_thin_rows(rows, examples=REQUEST_EXAMPLES))
    sent = sum(answer.answer_bytes for answer in client.answers(batches, projection))
    fat = rows.with_name("fat.parquet")
    materialize(client, rows, projection, fat)
    return sent / count, fat.stat().st_size / count


def to_tables(workload: Workload, tenants: Sequence[Tenant], power: Power) -> list[Table | str]:
    """The figures, for the screen."""
    union = max(tenant.length for tenant in tenants)
    both = bytes_of(workload, union, union)
    totals = Table("of all examples", "fat rows", "thin rows", "saved", title="\nBytes")
    for name, column in (("stored", "stored"), ("written a day", "written_per_day")):
        totals.add_row(name, *_pair(both, column))
    each = Table(
        *("tenant", "length", "events", "what"),
        *("fat rows", "thin rows", "saved"),
        title="\nBytes of an example, each time it is trained on",
    )
    for tenant in tenants:
        both = bytes_of(workload, tenant.length, union)
        events = f"{workload.events(tenant.length):,.0f}"
        for name, column in (("read", "read_per_example"), ("sent", "sent_per_example")):
            each.add_row(tenant.name, f"{tenant.length:,}", events, name, *_pair(both, column))
    found = find_wall(workload, power)
    summary = [
        f"The wall, where data services draw more than {SHARE_MAX} of the GPUs' power:",
        f"  fat rows: {_described(found.fat, workload)}",
        f"  thin rows: {_described(found.thin, workload)}",
        f"Assumed, not measured: a GPU draws {power.gpu_watts:,.0f} W and trains on "
        f"{power.gpu_examples_per_second:,.0f} examples/s at any length; a data host draws "
        f"{power.service_watts:,.0f} W and moves {power.service_mb:,.0f} MB/s.",
    ]
    return [totals, each, *summary]


def _described(length: int | None, workload: Workload) -> str:
    if length is None:
        return f"not reached up to {workload.longest:,} events, the longest history"
    return f"at {length:,} events"


def _pair(both: tuple[Bytes, Bytes], column: str) -> tuple[str, str, str]:
    fat, thin = (getattr(kind, column) for kind in both)
    return readable_bytes(fat), readable_bytes(thin), f"{1 - thin / fat:.1%}"


def plot(
    plt: Any,  # noqa: ANN401 - Matplotlib's pyplot
    workload: Workload,
    tenants: Sequence[Tenant],
    power: Power,
    path: Path,
) -> None:
    """Draws bytes and power against the sequence length."""
    longest = max(workload.longest, SHORTEST_PLOTTED * 2)
    lengths = np.unique(np.geomspace(SHORTEST_PLOTTED, longest, 60).astype(int)).tolist()
    both = [bytes_of(workload, length, length) for length in lengths]
    panels = {
        "stored, bytes": "stored",
        "written a day, bytes": "written_per_day",
        "read per example, bytes": "read_per_example",
        "sent per example, bytes": "sent_per_example",
    }
    figure, axes = plt.subplots(1, 5, figsize=(20, 4), layout="constrained")
    for axis, (title, column) in zip(axes, panels.items(), strict=False):
        for kind, (name, color) in enumerate((("fat rows", "C3"), ("thin rows", "C0"))):
            axis.plot(lengths, [getattr(pair[kind], column) for pair in both], color, label=name)
        axis.set(title=title)
    shares = [share_at(workload, power, length) for length in lengths]
    for kind, color in enumerate(("C3", "C0")):
        axes[-1].plot(lengths, [share[kind] for share in shares], color)
    axes[-1].axhline(SHARE_MAX, color="gray", linestyle="--")
    axes[-1].set(title="data services, share of GPU power")
    wall = find_wall(workload, power).fat
    for axis in axes:
        axis.set(xlabel="sequence length, events", xscale="log", yscale="log")
        axis.spines[["top", "right"]].set_visible(False)
        if wall is not None and wall >= SHORTEST_PLOTTED:
            axis.axvline(wall, color="C3", linestyle=":")
        for tenant in tenants:
            if SHORTEST_PLOTTED <= tenant.length <= longest:
                axis.axvline(tenant.length, color="lightgray", linewidth=0.8, zorder=0)
                axis.text(tenant.length, 0.01, tenant.name, transform=axis.get_xaxis_transform())
    axes[0].legend(frameon=False)
    if wall is not None:
        axes[-1].annotate(
            f"fat-row wall: {wall:,}", (wall, SHARE_MAX), (4, -12), textcoords="offset points"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
