"""Tenants files that change while servers read them."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def hashed(*tokens: str) -> str:
    hashes = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    return f"token_sha256 = {hashes!r}".replace("'", '"')


class File:
    """A tenants file, replaced as people do: beside it, then over it."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        path.write_text(text, encoding="utf-8")

    def becomes(self, text: str) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path)


def soon(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)
