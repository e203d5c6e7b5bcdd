"""The page of a cluster, from reports without servers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from thinrow.cluster.cluster_map import ClusterMap, Group
from thinrow.cluster.cluster_state import ClusterState
from thinrow.cluster.replica_report import ReplicaReport
from thinrow.errors import UsageError
from thinrow.jobs.cluster_page import cluster_page, write_page
from thinrow.jobs.console import readable_bytes

if TYPE_CHECKING:
    from pathlib import Path

AT_TS = 1_700_000_000_000
STORE = "s3://bucket/<b>histories"
GROUPS = {
    "0": Group(targets=("a:1", "b:1"), serving=(0, 1, 4, 5), leaving=(1,)),
    "1": Group(targets=("a:2", "b:2"), serving=(2, 3, 6, 7), loading=(1,)),
}


def report(target: str, **changed: object) -> ReplicaReport:
    """A replica that is ready, of the group that its port says."""
    group = str(int(target[-1]) - 1)
    found: dict[str, object] = {
        "group": group,
        "map_version": 3,
        "generation": 7,
        "watermark_ts": AT_TS - 60_000,
        "open_shards": frozenset(GROUPS[group].opened),
        "response_ms": 2.0,
    }
    return ReplicaReport(target, **(found | changed))  # type: ignore[arg-type] # as above


def state(*changed: ReplicaReport) -> ClusterState:
    reports = {target: report(target) for group in GROUPS.values() for target in group.targets}
    reports.update({each.target: each for each in changed})
    found = ClusterMap(
        version=3, shards=8, lifetime_ms=1000, changed_ts=AT_TS - 5000, groups=GROUPS
    )
    return ClusterState(found, reports, 7, [100] * 8)


def rows(page: str, title: str) -> list[list[str]]:
    """The text of the cells of the table under a title."""
    body = page.split(f"<h2>{title}")[1].split("<tbody>")[1].split("</tbody>")[0]
    return [
        [re.sub(r"<title>.*?</title>|<[^>]+>", "", cell) for cell in row.split("<td>")[1:]]
        for row in body.split("<tr>")[1:]
    ]


def test_what_is_healthy() -> None:
    page = cluster_page(STORE, state(report("b:1", response_ms=1234.0)), AT_TS)
    assert "Nothing is wrong" in page
    assert "s3://bucket/&lt;b&gt;histories" in page
    assert "<b>" not in page
    assert not re.search(r"<script|<link|<img|https?:|url\(", page)
    groups = rows(page, "Map")
    assert [(row[0], row[2], row[3], row[4]) for row in groups] == [
        ("0", "2 of 2", "4", "300 B"),
        ("1", "2 of 2", "4", "500 B"),
    ]
    assert groups[0][6] == "1.23 s"
    assert rows(page, "Moves") == [
        ["0", "—", "1: 1", "0 B", ""],
        ["1", "1: 1", "—", "100 B", ""],
    ]
    replicas = rows(page, "Replicas")
    assert replicas[0] == ["0", "b:1", "ready", "7", "1 min 0 s", "3", "4 of 4", "1.23 s"]
    assert len(replicas) == 4


def test_the_map_draws_neighbours_once() -> None:
    page = cluster_page(STORE, state(), AT_TS)
    # The order of dealing is 0 4 2 6 1 5 3 7.
    first, second = re.findall(r"<svg class=map.*?</svg>", page)
    shape = r"class=(\w+) x=(\d+) y=\d+ width=(\d+)"
    assert re.findall(shape, first) == [
        ("serving", "0", "2"),
        ("leaving", "4", "1"),
        ("serving", "5", "1"),
    ]
    assert re.findall(shape, second) == [
        ("serving", "2", "2"),
        ("loading", "4", "1"),
        ("serving", "6", "2"),
    ]


@pytest.mark.parametrize(
    ("changed", "sentence", "condition"),
    [
        (
            [ReplicaReport("a:2", "X <i>"), ReplicaReport("b:2", "Y")],
            "4 of 8 shards have no ready replica: 2, 3, 6, 7.",
            "no response: X &lt;i&gt;",
        ),
        (
            [ReplicaReport("a:2", "UNAVAILABLE: <i>")],
            "1 of 4 replicas does not respond: a:2.",
            "no response: UNAVAILABLE: &lt;i&gt;",
        ),
        ([ReplicaReport("a:2")], "1 of 4 replicas follows no map, so start it with", "no map"),
        (
            [report("a:2", group="<i>")],
            "1 of 4 replicas belongs to another group by its --group: a:2.",
            "group &lt;i&gt;",
        ),
        (
            [report("a:2", open_shards=frozenset({2}))],
            "1 of 4 replicas is still opening shards: a:2.",
            "opening",
        ),
        (
            [report("a:2", generation=5)],
            "1 of 4 replicas serves an earlier generation than 7: a:2.",
            "ready",
        ),
        (
            [report("a:2", generation=5), report("b:2", generation=6)],
            "2 of 4 replicas serve an earlier generation than 7: a:2, b:2.",
            "ready",
        ),
    ],
)
def test_what_is_wrong_comes_first(
    changed: list[ReplicaReport], sentence: str, condition: str
) -> None:
    found = state(*changed)
    assert found.problem is not None
    assert found.problem.startswith(sentence)
    page = cluster_page(STORE, found, AT_TS)
    assert f"<p class=headline><span class=bad>{sentence}" in page
    assert "<i>" not in page
    assert rows(page, "Replicas")[0][1:3] == ["a:2", condition]
    assert ("class=unready x=" in page.split("Shards stand")[0]) == bool(found.unserved)


def test_bytes_are_those_of_the_terminal() -> None:
    found = state()
    large = ClusterState(found.map, found.reports, 7, [1_500] * 8)
    page = cluster_page(STORE, large, AT_TS)
    assert [row[4] for row in rows(page, "Map")] == ["4.5 kB", "7.5 kB"]
    assert rows(page, "Moves")[1][3] == readable_bytes(1_500) == "1.5 kB"
    assert "KiB" not in page


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        write_page(tmp_path / "missing" / "page.html", STORE, state(), AT_TS)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        write_page(tmp_path / "folder", STORE, state(), AT_TS)
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]
    write_page(tmp_path / "page.html", STORE, state(), AT_TS)
    assert (tmp_path / "page.html").read_text() == cluster_page(STORE, state(), AT_TS)
