"""The page for people: what it says, that nothing on it is taken for HTML, how browsers see it."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import time
import urllib.error
import urllib.request
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from support.server_processes import AT_ONCE, TWO, until
from support.worlds import ALL, World, built_world, days, pointers_to, running_server
from thinrow.access.metrics_endpoint import MetricsEndpoint
from thinrow.access.page_html import duration
from thinrow.access.status_page import Look, StatusPage, rendered
from thinrow.client import connect
from thinrow.errors import RequestError
from thinrow.materialization.metrics import STAGES, Metrics
from thinrow.online.metrics import OnlineMetrics
from thinrow.remote.mirror_metrics import MirrorMetrics

if TYPE_CHECKING:
    from pathlib import Path

NASTY = "<script>alert('x')</script>&\""
TENANTS = f"""
[ranker]
sequence_length = 3
["{NASTY.replace('"', chr(92) + '"')}"]
sequence_length = 1
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = built_world(tmp_path_factory.mktemp("world"))
    (world.folder / "tenants.toml").write_text(TENANTS, encoding="utf-8")
    return world


class Reader(HTMLParser):
    """Checks that elements nest, and takes the cells of tables and tiles."""

    VOID = ("meta", "br", "hr", "img", "link", "input")
    IMPLIED = ("td", "th", "tr")
    """Their ends may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on") or name == "src"]
        self.tags.add(tag)
        if tag in ("td", "dt", "dd", "th", "h2", "p"):
            self.cells.append("")
        if tag not in self.VOID + self.IMPLIED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.IMPLIED:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        text: str = answer.read().decode()
    return text


def of(registry: CollectorRegistry) -> Look:
    return Look.of(registry.collect())


@pytest.mark.parametrize("options", [(), TWO], ids=["one", "two"])
def test_it_shows_what_the_server_does(world: World, options: tuple[object, ...]) -> None:
    tenants = world.folder / "tenants.toml"
    with running_server(world.store, "--tenants", tenants, *options) as server:
        for _ in range(10):
            with connect(server.address, AT_ONCE) as client:
                client.materialize(pointers_to(days(3)), "ranker")
                client.materialize(pointers_to(days(4)), ALL)
                with pytest.raises(RequestError):
                    client.materialize(pointers_to(days(3)), "nobody")
        pages = [fetched(f"http://{server.metrics}{path}") for path in ("/", "/status")]
    for page in pages:
        reader = read(page)
        cells = reader.cells
        assert "script" not in reader.tags
        assert "serving" in page
        assert "<meta http-equiv=refresh content=5>" in page
        assert cells[cells.index("generation") + 1].startswith("1opened ")
        assert cells[cells.index("watermark age") + 1].endswith("2023-11-17 00:00 UTC")
        assert ("processes" in cells) == bool(options)
        assert cells[cells.index("NOT_READY") + 2 :][:2] == ["60", "60"]
        assert cells[cells.index("UNKNOWN_TENANT") + 1 :][:2] == ["10", "10"]
        ranker = cells[cells.index("ranker") :][:7]
        assert ranker[2] == "100%"
        assert ranker[3].endswith("ms")
        assert cells[cells.index("all others") + 2] == "0.00%"
        assert {*STAGES, NASTY} <= set(cells)
        assert NASTY not in page


def test_nothing_reported_is_taken_for_html() -> None:
    registry = CollectorRegistry()
    for name, labels in (
        ("thinrow_examples", ["tenant", "status"]),
        ("thinrow_errors", ["name"]),
    ):
        Counter(name, "…", labels, registry=registry).labels(*[NASTY] * len(labels)).inc()
    for name, label in (("thinrow_stage_seconds", "stage"), ("thinrow_online_seconds", "call")):
        Histogram(name, "…", [label], registry=registry).labels(NASTY).observe(1)
    info = Gauge("thinrow_build_info", "…", ["version"], registry=registry)
    info.labels(NASTY).set(1)
    page = rendered(of(registry), None)
    assert "<script" not in page
    assert unescape(page).count(NASTY) == 6
    assert read(page).cells.count(NASTY) == 5


def test_a_page_of_nothing_is_a_page() -> None:
    assert "ThinRow" in rendered(of(CollectorRegistry()), None)
    read(rendered(of(CollectorRegistry()), None))


def test_it_says_what_is_wrong() -> None:
    metrics = Metrics()
    metrics.bind_generation(lambda: 7, lambda: -(1 << 62))
    page = rendered(of(metrics.registry), None)
    assert "not serving" in page
    assert "beyond the calendar" in page
    metrics.set_ready(True)
    metrics.open_failures.inc(3)
    page = rendered(of(metrics.registry), None)
    assert "not serving" not in page
    assert "3 failed tries" in page


def test_rates_are_those_between_two_looks() -> None:
    """Also where a killed process took its last counts along."""
    metrics = Metrics()
    examples = metrics.examples.labels("", "OK")
    examples.inc(1000)
    before = of(metrics.registry)
    examples.inc(30)
    now = of(metrics.registry)
    cells = read(rendered(now._replace(at_s=before.at_s + 10), before)).cells
    assert cells[cells.index("examples a second") + 1] == "3"
    assert cells[cells.index("OK", cells.index("in the last 10 s")) + 2 :][:2] == ["30", "1,030"]
    cells = read(rendered(before._replace(at_s=now.at_s + 10), now)).cells
    assert cells[cells.index("examples a second") + 1] == "0"
    assert "since the start" in rendered(now, None)


def test_looks_are_forgotten_after_a_minute() -> None:
    page = StatusPage(list)
    base = Look(time.time(), {})
    assert page._earlier(base) is None
    for n in range(1, 1000):
        earlier = page._earlier(base._replace(at_s=base.at_s + n * 0.5))
        assert (earlier is None) == (n <= 2)
        assert earlier is None or 1 < (base.at_s + n * 0.5) - earlier.at_s <= 60
        assert len(page._looks) <= 64
    assert page._earlier(base._replace(at_s=base.at_s + 10_000)) is None


def test_bounds_of_histograms() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("x_seconds", "…", ["a"], buckets=(0.1, 1, 10), registry=registry)
    assert of(registry).at_most(0.99, "x_seconds") == "—"
    for _ in range(99):
        histogram.labels("p").observe(0.5)
    histogram.labels("p").observe(100)
    histogram.labels("q").observe(100)
    look = of(registry)
    assert look.at_most(0.99, "x_seconds", a="p") == "≤ 1 s"
    assert look.at_most(1, "x_seconds", a="p") == "> 10 s"
    assert look.at_most(0.99, "x_seconds", a="q") == "> 10 s"
    assert look.at_most(0.5, "x_seconds") == "≤ 1 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00123, "1.23 ms"),
        (59.94, "59.9 s"),
        (61, "1 min 1 s"),
        (7260, "2 h 1 min"),
        (3 * 86_400, "3 d 0 h"),
        (-0.5, "-500 ms"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_online_service_has_one() -> None:
    metrics = OnlineMetrics()
    metrics.appended.inc(5)
    metrics.seconds.labels("snapshot").observe(0.001)
    endpoint = MetricsEndpoint(metrics.registry, "127.0.0.1:0")
    try:
        cells = read(fetched(f"http://{endpoint.address}/")).cells
    finally:
        endpoint.close()
    assert cells[cells.index("events appended") + 1] == "5"
    assert "snapshot" in cells


def test_other_methods_are_refused() -> None:
    endpoint = MetricsEndpoint(Metrics().registry, "127.0.0.1:0")
    try:
        url = f"http://{endpoint.address}/"
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(url, data=b"x", timeout=60)
        head = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(head, timeout=60) as answer:
            assert answer.read() == b""
    finally:
        endpoint.close()


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_a_browser_shows_it(world: World, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    tenants = world.folder / "tenants.toml"
    picture = tmp_path / "page.png"
    with running_server(world.store, "--tenants", tenants) as server:
        with connect(server.address, AT_ONCE) as client:
            client.materialize(pointers_to(days(3)), "ranker")
        until(lambda: server.scrape()["thinrow_in_flight_requests"] == 0)
        for what, profile in (("--dump-dom", "one"), (f"--screenshot={picture}", "other")):
            (tmp_path / profile).mkdir()
            run = subprocess.run(
                [
                    CHROMIUM,
                    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                    *("--no-first-run", "--disable-background-networking"),
                    *("--disable-component-update", "--disable-sync", "--window-size=400,900"),
                    f"--user-data-dir={tmp_path / profile}",
                    what,
                    f"http://{server.metrics}/",
                ],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
            if what == "--dump-dom":
                dom = run.stdout
    assert "<script" not in dom
    cells = read(dom).cells
    assert NASTY in cells
    assert cells[cells.index("ranker") + 2] == "100%"
    assert len(re.findall("<h2>", dom)) == 3
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">II", head[16:]) == (400, 900)


def test_a_retry_of_a_mirror_does_not_hide_its_failure() -> None:
    registry = CollectorRegistry()
    mirror = MirrorMetrics(registry)
    mirror.pulling.set(7)
    mirror.missing_bytes.set(1000)
    mirror.received_bytes.set(250)
    assert "copying generation 7: 25" in rendered(Look.of(registry.collect()), None)
    mirror.failing.set(1)
    assert "cannot follow the store" in rendered(Look.of(registry.collect()), None)
