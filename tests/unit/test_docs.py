"""Pages: links lead somewhere, and every page is listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.paths import DOCS, ROOT
from tools.make_commands import page as commands_page

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
LINK = re.compile(r"\]\(((?!https?:|mailto:)[^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_listed() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall(index)}
    assert {page for page in PAGES if page.is_relative_to(DOCS)} - {DOCS / "README.md"} <= linked


def test_commands_and_defaults_are_those_of_the_code() -> None:
    written = (DOCS / "reference/commands.md").read_text(encoding="utf-8")
    assert written == commands_page(), "run `make reference` and commit what it writes"


def test_files_that_pages_name_exist() -> None:
    """`access/limits.py` in a page means a file of the package, `tests/...` one of the project."""
    roots = [ROOT, *(ROOT / side / "thinrow" for side in ("client", "server", "protos"))]
    roots += [ROOT / "client/thinrow/client"]
    missing = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        named = re.findall(
            r"`([\w./-]+/[\w.-]+\.(?:py|cpp|h|c))[`:]", page.read_text(encoding="utf-8")
        )
        missing += [
            f"{page.name}: {name}"
            for name in named
            if not any((each / name).exists() for each in roots)
        ]
    assert not missing
