"""examples/ray_train.py on Ray, killed and resumed: each example is trained on once per epoch."""

# ruff: noqa: ANN401 - Ray has no types

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.paths import ROOT
from support.thin_rows import rows_table
from support.worlds import built_world, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ray = pytest.importorskip("ray", reason="`make ray` installs Ray")
pytest.importorskip("ray.train", reason="`make ray` installs Ray Train")
from thinrow.client.ray import ExampleIds  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")
STORE_BYTES = 200 << 20
ROWS = 331
"""No multiple of a batch, so that workers end at different steps."""
ENDLESS = 10_000
WAIT_S = 200.0


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a Ray of this test, which outlives the drivers that are killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        session = ray.init(
            num_cpus=4,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=f"/tmp/ray-{random.getrandbits(32):x}",  # sockets need short paths
        )
        yield session.address_info["address"]
        ray.shutdown()


@pytest.fixture
def program(tmp_path: Path, cluster: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program on small rows, with more options."""
    world = built_world(tmp_path / "world")
    labels = pa.array(range(ROWS), pa.int64())
    table = rows_table(ROWS).append_column("label_item_id", labels)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=10)
    started: list[subprocess.Popen[str]] = []
    with running_server(world.store) as server:
        command = [sys.executable, str(ROOT / "examples/ray_train.py")]
        command += ["--rows", "rows.parquet", "--server", server.address, "--name", "run"]
        command += ["--storage", "runs", "--batch-examples", "8", "--save-steps", "6"]
        command += ["--actors-max", "2", "--actor-cpus", "0.25", "--interval-s", "0"]

        def start(*options: object) -> subprocess.Popen[str]:
            with (tmp_path / f"log-{len(started)}").open("w") as log:
                process = subprocess.Popen(
                    [*command, *map(str, options)],
                    cwd=tmp_path,
                    env={**os.environ, "RAY_ADDRESS": cluster},
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            started.append(process)
            return process

        yield start
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()


@dataclass(frozen=True)
class Saved:
    """A checkpoint that the run would resume from."""

    name: str
    run: dict[str, Any]
    done: int
    """Examples of its epoch that were trained on."""


def latest(folder: Path) -> Saved | None:
    """Returns the latest checkpoint that Ray Train has registered."""
    storage = folder / "runs/run"
    try:
        snapshot = json.loads((storage / "checkpoint_manager_snapshot.json").read_text())
        name = snapshot["latest_checkpoint_result"]["checkpoint_dir_name"]
        run = torch.load(storage / name / "run.pt")
        files = list((storage / name).glob("done-*.json"))
        done = sum(len(ExampleIds(json.loads(path.read_text()))) for path in files)
    except (OSError, ValueError, TypeError):  # not written yet, or being replaced
        return None
    return Saved(name, run, done)


def wait_for(found: Callable[[], Any], folder: Path) -> Any:
    """Returns what is found, once there is something."""
    end_s = time.monotonic() + WAIT_S
    while not (result := found()):
        assert time.monotonic() < end_s, logs(folder)
        time.sleep(0.05)
    return result


def logs(folder: Path) -> str:
    return "\n".join(log.read_text()[-3000:] for log in sorted(folder.glob("log-*")))


def trainers() -> list[int]:
    """Returns the training workers among the processes that this test's Ray started."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            above = int(folder.name)
            if not (folder / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                continue
            while above > 1 and above != os.getpid():
                above = parent(above)
        except OSError:  # it has ended
            continue
        if above == os.getpid():
            found.append(int(folder.name))
    return found


def test_a_run_that_is_killed_loses_and_doubles_no_example(
    program: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    endless = program("--epochs", ENDLESS)

    def both() -> list[int]:
        assert endless.poll() is None, logs(tmp_path)
        return found if len(found := trainers()) == 2 else []

    def within(epoch: int) -> Saved | None:
        """Returns the latest checkpoint if it lies in the middle of that epoch or a later one."""
        both()
        saved = latest(tmp_path)
        return saved if saved and saved.run["place"]["epoch"] >= epoch and saved.done else None

    wait_for(lambda: within(0), tmp_path)
    killed = wait_for(both, tmp_path)[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: killed not in (found := both()) and found, tmp_path)
    wait_for(lambda: within(1), tmp_path)
    endless.kill()
    endless.communicate()
    wait_for(lambda: not trainers(), tmp_path)
    saved = latest(tmp_path)
    assert saved
    assert saved.run["trained"].sum() > 0
    epochs = saved.run["place"]["epoch"] + 2
    resumed = program("--epochs", epochs, "--workers", 1)
    printed, _ = resumed.communicate(timeout=WAIT_S)
    assert resumed.returncode == 0, logs(tmp_path)
    ended = latest(tmp_path)
    assert ended
    assert ended.run["trained"].tolist() == [epochs] * ROWS
    before = saved.run["place"]["epochs"]
    assert before == ended.run["place"]["epochs"][: len(before)]  # it began at the checkpoint
    heading, *lines = [line.split() for line in printed.splitlines()[-epochs - 1 :]]
    assert heading[:4] == ["epoch", "examples", "lost", "doubled"]
    assert [line[:4] for line in lines] == [
        [str(number), str(ROWS), "0", "0"] for number in range(epochs)
    ]
