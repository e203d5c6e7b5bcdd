"""Sessions of Spark for tests: in this process, or on a standalone master and two workers.

Two workers on addresses of their own are the least on which Spark speculates: it runs no second
attempt on the host of the first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from support.paths import ROOT
from support.small_disks import small_disk
from support.task_hooks import VARIABLE, write_hooks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from support.small_disks import Disk

START_S = 120
MASTER, *WORKERS = "127.0.0.1", "127.0.0.2", "127.0.0.3"
EXECUTOR_DISK_BYTES = 512 << 20
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xss2m"
"""Short runs end before more of a compiler or of a collector pays."""


def spark_home() -> Path:
    """Returns the folder of pyspark; skips the test where it is not installed."""
    if "pyspark" not in sys.modules:
        # pyspark warns of pandas when it is imported; thinrow's session filters that.
        import warnings

        warnings.filterwarnings(
            "ignore", "PySpark does not yet fully support pandas", FutureWarning
        )
    pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed: make spark")
    return Path(pyspark.__file__).parent


@dataclass(frozen=True)
class Sparked:
    """A session that is active in this process, so that jobs use it."""

    session: Any
    hooks: Path
    """File for hooks of its tasks: see task_hooks.py."""
    folder: Path
    """Folder below which executors have their files."""
    disk: Disk | None = None
    """Disk of the executors of the first worker; None where none can be mounted."""


def properties(folder: Path, **more: str) -> dict[str, str]:
    """Returns properties of Spark for short jobs, whose tasks apply hooks.

    Args:
        folder: Folder for Spark's files.
        more: Properties, with `_` for `.`.
    """
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {
        "spark.app.name": "tests",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.driver.memory": "600m",
        "spark.driver.bindAddress": MASTER,
        "spark.driver.host": MASTER,
        "spark.driver.extraJavaOptions": JAVA,
        "spark.executor.extraJavaOptions": JAVA,
        "spark.executor.memory": "500m",
        "spark.local.dir": str(folder / "local"),
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.pyspark.python": sys.executable,
        "spark.python.daemon.module": "support.spark_daemon",
        "spark.executorEnv.PYTHONPATH": path,
        f"spark.executorEnv.{VARIABLE}": str(folder / "hooks"),
        **{
            f"spark.executorEnv.{name}": value
            for name, value in os.environ.items()
            if name.startswith("AWS_")
        },
        **{name.replace("_", "."): value for name, value in more.items()},
    }


@contextmanager
def active_session(
    folder: Path, wanted: Mapping[str, str], disk: Disk | None = None
) -> Iterator[Sparked]:
    """Opens a session that jobs of this process use, until the block ends."""
    spark_home()
    from pyspark.sql import SparkSession

    write_hooks(folder / "hooks", [])
    builder = SparkSession.builder
    for name, value in wanted.items():
        builder = builder.config(name, value)
    environment = {"SPARK_LOCAL_IP": MASTER, "PYSPARK_PYTHON": sys.executable}
    with mock.patch.dict(os.environ, environment):
        session = builder.getOrCreate()
        try:
            yield Sparked(session, folder / "hooks", folder, disk)
        finally:
            session.stop()


@dataclass(frozen=True)
class Cluster:
    """A running master."""

    url: str
    disk: Disk | None


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A standalone master and two workers of one core each, until the block ends.

    Args:
        folder: Folder for their files; the local folders of executors lie in `local`.
    """
    started: list[subprocess.Popen[bytes]] = []
    (folder / "local").mkdir()
    stack, disk = ExitStack(), None
    with suppress(pytest.skip.Exception):
        disk = stack.enter_context(small_disk(folder / "local" / WORKERS[0]))
        disk.resize(EXECUTOR_DISK_BYTES)
        # A tmpfs of 0 bytes, which an empty one without room would be, has no limit at all.
        (disk.path / "ballast").write_bytes(bytes(1 << 16))
    try:
        master = ["master.Master", "--host", MASTER, "--port", "0", "--webui-port", "0"]
        log = _daemon(folder, "master", MASTER, master, started)
        url = _wait_for(log, r"Starting Spark master at (spark://[\d.:]+)", started)
        for host in WORKERS:
            options = ["--cores", "1", "--memory", "1g", "--host", host, "--webui-port", "0"]
            options += ["--work-dir", str(folder / "work" / host)]
            log = _daemon(folder, host, host, ["worker.Worker", *options, url], started)
        for host in WORKERS:
            _wait_for(folder / f"{host}.log", "(Successfully registered with master)", started)
        yield Cluster(url, disk)
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
        stack.close()


def _daemon(
    folder: Path,
    name: str,
    host: str,
    command: Sequence[str],
    started: list[subprocess.Popen[bytes]],
) -> Path:
    """Starts a daemon of Spark. Returns its log."""
    home = spark_home()
    first, *options = command
    environment = {
        **os.environ,
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": host,
        "SPARK_LOCAL_DIRS": str(folder / "local" / host),
        "SPARK_WORKER_DIR": str(folder / "work" / host),
        "SPARK_DAEMON_MEMORY": "200m",
        "SPARK_DAEMON_JAVA_OPTS": JAVA,
    }
    (folder / "local" / host).mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [home / "bin/spark-class", f"org.apache.spark.deploy.{first}", *options],
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    started.append(process)
    return log


def _wait_for(log: Path, pattern: str, started: Sequence[subprocess.Popen[bytes]]) -> str:
    """Returns what a log says, once it does."""
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        text = log.read_text(encoding="utf-8", errors="replace")
        if found := re.search(pattern, text):
            return found[1]
        assert all(process.poll() is None for process in started), text
        time.sleep(0.05)
    raise AssertionError(f"no {pattern!r} in {log}:\n{text}")
