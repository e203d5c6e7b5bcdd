"""Texts in what commands print: none is taken for markup of the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
from support.worlds import days, new_world
from thinrow.cli.app import app
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = """
[user]
id = "string"
[item]
item_id = { type = "int64", key = true }
brand = "string"
tags = { type = "list<string>", length_max = 4 }
"""


def test_inspect_shows_texts_as_they_are(tmp_path: Path) -> None:
    world = new_world(tmp_path, SCHEMA)
    events = {
        "user_id": ["[red]:cat:"],
        "event_ts": [days(0)[0]],
        "item_id": [1],
        "brand": ["[bold]:dog:"],
        "tags": [["a", "b"]],
    }
    world.compact(pa.table(events), 1)
    command = ["inspect", "--server", str(world.store), "--user", "[red]:cat:"]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"}).output
    assert "User [red]:cat:, served" in shown
    assert "[bold]:dog:" in shown
    assert "[a, b]" in shown
