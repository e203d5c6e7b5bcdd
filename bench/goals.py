"""Goals, and the results that meet or miss them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from world import AT_RANDOM, CLUSTERED, IN_TIME_ORDER, InProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compared import Compared
    from costs import Compaction, Stored, Wire
    from processes import Turn

FAT_READERS = ("fat rows, PyArrow", "fat rows, Polars")
FLIGHT = ("Flight, int64", "Flight, own types")
REDIS = ("Redis, LRANGE", "Redis, GETRANGE")
LANCE, DUCKDB = "Lance, take", "DuckDB, join"

Found = dict[tuple[str, str, str], "Compared"]
"""Comparisons by world, tenant and order."""


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    what: str
    wanted: float
    measured: float
    unit: str
    """"x" for a ratio, "%" for a share, anything else for a number."""
    at_least: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted

    def shown(self, value: float) -> str:
        """A value in its unit."""
        if self.unit == "%":
            return f"{value:.1%}"
        return f"{value:.2f}{self.unit}"

    @property
    def line(self) -> str:
        """A row of a Markdown table."""
        sign = "≥" if self.at_least else "≤"
        met = "met" if self.met else "**not met**"
        return (
            f"| {self.what} | {sign} {self.shown(self.wanted)} | {self.shown(self.measured)} "
            f"| {met} | {self.note} |"
        )


def goals(
    found: Found,
    stored: list[Stored],
    wire: Wire,
    lengths_ms: tuple[float, float],
    processes: dict[int, Turn],
    compaction: Compaction,
) -> Iterator[Goal]:
    """All of them."""
    for order, wanted in ((IN_TIME_ORDER, 4), (CLUSTERED, 5)):
        one, shared = found["mid", "B", order], found["union", "B", order]
        yield Goal(
            f"B {order} against the best reader of fat rows",
            wanted,
            one.ratio(*FAT_READERS),
            "x",
            note=(
                f"{one.fastest(*FAT_READERS)}; against the table that all tenants share "
                f"{shared.ratio(*FAT_READERS):.2f}x"
            ),
        )
    for order in (IN_TIME_ORDER, CLUSTERED):
        one = found["union", "A, 16K", order]
        yield Goal(
            f"A at 16K {order} against Arrow Flight sending the assembled batch",
            3,
            one.ratio(*FLIGHT),
            "x",
            note=one.fastest(*FLIGHT),
        )
    for names, title, wanted in (
        (REDIS, "Redis, pipelined", 3),
        ((LANCE,), "Lance `take`", 10),
        ((DUCKDB,), "a DuckDB join", 10),
    ):
        for order in (IN_TIME_ORDER, CLUSTERED):
            one = found["mid", "C", order]
            yield Goal(
                f"C {order} against {title}",
                wanted,
                one.ratio(*names),
                "x",
                note=one.fastest(*names) if len(names) > 1 else "",
            )
    for key, wanted in ((("mid", "C"), 1.2), (("union", "A, 16K"), 1)):
        for order in (IN_TIME_ORDER, CLUSTERED):
            one = found[*key, order]
            yield Goal(
                f"{key[1]} {order} from the store in the trainer's process, against a server",
                wanted,
                one.thin.round_s / one.figures[InProcess.name].round_s,
                "x",
            )
    one = found["union", "A, 16K", CLUSTERED]
    yield Goal(
        "Share of the memory-copy limit, A at 16K clustered by user",
        0.5,
        one.limits["memory copy"].best_s / one.thin.round_s,
        "%",
        note="copying with all cores",
    )
    for part, wanted in zip(stored, (0.03, 0.15), strict=True):
        yield Goal(
            f"Bytes on disk, store + thin rows, against fat rows {part.order}",
            wanted,
            part.share,
            "%",
            at_least=False,
            note=(
                f"store {part.store_bytes / 1e6:.1f}, thin rows {part.rows_bytes / 1e6:.1f}, "
                f"fat rows {part.fat_bytes / 1e6:.0f} MB"
            ),
        )
    yield Goal(
        "Bytes on the wire per example, 20 requests of a user in a call, against the fat example",
        0.05,
        wire.call_bytes / wire.own_bytes,
        "%",
        at_least=False,
        note=f"fat in its own types; against int64 {wire.call_bytes / wire.int64_bytes:.1%}",
    )
    clustered, random = found["mid", "B", CLUSTERED], found["mid", "B", AT_RANDOM]
    yield Goal(
        "Bytes read from the store, B clustered by user against random order",
        -0.85,
        clustered.read_bytes / clustered.examples / (random.read_bytes / random.examples) - 1,
        "%",
        at_least=False,
        note=(
            f"a lookup of 4,096 rows has {clustered.users_per_lookup:,.0f} users against "
            f"{random.users_per_lookup:,.0f}"
        ),
    )
    short_ms, long_ms = lengths_ms
    yield Goal(
        "Newest 256 events, a history of 100,000 against one of 1,000",
        1.1,
        long_ms / short_ms,
        "x",
        at_least=False,
        note=f"{long_ms:.2f} against {short_ms:.2f} ms",
    )
    one, two = processes[1], processes[2]
    yield Goal(
        "Two server processes against one, two cores, C",
        1.7,
        two.examples_per_s / one.examples_per_s,
        "x",
        note=(
            f"{two.examples_per_s:,.0f} against {one.examples_per_s:,.0f} examples/s; servers and "
            f"the caller share the cores, the caller takes {two.load_cores:.1f} of one"
        ),
    )
    for order in (IN_TIME_ORDER, CLUSTERED):
        long, short = (found["union", name, order] for name in ("A, 16K", "C"))
        yield Goal(
            f"Bytes read by C against A's, {order}, as multiples of what each requests",
            2,
            (short.read_bytes / short.own_bytes) / (long.read_bytes / long.own_bytes),
            "x",
            at_least=False,
            note="bytes requested: events of all examples in the traits' own types",
        )
    yield Goal(
        "Compaction, million events per second of processor, first build",
        1,
        compaction.events_per_core_s / 1e6,
        " M",
        note=f"{compaction.events / compaction.build_s / 1e6:.2f} M/s by the clock",
    )
    yield Goal(
        "Increment of 1 % against a full rebuild, beyond the raw copy",
        0.1,
        compaction.increment_share,
        "%",
        at_least=False,
        note=(
            f"increment {compaction.increment_s:.2f} s, copy {compaction.copy_s:.2f} s, "
            f"rebuild {compaction.rebuild_s:.2f} s"
        ),
    )
