"""docs/guides/cluster.md runs as written: four groups on one machine, then three; a next day."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cluster import free_port
from support.paths import ROOT
from support.worlds import Running

pytestmark = pytest.mark.timeout(600)
PAGE = ROOT / "docs/guides/cluster.md"


def test_commands_of_the_guide(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for port in ("7878", "7879"):
        text = text.replace(port, str(free_port()))
    build, apply, servers, check, change, next_day = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PWD": str(tmp_path),
    }

    def bash(script: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"set -e\n{script}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    built = bash(build)
    assert "events added" in built and "Warning" not in built
    assert "16 shards in 4 groups, 4 each" in " ".join(bash(apply).split())
    with ExitStack() as stack:
        running = []
        for number, line in enumerate(servers.splitlines()):
            log = tmp_path / f"log-{number}"
            command = shlex.split(line.replace("$PWD", str(tmp_path)))
            with log.open("wb") as sink:
                process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=sink)
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append(Running(process, "", "", log))
        assert len(running) == 4
        for server in running:
            server.wait_for("serving", 120)
        shown = bash(check)
        assert "no shard moves" in shown
        assert "Nothing is wrong" in shown
        assert "Nothing is wrong" in (tmp_path / "cluster.html").read_text(encoding="utf-8")
        assert "item_id" in shown
        assert "16 shards in 3 groups" in " ".join(bash(change).split())
        shown = bash(next_day)
        while "2023-11-17T00:00:00.000Z" not in shown:
            shown = bash(next_day.splitlines()[-1])
