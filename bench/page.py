"""The page docs/reports/benchmarks-peers.md and its plots."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from goals import DUCKDB
from sides import BATCHES_AHEAD
from world import AT_RANDOM, CLUSTERED, IN_TIME_ORDER

from server import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compared import Compared
    from goals import Found, Goal
    from tenants import Sizes

TENANTS = ("A, 16K", "A, 64K", "B", "C")
PAPER: dict[str, tuple[str, ...]] = {
    "primary bytes written": ("-46.2%", "-46.2%", "-46.2%", "-46.2%"),
    "primary bytes read": ("-70.3%", "-70.3%", "-50.9%", "-47.7%"),
    "lookup added, streaming": ("+62.7%", "+62.7%", "+16.2%", "+8.7%"),
    "lookup added, batch": ("+24.6%", "+24.6%", "+6.5%", "+3.4%"),
    "latency per batch": ("+9.7%", "+9.7%", "-26.4%", "-36.2%"),
}
COLOURS = {"thin": "#1b7f79", "fat": "#c46a3b"}


def table(headings: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the headings of numbers end in a colon."""
    names = [name.strip() for name in headings.split("|")]
    rules = ["---:" if name.endswith(":") else "---" for name in names]
    lines = [[name.removesuffix(":") for name in names], rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def change(new: float, old: float) -> str:
    """Format a relative difference."""
    return f"{new / old - 1:+.1%}"


def paper_table(found: Found) -> str:
    """The paper's columns, ours beside them."""

    def line(title: str, ours: Sequence[str]) -> list[str]:
        pairs = zip(PAPER[title], ours, strict=True)
        return [title, *(cell for pair in pairs for cell in pair)]

    in_time = [found["union", name, IN_TIME_ORDER] for name in TENANTS]
    clustered = [found["union", name, CLUSTERED] for name in TENANTS]
    rows = [
        line("primary bytes written", [change(c.rows_bytes, c.fat_bytes) for c in in_time]),
        line("primary bytes read", [change(c.rows_read_bytes, c.fat_read_bytes) for c in in_time]),
        line(
            "lookup added, streaming", [f"+{c.sent_bytes / c.fat_read_bytes:.1%}" for c in in_time]
        ),
        line("lookup added, batch", [f"+{c.sent_bytes / c.fat_read_bytes:.1%}" for c in clustered]),
        line("latency per batch", [change(c.thin.batch_ms(50), best_ms(c)) for c in in_time]),
    ]
    headings = "against fat rows | " + " | ".join(
        f"{name.replace(',', '')}: paper: | ours:" for name in TENANTS
    )
    return table(headings, rows)


def best_ms(one: Compared) -> float:
    """Median milliseconds of a batch from the fastest reader of fat rows."""
    readers = [name for name in one.figures if name.startswith("fat rows")]
    return one.figures[one.fastest(*readers)].batch_ms(50)


def tenants_table(found: Found) -> str:
    """Bytes of every tenant in absolute numbers."""
    headings = (
        "data | tenant | order | examples: | events each: | users in a lookup: | fat file MB: "
        "| fat read MB: | thin rows MB: | read MB: | from the store MB: | over the wire MB: "
        "| tensors MB:"
    )
    rows = [
        [
            one.world,
            one.tenant.name,
            one.order,
            f"{one.examples:,}",
            f"{one.events / one.examples:,.0f}",
            f"{one.users_per_lookup:,.0f}",
            *(
                f"{size / 1e6:,.1f}" if size else ""
                for size in (
                    one.fat_bytes,
                    one.fat_read_bytes,
                    one.rows_bytes,
                    one.rows_read_bytes,
                    one.read_bytes,
                    one.sent_bytes,
                    one.tensor_bytes,
                )
            ),
        ]
        for one in found.values()
    ]
    return table(headings, rows)


def peers_table(found: Found) -> str:
    """Every side of every comparison."""
    rows = []
    for one in found.values():
        for name, figures in one.figures.items():
            whole = name == DUCKDB
            rows.append(
                [
                    one.world,
                    one.tenant.name,
                    one.order,
                    f"**{name}**" if figures is one.thin else name,
                    f"{figures.events_per_s / 1e6:,.1f} M",
                    f"{figures.examples / figures.round_s:,.0f}",
                    "" if whole else f"{figures.batch_ms(50):,.1f}",
                    "" if whole else f"{figures.batch_ms(99):,.1f}",
                    f"{figures.cpu_s_per_million:.3f}",
                    "" if figures is one.thin else f"**{one.ratio(name):.2f}x**",
                ]
            )
    headings = (
        "data | tenant | order | side | events/s: | examples/s: | batch, p50 ms: | p99 ms: "
        "| CPU s per M events: | thin rows are:"
    )
    return table(headings, rows)


def limits_table(found: Found) -> str:
    """The limits, and what share of them was reached."""
    rows = []
    for one in found.values():
        copy_s, wire_s, gets_s = (limit.best_s for limit in one.limits.values())
        server_s = sum(one.stage_s.get(stage, 0) for stage in ("plan", "read"))
        rows.append(
            [
                one.world,
                one.tenant.name,
                one.order,
                f"{1000 * one.thin.round_s:,.0f}",
                f"{1000 * copy_s:,.0f}",
                f"{copy_s / one.thin.round_s:.0%}",
                f"{1000 * wire_s:,.0f}",
                f"{wire_s / one.thin.round_s:.0%}",
                f"{1000 * gets_s:,.0f}",
                f"{1000 * server_s:,.0f}",
                f"{gets_s / server_s:.0%}",
            ]
        )
    headings = (
        "data | tenant | order | thin rows, ms: | memory copy, ms: | share: | bare gRPC, ms: "
        "| share: | bare gets, ms: | plan + read, ms: | share:"
    )
    return table(headings, rows)


WAITS = ("rows", "lookup", "wire", "widen", "copy")
STAGES = ("wait", "plan", "read", "assemble")


def profile_table(found: Found) -> str:
    """Waiting and working time, as shares of a round."""
    rows = []
    for one in found.values():
        round_s = one.thin.round_s
        cpu_s = sum(one.thin.cpu_s) / len(one.thin.cpu_s)
        rows.append(
            [
                one.world,
                one.tenant.name,
                one.order,
                *(f"{one.waited_s[stage] / round_s:.0%}" for stage in WAITS),
                *(f"{one.stage_s.get(stage, 0) / round_s:.0%}" for stage in STAGES),
                f"{cpu_s / round_s:.2f}",
                f"{one.others:.2f}",
            ]
        )
    headings = "data | tenant | order | " + " | ".join(
        [*(f"waits: {stage}:" for stage in WAITS), *(f"server: {stage}:" for stage in STAGES)]
    )
    return table(f"{headings} | cores busy: | cores of others:", rows)


def functions_table(found: Found) -> str:
    """The server's time by stage."""
    rows = [
        [f"{one.tenant.name} ({one.world}, {one.order})", f"`{name}`", f"{share:.0%}"]
        for one in found.values()
        for name, share in one.profile
    ]
    return table("tenant | function | own time:", rows)


def page(
    sizes: Sizes, found: Found, lines: Sequence[Goal], *, load: float, took_s: float, packages: str
) -> str:
    """All of it."""
    template = (Path(__file__).parent / "peers.md.in").read_text()
    heading = "goal | wanted: | measured: | | of it"
    return template.format(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=machine(),
        packages=packages,
        sizes=sizes,
        load=f"{load:.1f}",
        minutes=f"{took_s / 60:.0f}",
        ahead=BATCHES_AHEAD,
        met=sum(goal.met for goal in lines),
        goals_count=len(lines),
        goals=table(heading, []) + "\n" + "\n".join(goal.line for goal in lines),
        paper=paper_table(found),
        tenants=tenants_table(found),
        peers=peers_table(found),
        limits=limits_table(found),
        profile=profile_table(found),
        functions=functions_table(found),
    )


def plots(found: Found, lines: Sequence[Goal], folder: Path) -> None:
    """Speed of thin rows as multiples of other sides, and their time by stage."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ratios = [goal for goal in lines if goal.unit == "x" and goal.at_least]
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    places = np.arange(len(ratios))[::-1]
    colours = [COLOURS["thin"] if goal.met else COLOURS["fat"] for goal in ratios]
    bars = axes.barh(places, [goal.measured for goal in ratios], color=colours)
    axes.bar_label(bars, fmt="%.1fx", padding=3)
    for place, goal in zip(places, ratios, strict=True):
        axes.plot([goal.wanted] * 2, [place - 0.45, place + 0.45], color="black", linewidth=2)
    axes.set_yticks(places, [goal.what for goal in ratios], fontsize=8)
    axes.set_xscale("log")
    axes.set_title("events per second, thin rows against others; the mark is the goal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "benchmarks-peers.png", dpi=110)

    shown = [one for one in found.values() if one.order != AT_RANDOM]
    figure, (waits, server) = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    places = np.arange(len(shown))[::-1]
    for axes, stages, title, seconds in (
        (waits, WAITS, "what the consumer waits for", [one.waited_s for one in shown]),
        (server, STAGES, "what the server does meanwhile", [one.stage_s for one in shown]),
    ):
        left = np.zeros(len(shown))
        for stage in stages:
            share = np.array(
                [
                    part.get(stage, 0) / one.thin.round_s
                    for part, one in zip(seconds, shown, strict=True)
                ]
            )
            axes.barh(places, share, left=left, label=stage)
            left += share
        axes.set_title(f"{title}, shares of a round")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    names = [f"{one.world} {one.tenant.name} {one.order}" for one in shown]
    waits.set_yticks(places, names, fontsize=8)
    figure.savefig(folder / "benchmarks-peers-profile.png", dpi=110)
