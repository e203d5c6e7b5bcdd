"""README, docs/start.md and docs/guides/rows.md run as written: their commands and their Python."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.paths import ROOT
from support.worlds import running_server
from thinrow.client import row_count
from thinrow.demo.recipes import RECIPES
from thinrow.demo.steps import Demo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.worlds import Running

README, START, ROWS_PAGE = (
    (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "docs/start.md", "docs/guides/rows.md")
)
COMMANDS = re.findall(r"^\.venv/bin/(?!thinrow serve).*$", START, re.MULTILINE)
BLOCK = re.compile(r"```(.*?)\n(.*?)```", re.DOTALL)
DEMO = ".demo/completejourney"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The demo's store, served; in a folder that looks like a checkout after `make demo`."""
    root = tmp_path_factory.mktemp("readme")
    (root / ".venv/bin").mkdir(parents=True)
    for name in ("thinrow", "grpcurl"):
        (root / ".venv/bin" / name).symlink_to(Path(sys.executable).parent / name)
    demo = Demo(root / DEMO)
    demo.write_inputs(RECIPES["completejourney"].load(), examples_max=250)
    demo.compact()
    demo.backfill()
    with running_server(demo.store) as running:
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
        "DescribeStore": '"name": "quantity"',
        "Inspect": '"status": "STATUS_OK"',
        "/Materialize": '"STATUS_OK"',
        "thinrow inspect": "User 1111",
    }
    [shown] = {text for part, text in expected.items() if part in command.replace("'", "")}
    assert shown in done.stdout


def test_metrics(server: Running) -> None:
    assert "curl -s http://127.0.0.1:7879/metrics" in START
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=60) as answer:
        assert b"thinrow_watermark_age_seconds" in answer.read()


def test_fifteen_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block of README runs: its Python as it stands, its commands as far as they go here."""
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(README)
    assert {kind for kind, _ in blocks} == {"", "python"}
    for kind, text in blocks:
        if kind == "python":
            assert len(text.splitlines()) == 15
            names: dict[str, Any] = {}
            exec(text, names)
            assert "the trainer waited" in capsys.readouterr().out
            # 100 events each; the loader has had every row.
            assert names["items"].offsets().diff().max() == 100
            assert row_count("visits/train.parquet") == 2 * (500 - 3)
            continue
        for command, *rest in (line.split() for line in text.splitlines()):
            if command == "make":
                plan = subprocess.check_output(
                    ["make", "--no-print-directory", "-n", rest[0]], cwd=ROOT, text=True
                )
                assert plan.splitlines()[-1] == ".venv/bin/thinrow demo"
            else:
                assert command == "pip"
                extras = re.findall(r"\.\[(.*?)\]", " ".join(rest))[0].split(",")
                assert set(extras) <= set(metadata("thinrow").get_all("Provides-Extra") or ())


def test_python(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(server.log.parents[2])
    [call] = [text for kind, text in BLOCK.findall(START) if kind == "python"]
    for target in (server.address, f"{DEMO}/store"):
        exec(call.replace("127.0.0.1:7878", target), {})
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == "[ 0  5 10]"
        assert len(" ".join(printed[1:]).strip("[]").split()) == 10


def test_rows_guide(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(server.log.parents[2])
    trained: list[tuple[Any, ...]] = []
    names = {"train": lambda *given: trained.append(given)}
    for block in re.findall(r"```python\n(.*?)```", ROWS_PAGE, re.DOTALL):
        exec(here(block, server), names)
    rows = row_count(f"{DEMO}/rows.parquet")
    [(whole,), (kept, weights)] = trained
    assert len(whole) == rows > len(kept) > 0
    negative = kept["label_coupon_disc"] == 0
    assert weights[negative].tolist() == [10.0] * int(negative.sum())
    assert weights[~negative].tolist() == [1.0] * int((~negative).sum())
    filtered, parts, users = capsys.readouterr().out.splitlines()
    assert all(0 <= int(count) < rows for count in filtered.split())
    assert sum(int(count) for count in parts.split()) == rows
    assert users == f"[{len(set(whole['user_id'].tolist()))}]"
