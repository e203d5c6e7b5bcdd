"""The check of English in `make check` finds what CONTRIBUTING bans, and passes other text."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FINDINGS = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "prose.py"))["findings"]
ALL = "__all__: list[str] = []\n"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("server/thinrow/x.py", ALL + "x = 1  # as the caller asked\n"),
        ("server/thinrow/x.py", ALL + 'raise ValueError(f"Nobody reads {1}.")\n'),
        ("server/thinrow/x.py", ALL + "def tell_all() -> None: ...\n"),
        ("server/thinrow/x.py", ALL + 'def f() -> None:\n    """What it does."""\n'),
        ("server/thinrow/x.py", ALL + 'option(help="Where files go.")\n'),
        ("server/thinrow/x.py", "def f() -> None: ...\n"),
        ("native/x.cpp", "// Of each event its words.\nint x;\n"),
        ("native/x.cpp", 'throw Error("the server lets go");\n'),
        ("docs/x.md", "Values read lately stay.\n"),
        ("docs/x.md", "```\nthinrow serve  # asks\n```\n"),
        ("deploy/x.yaml", "summary: the server tells its state\n"),
        ("Makefile", "x: ## what people ask\n"),
    ],
)
def test_banned_prose_is_found(path: str, text: str) -> None:
    assert len(FINDINGS(path, text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("server/thinrow/x.py", ALL + 'def mask() -> int:\n    """Count masks and tasks."""\n'),
        ("docs/x.md", "`told` is code.\n```\nask server\n```\n"),
        ("tests/x.py", "def f() -> None: ...\n"),
        ("native/x.cpp", "int told = 1; // the task\n"),
    ],
)
def test_other_text_passes(path: str, text: str) -> None:
    assert not FINDINGS(path, text)
