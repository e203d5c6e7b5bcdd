"""The documentation site that `make docs` builds: whole, and shown without errors by a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from support.paths import DOCS, ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.site
CHROMIUM = shutil.which("chromium")
WIDTHS = (1280, 400)
CHECK = """<script>
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")]
  const wide = frames.filter(
    frame => frame.contentDocument.documentElement.scrollWidth > frame.width)
  document.title = wide.map(frame => `${frame.width}: ${frame.getAttribute("src")}`).join(", ")
  console.log(`checked ${frames.length} frames`)
})
</script>"""
"""Finds pages that are wider than their frame."""


class Page(HTMLParser):
    """The anchors of a page, the links to pages and files, and what a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects what a tag names."""
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                (self.links if tag == "a" else self.loaded).append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(["make", "docs", f"SITE={folder}"], cwd=ROOT, check=True, timeout=280)
    return folder


def test_each_link_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            if not re.match("https?:|mailto:|data:", link):
                name, _, anchor = link.partition("#")
                target = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
                anchors = pages[target].ids if target in pages else set()
                if not target.exists() or (anchor and unquote(anchor) not in anchors):
                    broken.append(f"{path.relative_to(site)}: {link}")
    assert len(pages) > 30 and not broken


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = {link for path in site.rglob("*.html") for link in Page(path).loaded}
    assert loaded and not [link for link in loaded if re.match("(https?:)?//", link)]


def test_each_public_name_has_its_docstring(site: Path) -> None:
    written = (DOCS / "reference/python.md").read_text(encoding="utf-8")
    modules = re.findall(r"^## `([\w.]+)`$", written, re.MULTILINE)
    shown = Page(site / "docs/reference/python.html").ids
    names: dict[int, list[str]] = {}  # of what several modules export, one is enough
    for module in map(import_module, modules):
        for name in module.__all__:
            names.setdefault(id(getattr(module, name)), []).append(f"{module.__name__}.{name}")
    assert len(modules) == 9 and all(shown.intersection(each) for each in names.values())


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_a_browser_shows_each_page_without_errors_and_none_is_wider_than_the_screen(
    site: Path, tmp_path: Path
) -> None:
    assert CHROMIUM is not None
    pages = [path.relative_to(site) for path in sorted(site.rglob("*.html"))]
    frames = [
        f'<iframe src="{page}" width="{width}" height="800"></iframe>'
        for page in pages
        for width in WIDTHS
    ]
    (site / "check.htm").write_text(CHECK + "".join(frames), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever).start()
        command = [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path}", "--dump-dom"),
            f"http://127.0.0.1:{server.server_port}/check.htm",
        ]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        finally:
            server.shutdown()
    [said] = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert f"checked {len(frames)} frames" in said
    assert "<title></title>" in run.stdout


class Quiet(SimpleHTTPRequestHandler):
    """Serves the site, and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Drops a line of the log."""
