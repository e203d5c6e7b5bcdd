"""`thinrow cluster`: which group of servers has which shards, and moves of shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from thinrow.cli.command import command
from thinrow.cli.values import parse_duration
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import EXIT_FAILED, err, out, progress_bar, readable_bytes

if TYPE_CHECKING:
    from thinrow.cluster.cluster_map import ClusterMap
    from thinrow.cluster.cluster_state import ClusterState
    from thinrow.cluster.desired import DesiredCluster
    from thinrow.remote.object_store import ObjectStore

__all__ = ["app"]

app = typer.Typer(help="Plan and make moves of shards between groups of servers; show replicas.")

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="The groups as they are to be, such as cluster.toml.")
]
Store = Annotated[str, typer.Option(metavar="URL", help="URL of the store.")]
Wait = Annotated[
    int,
    typer.Option(
        parser=parse_duration,
        metavar="DURATION",
        help="Longest time without progress, in which servers may start and copy shards.",
    ),
]
WAIT = "30m"


@command(app, "plan")
def plan_command(file: File, store: Store) -> None:
    """Show which shards and bytes would move; changes nothing."""
    from thinrow.cluster.desired import read_desired
    from thinrow.jobs.cluster import plan_cluster

    plans = plan_cluster(_objects(store), read_desired(file))
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
        f"{arriving:,} of {sum(plan.after for plan in plans):,} shards would arrive at a group, "
        f"{readable_bytes(sum(plan.arriving_bytes for plan in plans))} for each copy; then groups "
        f"have {readable_bytes(min(sizes))} to {readable_bytes(max(sizes))}.",
        soft_wrap=True,
    )


@command(app, "apply")
def apply_command(
    file: File,
    store: Store,
    access: Access,
    wait: Wait = WAIT,  # type: ignore[assignment] # the parser reads defaults, too
) -> None:
    """Move shards until the groups are as the file says; run it again if it was interrupted."""
    from thinrow.cluster.desired import read_desired

    _apply(_objects(store), read_desired(file), access, wait)


@command(app, "drain")
def drain_command(
    what: Annotated[
        str, typer.Argument(metavar="GROUP|HOST:PORT", help="The group, or one replica.")
    ],
    store: Store,
    access: Access,
    wait: Wait = WAIT,  # type: ignore[assignment] # the parser reads defaults, too
) -> None:
    """Move all shards off a group and remove it from the map, or remove a replica."""
    from thinrow.jobs.cluster import drained

    objects = _objects(store)
    _apply(objects, drained(objects, what), access, wait)
    out.print(
        f"{what} is drained, and may be stopped; remove it from cluster.toml as well, or the next "
        f"apply adds it again.",
        soft_wrap=True,
    )


@command(app, "status")
def status_command(
    store: Store,
    access: Access,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page for browsers, too.")
    ] = None,
) -> None:
    """Show every replica; the exit status is 1 if a shard has no ready replica."""
    from thinrow.jobs.cluster import cluster_state
    from thinrow.jobs.cluster_page import write_page
    from thinrow.remote.current import now_ts
    from thinrow.store.times import readable_time

    state = cluster_state(_objects(store), access)
    if html is not None:
        write_page(html, store, state, now_ts())
    out.print(_status_table(state))
    for name, target in state.replicas:
        problem = state.reports[target].problem
        if problem is not None:
            out.print(f"{target} of group {name} does not respond: {problem}", soft_wrap=True)
    watermark = "unknown" if state.watermark_ts is None else readable_time(state.watermark_ts)
    moving = "no shard moves" if state.map.is_settled else "shards move"
    out.print(
        f"Version {state.map.version} of the map, {state.map.shards:,} shards in "
        f"{len(state.map.groups):,} groups, {moving}; watermark of the cluster: {watermark}.",
        soft_wrap=True,
    )
    out.print(
        state.problem or f"All {len(state.replicas):,} replicas are ready.",
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


def _objects(store: str) -> ObjectStore:
    from thinrow.errors import UsageError
    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.place import is_url

    if not is_url(store):
        raise UsageError(f"A cluster has its store at a URL, and {store} is a folder.")
    return ObjectStore(store)


def _apply(objects: ObjectStore, desired: DesiredCluster, access: Access, wait_ms: int) -> None:
    from thinrow.jobs.cluster import apply_cluster

    def show(written: ClusterMap) -> None:
        groups = written.groups.values()
        err.print(
            f"Version {written.version} of the map: {sum(len(each.loading) for each in groups):,} "
            f"shards loading, {sum(len(each.leaving) for each in groups):,} leaving.",
            soft_wrap=True,
        )

    with progress_bar() as progress:
        found = apply_cluster(
            objects, desired, access, wait_s=wait_ms / 1000, progress=progress, written=show
        )
    sizes = [len(group.serving) for group in found.groups.values()]
    out.print(
        f"Version {found.version} of the map: {found.shards:,} shards in {len(sizes):,} groups, "
        f"{min(sizes):,} to {max(sizes):,} each.",
        soft_wrap=True,
    )
