"""Folders that tests read from."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
SUPPORT = TESTS / "support"
ROOT = TESTS.parent
BENCH = ROOT / "bench"
DOCS = ROOT / "docs"
NATIVE = ROOT / "native"
