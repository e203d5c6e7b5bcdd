"""README, docs/start.md and docs/guides/rows.md run as written: their commands and their Python."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.paths import ROOT
from support.worlds import running_server
from thinrow.client import row_count
from thinrow.demo.demo import run_demo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.worlds import Running

README = "".join(
    (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/start.md")
)
COMMANDS = re.findall(r"^\.venv/bin/(?!thinrow serve).*$", README, re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ROWS_PAGE = (ROOT / "docs/guides/rows.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The demo's store, served; in a folder that looks like a checkout after `make demo`."""
    root = tmp_path_factory.mktemp("readme")
    (root / ".venv/bin").mkdir(parents=True)
    for name in ("thinrow", "grpcurl"):
        (root / ".venv/bin" / name).symlink_to(Path(sys.executable).parent / name)
    run_demo(root / ".demo", "movielens", examples_max=300, epochs=1)
    with running_server(root / ".demo/movielens/store") as running:
        yield running


def here(text: str, server: Running) -> str:
    """Only the ports are this test's own: another server may hold the usual ones."""
    text = text.replace("127.0.0.1:7878", server.address)
    return text.replace("127.0.0.1:7879", server.metrics)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, server: Running) -> None:
    done = subprocess.run(
        here(command, server),
        shell=True,
        cwd=server.log.parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {
        "list": "thinrow.v1.MaterializationService",
        "Health/Check": '"status": "SERVING"',
        "describe": "repeated sfixed64 user_ids",
        "DescribeStore": '"name": "rating"',
        "Inspect": '"status": "STATUS_OK"',
        "/Materialize": '"STATUS_OK"',
        "thinrow inspect": "User 196",
    }
    [shown] = {text for part, text in expected.items() if part in command.replace("'", "")}
    assert shown in done.stdout


def test_metrics(server: Running) -> None:
    assert "curl -s http://127.0.0.1:7879/metrics" in README
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=60) as answer:
        assert b"thinrow_watermark_age_seconds" in answer.read()


def test_python(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, call = (here(block, server) for block in PYTHON)
    store = ".demo/movielens/store"
    monkeypatch.chdir(server.log.parents[2])
    for target in (store, server.address):
        assert store in train
        exec(train.replace(store, target), {})
        assert "the trainer waited" in capsys.readouterr().out
    exec(call, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "[ 0  5 10]"
    assert len(printed[1].strip("[]").split()) == 10


def test_rows_guide(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(server.log.parents[2])
    trained: list[tuple[Any, ...]] = []
    names = {"train": lambda *given: trained.append(given)}
    for block in re.findall(r"```python\n(.*?)```", ROWS_PAGE, re.DOTALL):
        exec(here(block, server), names)
    rows = row_count(".demo/movielens/rows.parquet")
    [(whole,), (kept, weights)] = trained
    assert len(whole) == rows > len(kept) > 0
    negative = kept["label_rating"] < 4
    assert weights[negative].tolist() == [10.0] * int(negative.sum())
    assert weights[~negative].tolist() == [1.0] * int((~negative).sum())
    filtered, parts, users = capsys.readouterr().out.splitlines()
    assert all(0 <= int(count) < rows for count in filtered.split())
    assert sum(int(count) for count in parts.split()) == rows
    assert users == f"[{len(set(whole['user_id'].tolist()))}]"


def test_demo_ends_in_a_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path, "completejourney", examples_max=200, epochs=1)
    shown = capsys.readouterr().out
    for step in ("thinrow compact", "thinrow backfill", "thinrow serve", "hit rate@10"):
        assert step in shown
