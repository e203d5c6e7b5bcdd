"""The Python programs of docs/guides/engines.md run as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from support.paths import ROOT
from support.thin_rows import write_rows
from support.worlds import built_world
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    import pytest

PAGE = ROOT / "docs/guides/engines.md"
SECTION = "## Polars, DuckDB, pandas"


def test_readers_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = built_world(tmp_path)
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows", [40, 30])
    section = PAGE.read_text(encoding="utf-8").split(SECTION)[1].split("\n## ")[0]
    programs = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(programs) == 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with Server(ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)) as server:
        for program in programs:
            exec(program.replace("localhost:7878", server.address), names)
            if isinstance(names["frame"], pl.DataFrame):
                assert len(names["frame"]) == 70
    assert list(names["frame"].columns)[:3] == ["user_id", "request_ts", "uih_status"]
    assert "OK" in capsys.readouterr().out
