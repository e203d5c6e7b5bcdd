"""docs/guides/fleet.md runs as written: a cluster of two workers, an S3 server, and a server."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from support.paths import ROOT
from support.spark_cluster import JAVA, spark_home
from support.worlds import SCHEMA, running_server, some_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.object_storage import ObjectStorage

pytestmark = pytest.mark.timeout(900)
PAGE = ROOT / "docs/guides/fleet.md"
START_S = 120
STORE = "s3://my-bucket/histories"


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def blocks() -> list[str]:
    """Blocks of commands of the page, in order, with ports that are free here."""
    text = PAGE.read_text(encoding="utf-8")
    for port in ("7077", "8080"):
        text = text.replace(port, str(free_port()))
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


@contextmanager
def daemons(commands: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Starts each line of a block in a shell of its own, and waits for two workers."""
    with ExitStack() as stack:
        logs = []
        for number, command in enumerate(commands.splitlines()):
            logs.append(folder / f"daemon-{number}.log")
            with logs[-1].open("wb") as sink:
                process = subprocess.Popen(
                    shlex.split(command),
                    cwd=folder,
                    env=environment,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            if number == 0:
                wait_for(logs[0], "I have been elected leader", 1)
        wait_for(logs[0], "Registering worker", len(logs) - 1)
        yield


def wait_for(log: Path, said: str, count: int) -> None:
    """Waits until a log has a line so often."""
    end_s = time.monotonic() + START_S
    while log.read_text(encoding="utf-8").count(said) < count:
        assert time.monotonic() < end_s, log.read_text(encoding="utf-8")
        time.sleep(0.1)


def test_commands_of_the_guide(object_storage: ObjectStorage, tmp_path: Path) -> None:
    spark_home()
    (tmp_path / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    for day in (0, 1):
        events = some_events(200, days=1, first_day=day)
        pq.write_table(events, tmp_path / f"events-{day + 1}.parquet")
    bucket = urllib.request.Request(f"{object_storage.endpoint}/my-bucket", method="PUT")
    with urllib.request.urlopen(bucket, timeout=60) as answer:
        assert answer.status == 200
    environment = {name: value for name, value in os.environ.items() if name[:5] != "SPARK"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Neither changes what the commands do; both spare the machine.
        "SPARK_DAEMON_MEMORY": "200m",
        "SPARK_DAEMON_JAVA_OPTS": JAVA,
    }
    cluster, *rest, serve = blocks()
    serving = [line for line in serve.splitlines() if line]
    assert len(serving) == 1
    with daemons(cluster, tmp_path, environment):
        script = "set -e\n" + "\n".join(rest)
        done = bash(script, tmp_path, environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Generation ") == 2
        assert "0 problems" in done.stdout
        check_interrupted(rest, tmp_path, environment)
        first, second = compactions(rest)
        again = bash(f"{configuration(rest)}\n{second}", tmp_path, environment)
        assert again.returncode == 0, again.stderr
        assert "already built" in again.stdout + again.stderr
        assert "--shards 4" in first

    program, _, _, store, *options = shlex.split(serving[0])
    assert (program, store) == ("thinrow", STORE)
    options[options.index("--mirror") + 1] = str(tmp_path / "mirror-0")
    with running_server(store, *options, log=tmp_path / "log") as server:
        assert server.wait_for("serving")["generation"] == 2


def bash(
    script: str, folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a script as a person would."""
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def configuration(rest: list[str]) -> str:
    """The part of the script that names the cluster, in a folder where it has run."""
    [line] = [line for line in rest[0].splitlines() if line.startswith("export ")]
    return line


def compactions(rest: list[str]) -> list[str]:
    """Commands of the page that compact."""
    return [line for block in rest for line in block.splitlines() if " compact " in line]


def check_interrupted(rest: list[str], folder: Path, environment: dict[str, str]) -> None:
    """A job for which no worker has room says so, and Ctrl-C ends it in one word."""
    wanted = compactions(rest)[0].replace("histories", "other")
    script = f"{configuration(rest)}\nexec {wanted} --spark-conf spark.executor.memory=64g"
    log = folder / "waiting.log"
    # Tests in the background ignore SIGINT, which the command would take over.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=environment, stdout=sink, stderr=sink
        )
    signal.signal(signal.SIGINT, before)
    try:
        wait_for(log, "has not accepted any resources", 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=START_S) == 130
    finally:
        process.kill()
        process.wait()
    said = log.read_text(encoding="utf-8")
    assert said.rstrip().endswith("Stopped.")
    assert "Traceback" not in said
