"""The state of a cluster as one page for browsers: map, replicas and moves."""

from __future__ import annotations

import os
from itertools import groupby
from typing import TYPE_CHECKING

from thinrow.access.page_html import (
    STYLE,
    Html,
    bar,
    duration,
    html,
    integer,
    mark,
    table,
)
from thinrow.cluster.cluster_state import listed
from thinrow.cluster.placement import dealing_order
from thinrow.errors import UsageError
from thinrow.jobs.console import readable_bytes
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.cluster.cluster_state import ClusterState

__all__ = ["cluster_page", "write_page"]

NOTHING = "—"
MAP_STYLE = """
svg.map { display: block; width: 20rem; height: 1.1rem; background: var(--tile) }
.serving { fill: var(--good) } .unready { fill: var(--bad) }
.loading { fill: var(--bar) } .leaving { fill: var(--good); opacity: .4 }
.key svg { display: inline-block; width: 1.1rem; height: .7rem; margin: 0 .25rem 0 .9rem }
.headline { margin: .75rem 0 }
dl { grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)) }
td:nth-child(2), th:nth-child(2), td:nth-child(3), th:nth-child(3) { text-align: left }
td:nth-child(3) { white-space: normal; min-width: 8rem }
"""
"""Additions to the common style."""
SHAPES = {"serving": (0, 10), "unready": (0, 10), "loading": (5, 5), "leaving": (0, 10)}
"""Upper edge and height of each kind of shard, of 10."""


