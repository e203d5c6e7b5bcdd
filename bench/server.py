"""A server to measure, and what it runs on."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from thinrow.client import Client, connect

if TYPE_CHECKING:
    from collections.abc import Iterator


class Served(NamedTuple):
    """A server in a process of its own."""

    client: Client
    address: str
    metrics: str

    def stage_seconds(self) -> dict[str, float]:
        """Seconds that the server has spent in each stage so far."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(
            r'^thinrow_stage_seconds_sum\{stage="(\w+)"\} (\S+)$', text, re.MULTILINE
        )
        return {stage: float(seconds) for stage, seconds in found}


@contextmanager
def serving(store: Path, log: Path) -> Iterator[Served]:
    """A server of a store, and a client of it."""
    command = ["serve", "--store", str(store)]
    command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "thinrow.cli.entry", *command], stderr=output
        )
    try:
        while '"serving"' not in log.read_text():
            if server.poll() is not None:
                raise SystemExit(f"The server ended: {log.read_text()}")
            time.sleep(0.05)
        endpoints = json.loads(log.read_text().splitlines()[0])
        with connect(endpoints["address"]) as client:
            yield Served(client, endpoints["address"], endpoints["metrics"])
    finally:
        server.terminate()
        server.wait()


def machine() -> str:
    """The machine and software of this run."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    processor = names[0].split(":")[1].strip() if names else platform.processor()
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "numpy", "pyarrow"))
    return f"{cores} cores of {processor}, Python {platform.python_version()}, {packages}"
