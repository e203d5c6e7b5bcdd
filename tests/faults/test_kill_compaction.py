"""Compaction killed: the old generation or the new one serves, whole; run again it ends the same.

At each of its steps on the file system in turn, by its own hand, and at moments drawn by chance
between, when RocksDB is at work.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.paths import SUPPORT
from support.small_store import copied, sample
from support.store_contents import Contents, contents
from support.tried import FULL, SEED, Tried, times
from support.worlds import (
    THINROW,
    Answers,
    World,
    compact_command,
    cpu_s,
    days,
    leftovers,
    let_work,
    new_world,
    pointers_to,
    read_store,
    some_events,
)
from thinrow.compaction.compact import compact
from thinrow.errors import StoreMissingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.compaction.config import CompactionConfig

STEPS = SUPPORT / "steps.py"
EVERY_STEP = 1000
DAYS = (3, 5) if FULL else (3,)
"""The first build goes up to day 3, the increment to 5; hazards/test_crash.py kills that, too."""
USERS = range(1, 51)
OLD, NEW = pointers_to(days(3), USERS), pointers_to(days(3, 5), USERS)


@dataclass(frozen=True)
class Build:
    """A compaction to be killed, and what it makes of the store when it is not."""

    world: World
    day: int
    before: Answers | None
    after: Answers
    contents: Contents
    steps: int
    work_s: float
    """CPU time from the first file written to the end."""

    @property
    def events(self) -> str:
        return f"events-{self.day}.parquet"

    def again(self, world: World) -> CompactionConfig:
        return world.compaction([world.folder / self.events], self.day, keep=1)

    def check_killed(self, world: World) -> str:
        """Reads the store that serves now."""
        lookups = OLD if self.day == 3 else NEW
        try:
            answers = read_store(world.store, lookups)
        except StoreMissingError:
            assert self.before is None
            serving = "old"
        else:
            serving = "new" if answers == self.after else "old"
            assert answers in (self.before, self.after)
        compact(self.again(world))
        assert contents(world.store) == self.contents
        assert leftovers(world.store) == []
        assert len(list(world.store.glob("generation-*"))) == 1
        return serving


@pytest.fixture(scope="module", params=DAYS)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The first build of a store, or an increment of it."""
    day = request.param
    world = new_world(tmp_path_factory.mktemp("world") / "world")
    first, later = some_events(4000, users=50), some_events(3000, users=50, days=2, first_day=3)
    before = None
    if day == 5:
        world.compact(first, 3)
        before = read_store(world.store, NEW)
    events = later if day == 5 else first
    world.write(f"events-{day}.parquet", events)
    whole = copied(world, tmp_path_factory.mktemp("whole") / "world")
    with started(whole, day, 0) as process:
        until_building(whole, process)
        start_s = cpu_s(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        work_s = cpu_s(process.pid) - start_s
        _, result = process.communicate()
    [steps] = re.findall(r"steps: (\d+)", result.decode())
    after = read_store(whole.store, NEW if day == 5 else OLD)
    return Build(world, day, before, after, contents(whole.store), int(steps), work_s)


def started(world: World, day: int, step: int) -> subprocess.Popen[bytes]:
    """The command, to kill itself at a step; at none for 0."""
    command = compact_command(world, [world.folder / f"events-{day}.parquet"], day)
    command += ["--shards=2", "--keep=1"]
    return subprocess.Popen(
        [sys.executable, STEPS, str(step), world.store, *command[len(THINROW) :]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def until(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not happened() and process.poll() is None:
        time.sleep(0.0005)


def until_building(world: World, process: subprocess.Popen[bytes]) -> None:
    until((world.store / "building").exists, process)


@pytest.mark.timeout(3600)
def test_killed_at_every_step(build: Build, tmp_path: Path) -> None:
    served = {"old": 0, "new": 0}
    steps = sample(list(range(1, build.steps + 1)), times(1, EVERY_STEP), SEED)
    for step in steps:
        world = copied(build.world, tmp_path / f"killed-{step}")
        with started(world, build.day, step) as process:
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        served[build.check_killed(world)] += 1
        shutil.rmtree(world.folder)
    keep(build, "each of its steps on the file system, in turn", served)


@pytest.mark.timeout(3600)
def test_killed_at_any_moment(build: Build, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    served = {"old": 0, "new": 0}
    for number in range(times(1, 30)):
        world = copied(build.world, tmp_path / f"killed-{number}")
        with started(world, build.day, 0) as process:
            until_building(world, process)
            let_work(process, rng.uniform(0, build.work_s))
            process.kill()
        served[build.check_killed(world)] += 1
        shutil.rmtree(world.folder)
    assert served["old"] or not FULL, "no run was killed in the middle of its work"
    keep(build, "moments drawn by chance", served)


def keep(build: Build, when: str, served: dict[str, int]) -> None:
    Tried(
        fault=f"`thinrow compact`, {'increment' if build.before else 'first build'}: SIGKILL at "
        f"{when}",
        times=sum(served.values()),
        promised="The old generation or the new one, whole; run again, it ends as if never killed",
        seen=f"{served['old']} served the old, {served['new']} the new; 0 wrong, 0 left lying",
    ).keep()
