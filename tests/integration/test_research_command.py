"""`thinrow research` from a text file to a model, by the lines that it prints."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from support.paths import DOCS, ROOT
from thinrow.cli.app import app
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path

USERS, ITEMS, EVENTS = 12, 30, 600
START_S = 1_600_000_000
Example = tuple[str, list[tuple[str, int]], tuple[str, int]]
"""User, history, and label."""


def test_from_a_log_to_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    log = pl.DataFrame(
        {
            "who": [f"user {n}" for n in draw.integers(USERS, size=EVENTS)],
            "what": [f"item {n}" for n in draw.integers(ITEMS, size=EVENTS)],
            "stars": draw.integers(1, 6, size=EVENTS),
            # A day, in few seconds: many events share theirs.
            "seconds": START_S + draw.integers(0, 60, size=EVENTS) * 1440,
        }
    )
    log.write_csv(tmp_path / "log.csv")
    out = tmp_path / "out"
    columns = ["--user", "who", "--item", "what", "--time", "seconds"]
    arguments = ["research", str(tmp_path / "log.csv"), "--out", str(out), *columns]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "out"}

    users = dict(pl.read_parquet(out / "users.parquet").iter_rows())
    items = dict(pl.read_parquet(out / "items.parquet").iter_rows())
    assert min(users) == min(items) == 1
    seen: dict[str, list[Example]] = {}
    for part in ("train", "validation", "test"):
        rows = seen.setdefault(part, [])
        wanted = Projection(traits=("item_id", "stars"))
        config = LoaderConfig(columns=("user_id", "label_item_id", "label_stars"))
        with ThinRowLoader(out / f"{part}.parquet", out / "store", wanted, config) as loader:
            for batch in loader:
                for n, (first, last) in enumerate(pairwise(batch.offsets.tolist())):
                    names = [items[int(item)] for item in batch.values["item_id"][first:last]]
                    stars = batch.values["stars"][first:last].tolist()
                    label = batch.columns["label_item_id"][n], batch.columns["label_stars"][n]
                    rows.append(
                        (
                            users[int(batch.columns["user_id"][n])],
                            list(zip(names, stars, strict=True)),
                            (items[int(label[0])], int(label[1])),
                        )
                    )
    expected: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for name in sorted(set(log["who"])):
        own = log.filter(who=name).sort("seconds", maintain_order=True)
        events = list(own.select("what", "stars").iter_rows())
        for place in range(1, len(events)):
            part = {1: "test", 2: "validation"}.get(len(events) - place, "train")
            expected[part].append((name, events[:place], events[place]))
    assert {part: sorted(rows) for part, rows in seen.items()} == {
        part: sorted(rows) for part, rows in expected.items()
    }

    program = done.stdout[done.stdout.index("from thinrow") :]
    assert len(program.splitlines()) == 10
    capsys.readouterr()
    exec(compile(program, "printed", "exec"), {})
    loss = float(capsys.readouterr().out.removeprefix("loss of the last batch: "))
    assert 0 < loss < np.inf

    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2 and "exists and is no empty folder" in again.stderr


def test_guide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [program] = re.findall(
        r"```python\n(.*?)```", (DOCS / "guides/research.md").read_text(encoding="utf-8"), re.DOTALL
    )
    exec(program, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"# (.*)", program)


def test_notebook(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cells run as a program does, so that no Jupyter is needed."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples/research.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    found = re.search(r"loss (.*) to (.*)\n.* guesses in (.*)%", capsys.readouterr().out)
    assert found is not None
    first, last, hit_rate = map(float, found.groups())
    # Ten of 1,682 items are 0.6 %.
    assert last < first and hit_rate > 1.2