def write_page(path: Path, store: str, state: ClusterState, at_ts: int) -> None:
    """Writes the page, or leaves the file as it was.

    Raises:
        UsageError: The file cannot be written.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(cluster_page(store, state, at_ts), encoding="utf-8")
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error


def cluster_page(store: str, state: ClusterState, at_ts: int) -> str:
    """Returns the page, which needs nothing from elsewhere.

    Args:
        store: URL of the store.
        state: The map and the reports.
        at_ts: Time of the reports, ms.
    """
    problem = state.problem
    headline = mark(problem or "Nothing is wrong: all replicas are ready.", good=problem is None)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport "
        'content="width=device-width, initial-scale=1"><title>ThinRow cluster</title>'
        f"<style>{STYLE}{MAP_STYLE}</style></head><body><header><h1>ThinRow cluster</h1>"
        f"<span class=faint>{html(store)}</span></header><p class=headline>{headline}</p>"
        f"{_tiles(state, at_ts)}{_moves(state, at_ts)}{_groups(state)}{_replicas(state, at_ts)}"
        f"<p class=faint>{html(readable_time(at_ts))} · written by thinrow cluster status</p>"
        "</body></html>"
    )


def _tiles(state: ClusterState, at_ts: int) -> str:
    """The few numbers that come first."""
    ready = [target for name, target in state.replicas if state.is_ready(name, target)]
    sizes = [state.bytes_of(group.final) for group in state.map.groups.values() if group.final]
    watermark_ts = state.watermark_ts
    slowest = max(ready, key=lambda target: state.reports[target].response_ms, default=None)
    shown = [
        (
            "shards served",
            f"{state.map.shards - len(state.unserved):,}",
            f"of {state.map.shards:,}",
        ),
        ("replicas ready", integer(len(ready)), f"of {len(state.replicas):,}"),
        (
            "watermark lag",
            NOTHING if watermark_ts is None else duration((at_ts - watermark_ts) / 1000),
            "no ready replica" if watermark_ts is None else readable_time(watermark_ts),
        ),
        ("generation", integer(state.generation), "in the object store"),
        ("map", integer(state.map.version), f"changed {_ago(state, at_ts)} ago"),
        (
            "largest group",
            f"{max(sizes) * len(sizes) / (sum(sizes) or 1):.2f}x",
            f"of the mean, {readable_bytes(round(sum(sizes) / len(sizes)))}",
        ),
    ]
    if slowest is not None:
        seconds = state.reports[slowest].response_ms / 1000
        shown.append(("slowest response", duration(seconds), slowest))
    cells = "".join(
        f"<div><dt>{html(title)}</dt><dd>{html(value)}<small>{html(note)}</small></dd></div>"
        for title, value, note in shown
    )
    return f"<dl>{cells}</dl>"


def _moves(state: ClusterState, at_ts: int) -> str:
    """Table of the shards that move, by group."""
    if state.map.is_settled:
        return "<h2>Moves</h2><p class=faint>No shard moves.</p>"
    rows = []
    for name, group in state.map.groups.items():
        if not group.loading and not group.leaving:
            continue
        opened = [
            len(state.reports[target].open_shards.intersection(group.loading))
            for target in group.targets
            if state.reports[target].problem is None
        ]
        share = min(opened, default=0) / len(group.loading) if group.loading else 1.0
        rows.append(
            (
                name,
                f"{len(group.loading):,}: {listed(map(str, group.loading))}"
                if group.loading
                else NOTHING,
                f"{len(group.leaving):,}: {listed(map(str, group.leaving))}"
                if group.leaving
                else NOTHING,
                readable_bytes(state.bytes_of(group.loading)),
                bar(share) if group.loading else "",
            )
        )
    title = f"Moves, since the map of {_ago(state, at_ts)} ago"
    return table(title, ("group", "loading", "leaving", "to copy", "opened by every replica"), rows)


def _groups(state: ClusterState) -> str:
    """The map: a line for each group, with those first that have no ready replica."""
    order = dealing_order(state.map.shards)
    final_bytes = {name: state.bytes_of(each.final) for name, each in state.map.groups.items()}
    most_bytes = max(final_bytes.values()) or 1
    rows = []
    for name, group in state.map.groups.items():
        ready = [target for target in group.targets if state.is_ready(name, target)]
        slowest_ms = max((state.reports[each].response_ms for each in ready), default=None)
        good = len(ready) == len(group.targets)
        rows.append(
            (
                len(ready) / len(group.targets),
                (
                    name,
                    _drawn(state, name, order),
                    mark(f"{len(ready)} of {len(group.targets)}", good=good),
                    integer(len(group.serving)),
                    readable_bytes(final_bytes[name]),
                    bar(final_bytes[name] / most_bytes),
                    NOTHING if slowest_ms is None else duration(slowest_ms / 1000),
                ),
            )
        )
    rows.sort(key=lambda row: row[0] > 0)
    headings = ("group", "shards", "ready", "serving", "size", "", "slowest response")
    key = "".join(
        f"<svg viewBox='0 0 10 10' preserveAspectRatio=none>{_shape(kind, 0, 10)}</svg>{text}"
        for kind, text in (
            ("serving", "serving"),
            ("unready", "no ready replica"),
            ("loading", "loading"),
            ("leaving", "leaving"),
        )
    )
    note = "<p class='faint key'>Shards stand in the order in which they are dealt out:"
    return f"{table('Map', headings, [row for _, row in rows])}{note}{key}</p>"


def _drawn(state: ClusterState, name: str, order: list[int]) -> Html:
    """Draws the shards of a group along the order, one shape for neighbours of one kind."""
    group = state.map.groups[name]
    ready = any(state.is_ready(name, target) for target in group.targets)
    kinds = dict.fromkeys(group.serving, "serving" if ready else "unready")
    kinds.update(dict.fromkeys(group.leaving, "leaving"))
    kinds.update(dict.fromkeys(group.loading, "loading"))
    shapes = []
    for kind, run in groupby(enumerate(order), lambda place: kinds.get(place[1])):
        places = list(run)
        if kind is not None:
            text = f"{kind} {listed(str(shard) for _, shard in places)}"
            shapes.append(_shape(kind, places[0][0], len(places), text))
    return Html(
        f"<svg class=map viewBox='0 0 {len(order)} 10' preserveAspectRatio=none>"
        f"{''.join(shapes)}</svg>"
    )


def _shape(kind: str, left: int, width: int, text: str = "") -> str:
    top, height = SHAPES[kind]
    return (
        f"<rect class={kind} x={left} y={top} width={width} height={height}>"
        f"<title>{html(text)}</title></rect>"
    )


def _replicas(state: ClusterState, at_ts: int) -> str:
    """Table of all replicas: those first that are not ready or behind, then the slowest."""
    rows = []
    for name, target in state.replicas:
        report, condition = state.reports[target], state.condition(name, target)
        opened, wanted = state.open_of(name, target)
        lag, known = state.lag(target), report.problem is None
        behind = mark(f"{report.generation:,}, {lag:,} behind", good=False)
        rows.append(
            (
                (condition == "ready", not lag, -report.response_ms),
                (
                    name,
                    target,
                    mark(condition, good=condition == "ready")
                    if known
                    else mark(f"no response: {report.problem}", good=False),
                    behind if lag else integer(report.generation) if known else NOTHING,
                    duration((at_ts - report.watermark_ts) / 1000) if known else NOTHING,
                    integer(report.map_version) if known else NOTHING,
                    f"{opened:,} of {wanted:,}" if known else NOTHING,
                    duration(report.response_ms / 1000) if known else NOTHING,
                ),
            )
        )
    rows.sort(key=lambda row: row[0])
    headings = (
        *("group", "replica", "state", "generation", "watermark lag", "map"),
        *("shards open", "response"),
    )
    return table("Replicas, worst and slowest first", headings, [cells for _, cells in rows])


def _ago(state: ClusterState, at_ts: int) -> str:
    return duration(max(0, at_ts - state.map.changed_ts) / 1000)
