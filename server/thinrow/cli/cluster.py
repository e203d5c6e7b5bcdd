"""`thinrow cluster`: which group of servers has which shards, and moves of shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from thinrow.cli.command import command
from thinrow.jobs.cluster_config import (
    ApplyConfig,
    DrainConfig,
    PlanConfig,
    RestoreConfig,
    StatusConfig,
    store_objects,
)
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import EXIT_FAILED, EXIT_STOPPED, err, out, progress_bar, readable_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thinrow.cluster.cluster_map import ClusterMap
    from thinrow.cluster.cluster_state import ClusterState
    from thinrow.cluster.desired import DesiredCluster
    from thinrow.remote.object_store import ObjectStore

__all__ = ["app"]

app = typer.Typer(help="Plan and make moves of shards between groups of servers; show replicas.")

WAITS_SHOWN_MAX = 3


@command(app, "plan")
def plan_command(config: PlanConfig) -> None:
    """Show which shards and bytes would move; changes nothing."""
    from thinrow.cluster.cluster_state import counted
    from thinrow.cluster.desired import read_desired
    from thinrow.jobs.cluster import plan_cluster

    plans = plan_cluster(store_objects(config.store), read_desired(Path(config.file)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("group", "shards", "arriving", "leaving", "to copy", "shards then", "bytes then"):
        table.add_column(name, justify="left" if name == "group" else "right", overflow="fold")
    for plan in plans:
        table.add_row(
            plan.name,
            f"{plan.before:,}",
            f"{plan.arriving:,}",
            f"{plan.leaving:,}",
            readable_bytes(plan.arriving_bytes),
            f"{plan.after:,}",
            readable_bytes(plan.after_bytes),
        )
    out.print(table)
    sizes = [plan.after_bytes for plan in plans if plan.after]
    arriving = sum(plan.arriving for plan in plans)
    out.print(
        f"{arriving:,} of {counted(sum(plan.after for plan in plans), 'shard')} would arrive at a "
        f"group, "
        f"{readable_bytes(sum(plan.arriving_bytes for plan in plans))} for each copy; then groups "
        f"have {readable_bytes(min(sizes))} to {readable_bytes(max(sizes))}.",
        soft_wrap=True,
    )


@command(app, "apply")
def apply_command(config: ApplyConfig, access: Access) -> None:
    """Move shards until the groups are as the file says; run it again if it was interrupted."""
    from thinrow.cluster.desired import read_desired

    desired = read_desired(Path(config.file))
    _apply(store_objects(config.store), desired, access, config.wait_ms)


@command(app, "drain")
def drain_command(config: DrainConfig, access: Access) -> None:
    """Move all shards off a group and remove it from the map, or remove a replica."""
    from thinrow.jobs.cluster import drained

    objects = store_objects(config.store)
    _apply(objects, drained(objects, config.what), access, config.wait_ms)
    out.print(
        f"{config.what} is drained, and may be stopped; remove it from cluster.toml as well, or "
        f"the next apply adds it again.",
        soft_wrap=True,
    )


@command(app, "restore")
def restore_command(config: RestoreConfig, access: Access) -> None:
    """Write the object cluster/MAP again, if it is lost, damaged or set back."""
    from thinrow.jobs.cluster import restore_cluster

    restored = restore_cluster(store_objects(config.store), access)
    out.print(f"cluster/MAP names version {restored.version} of the map again.", soft_wrap=True)


@command(app, "status")
def status_command(config: StatusConfig, access: Access) -> None:
    """Show every replica; the exit status is 1 if a shard has no ready replica."""
    from thinrow.cluster.cluster_state import counted
    from thinrow.jobs.cluster import cluster_state
    from thinrow.jobs.cluster_page import write_page
    from thinrow.remote.current import now_ts
    from thinrow.store.times import readable_time

    state = cluster_state(store_objects(config.store), access)
    if config.html is not None:
        write_page(config.html, str(config.store), state, now_ts())
    out.print(_status_table(state))
    for name, target in state.replicas:
        problem = state.reports[target].problem
        if problem is not None:
            out.print(f"{target} of group {name} does not respond: {problem}.", soft_wrap=True)
    watermark = "unknown" if state.watermark_ts is None else readable_time(state.watermark_ts)
    moving = "no shard moves" if state.map.is_settled else "shards move"
    out.print(
        f"Version {state.map.version} of the map, {counted(state.map.shards, 'shard')} in "
        f"{counted(len(state.map.groups), 'group')}, {moving}; watermark of the cluster: "
        f"{watermark}.",
        soft_wrap=True,
    )
    out.print(
        state.problem or "Nothing is wrong: all replicas are ready.",
        style="bold red" if state.unserved else None,
        soft_wrap=True,
    )
    if state.unserved:
        raise typer.Exit(EXIT_FAILED)


def _status_table(state: ClusterState) -> Table:
    """A line for each replica, in 80 columns where addresses have up to 30 characters."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("group", "replica", "state"):
        table.add_column(name, overflow="fold")
    for name in ("gen.", "map", "open", "moving", "size"):
        table.add_column(name, justify="right")
    for name, target in state.replicas:
        group, report = state.map.groups[name], state.reports[target]
        opened, wanted = state.open_of(name, target)
        lag = state.lag(target)
        loading, leaving = len(group.loading), len(group.leaving)
        # A replica that does not respond reports neither generation nor shards.
        known = report.problem is None
        table.add_row(
            name,
            target,
            state.condition(name, target) + (f", {lag:,} behind" if lag else ""),
            str(report.generation) if known else "",
            str(report.map_version) if known else "",
            f"{opened:,}/{wanted:,}" if known else f"?/{wanted:,}",
            f"+{loading:,} -{leaving:,}" if loading or leaving else "",
            readable_bytes(state.bytes_of(group.opened)),
        )
    return table


