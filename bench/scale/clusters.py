"""A cluster on this machine: what groups cost, lost and slow replicas, moves; and a simulation.

`make bench-cluster` writes docs/reports/cluster.md and its plot. All servers, the trainer and the
commands share this machine's cores, so that only processor times and pauses mean something here,
and no throughput.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from cluster_runs import (
    FAULT_BATCH,
    FAULT_GROUPS,
    FULL,
    GROUPS,
    KINDS,
    LOOKUP_EXAMPLES,
    PARTS,
    PROJECTION,
    QUICK,
    RANKS_READ,
    SHARDS,
    Gaps,
    Pass,
    built,
    costs,
    faults,
    request_lines,
)
from page import table
from simulation import Line, simulated

from server import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

SIMULATED_GROUPS = (1, 2, 4, 8, 16, 64, 256, 1000)
SLOW_SHARE, SLOW_TIMES = 0.01, 10.0
TEMPLATE = Path(__file__).with_name("cluster.md.in")


def costs_table(found: Sequence[Pass]) -> str:
    """Processor time and fan-out by number of groups."""
    rows = []
    for kind in KINDS:
        one = of(found, 1, kind)
        for groups in GROUPS:
            these = of(found, groups, kind)
            rows.append(
                [
                    kind,
                    str(groups),
                    f"{cost(these, 'server_s'):.1f}",
                    f"**{cost(these, 'server_s') / cost(one, 'server_s'):.2f}x**",
                    f"{cost(these, 'client_s'):.1f}",
                    f"{cost(these, 'client_s') / cost(one, 'client_s'):.2f}x",
                    f"{these[0].fan_out:.1f}",
                    "identical",
                ]
            )
    return table(
        "rows | groups: | server µs per example: | against 1: | trainer µs per example: "
        "| against 1: | groups per lookup: | batches",
        rows,
    )


def of(found: Sequence[Pass], groups: int, kind: str) -> list[Pass]:
    """Returns the passes of one cluster that read the rows in one way."""
    return [one for one in found if (one.groups, one.kind) == (groups, kind)]


def cost(passes: Sequence[Pass], name: str) -> float:
    """Returns the processor time of an example, µs: the median of some passes."""
    costs_s: list[float] = [getattr(one, name) / one.examples for one in passes]
    return 1e6 * median(costs_s)


def faults_table(found: Sequence[Gaps]) -> str:
    """Pauses between batches, and extra requests."""
    healthy = median(one.p99_s for one in found if one.name == "healthy")
    rows = []
    for name in dict.fromkeys(one.name for one in found):
        these = [one for one in found if one.name == name]
        p99_s, longest_s = median(one.p99_s for one in these), max(one.longest_s for one in these)
        rows.append(
            [
                name,
                str(len(these)),
                f"{1000 * p99_s:,.0f} ms",
                f"**{p99_s / healthy:.2f}x**",
                f"**{longest_s:.2f} s**",
                f"{max(one.extra_requests for one in these):.1%}",
                "identical",
            ]
        )
    return table(
        "what happens | streams: | p99 between batches: | against healthy: | longest: "
        "| extra requests: | batches",
        rows,
    )


def simulation_table(latency: Line, server: Line) -> tuple[str, dict[str, list[float]]]:
    """Simulated lookups of clusters of every size; and what the plot shows of them."""
    rows: list[list[str]] = []
    names = ("parts", "parts, hedged", "no parts", "no parts, hedged")
    shown: dict[str, list[float]] = {name: [] for name in names}
    for groups in SIMULATED_GROUPS:
        for parts in (1, None):
            one = simulated(
                latency,
                server,
                groups,
                LOOKUP_EXAMPLES,
                parts=parts,
                slow_share=SLOW_SHARE,
                slow_times=SLOW_TIMES,
            )
            name = "no parts" if parts is None else "parts"
            shown[name].append(1000 * one.p99_s)
            shown[f"{name}, hedged"].append(1000 * one.p99_hedged_s)
            rows.append(
                [
                    f"{groups:,}",
                    "no" if parts is None else "yes",
                    f"{one.requests:,.1f}",
                    f"{1e6 * one.server_s:.1f}",
                    f"{1000 * one.median_s:,.1f}",
                    f"{1000 * one.p99_s:,.1f}",
                    f"{1000 * one.p99_hedged_s:,.1f}",
                ]
            )
    headings = (
        "groups: | rows in parts | requests per lookup: | server µs per example: | p50 ms: "
        "| p99 ms: | p99 hedged ms:"
    )
    return table(headings, rows), shown


def plot(found: Sequence[Pass], shown: dict[str, list[float]], path: Path) -> None:
    """Draws what was measured on the left, and what was simulated on the right."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for kind in KINDS:
        one = cost(of(found, 1, kind), "server_s")
        ratios = [cost(of(found, groups, kind), "server_s") / one for groups in GROUPS]
        left.plot(GROUPS, ratios, marker="o", label=f"rows {kind}")
    left.set_xscale("log", base=2)
    left.set_xticks(GROUPS, [str(groups) for groups in GROUPS])
    left.set_title("measured: server processor time of an example, against one group")
    left.set_xlabel("groups")
    left.legend(frameon=False)
    for name, values in shown.items():
        style = "--" if name.endswith("hedged") else "-"
        right.plot(SIMULATED_GROUPS, values, style, marker=".", label=name)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_title(f"simulated: p99 of a lookup, ms; one replica in {1 / SLOW_SHARE:.0f} is slow")
    right.set_xlabel("groups")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny run, to try it out")
    parser.add_argument("--out", type=Path, help="folder of the page")
    given = parser.parse_args()
    sizes = QUICK if given.quick else FULL
    out = given.out or (None if given.quick else Path("docs/reports"))
    load = os.getloadavg()[1]
    with tempfile.TemporaryDirectory(prefix="thinrow-bench-") as folder:
        scratch = Path(folder)
        url, rows, parts, pointers = built(scratch, sizes)
        passes, idle = costs(scratch, url, rows, parts, sizes)
        gaps = faults(scratch, url, pointers, sizes)
        latency, server = request_lines(scratch, url, pointers, sizes)
    simulation, shown = simulation_table(latency, server)
    page = TEMPLATE.read_text(encoding="utf-8").format(
        machine=machine(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        load=f"{load:.1f}",
        sizes=sizes,
        shards=SHARDS,
        parts=PARTS,
        ranks_read=RANKS_READ,
        lookup=f"{LOOKUP_EXAMPLES:,}",
        length=f"{PROJECTION.sequence_length:,}",
        fault_groups=FAULT_GROUPS,
        fault_batch=FAULT_BATCH,
        costs=costs_table(passes),
        idle_ms=f"{1000 * idle:.1f}",
        faults=faults_table(gaps),
        server_request_us=f"{1e6 * server.request_s:.0f}",
        request_us=f"{1e6 * latency.request_s:.0f}",
        example_us=f"{1e6 * latency.example_s:.1f}",
        slow_share=f"{SLOW_SHARE:.0%}",
        slow_times=f"{SLOW_TIMES:.0f}",
        simulation=simulation,
    )
    if out is not None:
        (out / "cluster.md").write_text(page, encoding="utf-8")
        plot(passes, shown, out / "cluster.png")
    print(page)


if __name__ == "__main__":
    main()
