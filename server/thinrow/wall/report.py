"""Tables of `thinrow wall`: its figures with their sources, and what follows from them."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from rich.table import Table
from thinrow.jobs.console import readable_bytes
from thinrow.wall.config import Power
from thinrow.wall.model import SHARE_MAX, costs_of, energy_at, find_walls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from thinrow.wall.config import GivenFigures, Joules, Tenant
    from thinrow.wall.figures import Figures
    from thinrow.wall.model import Workload

__all__ = ["to_tables"]

BENCH = "measured, bench-wall"

SIZES = {
    "users": "users",
    "requests_per_day": "requests of a user in a day",
    "events_per_day": "events of a user in a day",
    "stored_events": "events of a user in the store",
    "rows_kept_days": "days that examples are kept",
    "sharing": "examples of a lookup that share one history",
    "epochs": "times that an example is trained on",
}
GIVEN_AS = {
    "stored_events": ("retention_days", "events_per_day"),
}
"""Options that change a size of another name."""
HOSTS = {
    "gpu_watts": "W of a GPU",
    "gpu_examples_per_second": "examples/s of a GPU, at any length",
    "service_watts": "W of a data host",
    "service_cores": "cores of a data host",
    "service_network_mb": "MB/s of a data host's network",
    "service_disk_mb": "MB/s of a data host's disks",
}


def to_tables(
    workloads: Sequence[Workload],
    tenants: Sequence[Tenant],
    power: Power,
    figures: Figures,
    given: GivenFigures,
    *,
    is_sample: bool,
) -> list[Table | str]:
    """The figures, for the screen; is_sample: bytes come from rows and their server."""
    union = max(tenant.length for tenant in tenants)
    names = {name for name, value in asdict(given).items() if value is not None}
    tables: list[Table | str] = [
        _sizes_table(workloads, power, names, is_sample=is_sample),
        _unit_table(workloads, union, names, is_sample=is_sample),
        f"Measured by `make bench-wall` on {figures.machine}; {figures.date}.",
    ]
    for workload in workloads:
        tables.append(_costs_table(workload, tenants, union))
        tables.append(_energy_table(workload, power, union))
    tables.append(f"\nThe wall, where data services draw more than {SHARE_MAX} of the GPUs' power:")
    tables += [line for workload in workloads for line in _wall_lines(workload, power)]
    return tables


def _sizes_table(
    workloads: Sequence[Workload], power: Power, given: set[str], *, is_sample: bool
) -> Table:
    """Sizes of the platform, which are assumed unless they are given or a sample has them."""
    table = Table("", *(one.order for one in workloads), "source", title="\nPlatform")
    for name, title in SIZES.items():
        source = "measured" if is_sample and name != "epochs" else "assumed"
        if name == "sharing" and not is_sample:
            source = BENCH
        if given & {name, *GIVEN_AS.get(name, ())}:
            source = "given"
        values = [f"{getattr(one, name):,.4g}" for one in workloads]
        table.add_row(title, *values, source)
    defaults = Power()
    for field in fields(power):
        value = getattr(power, field.name)
        source = "assumed" if value == getattr(defaults, field.name) else "given"
        table.add_row(HOSTS[field.name], *[f"{value:,.4g}"] * len(workloads), source)
    return table


def _unit_table(
    workloads: Sequence[Workload], length: int, given: set[str], *, is_sample: bool
) -> Table:
    """Costs of an event of every example, at one length."""
    table = Table(
        f"of an event, at {length:,}",
        *(one.order for one in workloads),
        "source",
        title="\nUnit costs",
    )
    measured = "measured, sample" if is_sample else BENCH

    def add(title: str, option: str, source: str, value_of: Callable[[Workload], float]) -> None:
        values = [f"{value_of(one):,.3g}" for one in workloads]
        table.add_row(title, *values, "given" if option in given else source)

    def of_event(name: str, factor: float = 1) -> Callable[[Workload], float]:
        return lambda one: factor * getattr(one, name).at(length) / length

    add("bytes in fat rows", "fat_row_event", measured, of_event("fat_row"))
    add("bytes of the store", "store_event", measured, of_event("stored"))
    add("bytes of a layer", "store_event", BENCH, lambda one: one.layer_event)
    add("bytes read from the store", "store_event", measured, of_event("store_read"))
    add("bytes sent", "answer_event", measured, of_event("answer"))
    million = 1e6
    add("CPU s, a million in fat rows, read", "", BENCH, of_event("fat_read_cpu_s", million))
    add("CPU s, a million in fat rows, written", "", BENCH, of_event("fat_write_cpu_s", million))
    add("CPU s, a million in thin rows, read", "", BENCH, of_event("thin_read_cpu_s", million))
    table.add_section()
    add("bytes of a thin row", "thin_row", measured, lambda one: one.thin_row)
    add(
        "compaction: bytes read per byte written",
        "",
        BENCH,
        lambda one: one.compaction_read_per_written,
    )
    add("compaction: CPU s per MB written", "", BENCH, lambda one: one.compaction_cpu_s_per_mb)
    return table


def _costs_table(workload: Workload, tenants: Sequence[Tenant], union: int) -> Table:
    """Bytes and CPU seconds of examples."""
    table = Table(
        *("", "length", "events", "what", "fat rows", "thin rows", "saved"),
        title=f"\nCosts, {workload.order}",
    )
    both = costs_of(workload, union, union)
    for title, name in (("stored", "stored"), ("written a day", "written_per_day")):
        table.add_row("all examples", "", "", title, *_pair(*(getattr(one, name) for one in both)))
    for tenant in tenants:
        fat, thin = (one.each_time for one in costs_of(workload, tenant.length, union))
        start = (tenant.name, f"{tenant.length:,}", f"{workload.events(tenant.length):,.0f}")
        table.add_row(*start, "read", *_pair(fat.disk_bytes, thin.disk_bytes))
        table.add_row("", "", "", "sent", *_pair(fat.network_bytes, thin.network_bytes))
        cpu = (f"{1e3 * one.cpu_s:,.3g} ms" for one in (fat, thin))
        table.add_row("", "", "", "CPU", *cpu, f"{1 - thin.cpu_s / fat.cpu_s:.1%}")
    return table


def _energy_table(workload: Workload, power: Power, length: int) -> Table:
    """Energy of data hosts for one example, of one tenant."""
    table = Table(
        "J of an example",
        "fat rows",
        "thin rows",
        title=f"\nEnergy, {workload.order}, at {length:,}",
    )
    fat, thin = energy_at(workload, power, length)
    for name in ("disk", "network", "cpu", "total"):
        table.add_row(name, *(f"{getattr(one, name):.3g}" for one in (fat, thin)))
    table.add_row("share of the GPUs'", *(f"{power.share(one.total):.3g}" for one in (fat, thin)))
    return table


def _wall_lines(workload: Workload, power: Power) -> list[str]:
    walls = find_walls(workload, power)
    lines = []
    for kind, (name, wall) in enumerate((("fat", walls.fat), ("thin", walls.thin))):
        length = wall or workload.longest
        bound, share = _largest(energy_at(workload, power, length)[kind])
        found = (
            f"at {wall:,} events"
            if wall
            else f"not reached up to {length:,} events, the longest history"
        )
        lines.append(f"  {workload.order}, {name} rows: {found}; {share:.0%} of it is for {bound}")
    return lines


def _largest(joules: Joules) -> tuple[str, float]:
    """The part of hosts that takes most energy, and its share."""
    parts = asdict(joules)
    name = max(parts, key=lambda part: parts[part])
    return name, parts[name] / joules.total


def _pair(fat: float, thin: float) -> tuple[str, str, str]:
    return readable_bytes(round(fat)), readable_bytes(round(thin)), f"{1 - thin / fat:.1%}"