def _apply(objects: ObjectStore, desired: DesiredCluster, access: Access, wait_ms: int) -> None:
    """Moves shards, shows each map that has moves, and why there is no progress.

    Raises:
        Exit: Ctrl-C was pressed.
    """
    from thinrow.cluster.cluster_state import counted
    from thinrow.jobs.cluster import apply_cluster

    serving = "The map that is there serves as it is"

    def show(written: ClusterMap) -> None:
        nonlocal serving
        serving = f"Version {written.version} of the map serves as it is"
        if written.is_settled:
            return
        groups = written.groups.values()
        loading = sum(len(each.loading) for each in groups)
        leaving = sum(len(each.leaving) for each in groups)
        err.print(
            f"Version {written.version} of the map: {counted(loading, 'shard')} loading, "
            f"{leaving:,} leaving.",
            soft_wrap=True,
        )

    def show_waits(reasons: Sequence[str]) -> None:
        more = len(reasons) - WAITS_SHOWN_MAX
        shown = [*reasons[:WAITS_SHOWN_MAX], *([f"({more:,} more.)"] if more > 0 else [])]
        err.print(f"Waiting: {' '.join(shown)}", soft_wrap=True)

    try:
        with progress_bar() as progress:
            found = apply_cluster(
                objects,
                desired,
                access,
                wait_s=wait_ms / 1000,
                progress=progress,
                written=show,
                waiting=show_waits,
            )
    except KeyboardInterrupt:
        err.print(f"Stopped. {serving}; run the command again to go on.", soft_wrap=True)
        raise typer.Exit(EXIT_STOPPED) from None
    sizes = [len(group.serving) for group in found.groups.values()]
    least, most = min(sizes), max(sizes)
    out.print(
        f"Version {found.version} of the map: {counted(found.shards, 'shard')} in "
        f"{counted(len(sizes), 'group')}, {f'{least:,} to ' if least < most else ''}{most:,} each.",
        soft_wrap=True,
    )
