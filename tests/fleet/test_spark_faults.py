"""Faults of a cluster of Spark: executors, shuffles, twins, disks and other software.

Whatever fails, the generation is what the embedded engine builds, or there is none and the last one
serves; run again, it ends as if nothing had failed.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from support.spark_cluster import EXECUTOR_DISK_BYTES
from support.spark_worlds import FILES, SHARDS, SparkWorld
from support.task_hooks import Fault, Hook, Patch, hooked, other_version
from support.tried import SEED, Tried, times
from thinrow.errors import EngineError, StoreFullError, ThinRowError
from thinrow.remote.copies import ROOM_SPARE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.spark_cluster import Sparked

pytestmark = pytest.mark.timeout(1800)
READ = "thinrow.engines.spark.reading.read_events"
FINISH = "thinrow.engines.spark.building.finish_shard"
UPLOAD_ALL = "thinrow.engines.spark.building.upload_files"
UPLOAD_ONE = "thinrow.remote.object_store.ObjectStore.upload"
PAGE_BYTES = 4096
RIGHT = "0 lost, doubled or wrong"


def faults(folder: Path, *wanted: tuple[str, str, str]) -> list[Fault]:
    """Faults of which each happens once: act, function, and before or after it."""
    found = []
    for number, (act, name, when) in enumerate(wanted):
        traces = folder / f"traces-{len(list(folder.glob('traces-*')))}-{number}"
        traces.mkdir()
        found.append(Fault(name, act, traces, when="before" if when == "before" else "after"))
    return found


def build_with(world: SparkWorld, spark: Sparked, *hooks: Hook) -> None:
    """Builds generation 2 with hooks, and compares what it holds and answers."""
    with hooked(spark.hooks, *hooks):
        world.build(4)
    world.build_locally(4)
    world.check(3, 4)


def test_executors_are_killed(
    cluster_spark: Sparked, new_world: Callable[[], SparkWorld], tmp_path: Path
) -> None:
    """SIGKILL to an executor while it reads, while it builds, and between two uploads."""
    places = (
        ("kill_executor", READ, "before"),
        ("kill_executor", FINISH, "before"),
        ("kill_executor", UPLOAD_ONE, "after"),
    )
    garbage = tries = 0
    for _ in range(times(1, 10)):
        world = new_world()
        hooks = faults(tmp_path, *places)
        build_with(world, cluster_spark, *hooks)
        assert [one.count for one in hooks] == [1, 1, 1]
        garbage += world.check_no_garbage_left()
        tries += len(places)
    assert garbage > 0, "no executor was killed after an upload"
    Tried(
        "`--engine spark`: SIGKILL to an executor that reads, builds or uploads",
        tries,
        "Tasks run again; the generation is the embedded engine's; gc removes what the dead wrote",
        f"{RIGHT}; {garbage} objects of killed attempts, all removed",
    ).keep()


def test_python_of_tasks_is_killed(
    cluster_spark: Sparked, new_world: Callable[[], SparkWorld], tmp_path: Path
) -> None:
    """The kernel does so where memory ends; the executor lives on."""
    places = (
        ("kill_worker", READ, "after"),
        ("kill_worker", UPLOAD_ALL, "after"),
    )
    tries = 0
    for _ in range(times(1, 10)):
        world = new_world()
        hooks = faults(tmp_path, *places)
        build_with(world, cluster_spark, *hooks)
        assert [one.count for one in hooks] == [1, 1]
        tries += len(places)
    Tried(
        "`--engine spark`: SIGKILL to the Python process of a task",
        tries,
        "The task runs again; the generation is the embedded engine's",
        RIGHT,
    ).keep()


def test_shuffle_files_are_lost(
    cluster_spark: Sparked, new_world: Callable[[], SparkWorld], tmp_path: Path
) -> None:
    """Later shards cannot fetch their events (FetchFailed), so that slices are read again."""
    tries = again = 0
    for _ in range(times(1, 20)):
        world = new_world()
        traces = [tmp_path / f"{name}-{tries}" for name in ("lost", "read")]
        for folder in traces:
            folder.mkdir()
        lost = Fault(
            UPLOAD_ALL, "lose_shuffle", traces[0], when="after", argument=cluster_spark.folder
        )
        # The survey reads each slice once, and the scatter once.
        read = Fault("thinrow.engines.spark.reading.Scatter", "note", traces[1], 1000)
        build_with(world, cluster_spark, lost, read)
        assert lost.count == 1
        again += read.count - 2 * FILES
        tries += 1
    assert again > 0, "no slice was read again"
    Tried(
        "`--engine spark`: shuffle files lost after the first shard was built",
        tries,
        "Slices are read again for the other shards; the generation is the embedded engine's",
        f"{RIGHT}; {again // 2} slices read again",
    ).keep()


def test_two_attempts_of_a_shard_upload(
    cluster_spark: Sparked, new_world: Callable[[], SparkWorld], tmp_path: Path
) -> None:
    """Speculation: the first attempt waits, once it has uploaded, until its twin has, too."""
    tries = 0
    for _ in range(times(1, 10)):
        world = new_world()
        folder = tmp_path / f"twins-{tries}"
        folder.mkdir()
        shard = f"shard-{SHARDS - 1:04d}"
        twins = Fault(UPLOAD_ALL, "wait_for_twin", folder, 2, when="after", only=f"/{shard}/")
        build_with(world, cluster_spark, twins)
        assert twins.count == 2
        attempts, serving = (
            {key.split("/")[3] for key in keys if f"/{shard}/stage-" in key}
            for keys in (world.remote.keys(), world.remote.current().keys)
        )
        assert len(attempts) == 2
        assert len(serving) == 1
        assert world.check_no_garbage_left() > 0
        world.check(3, 4)
        tries += 1
    Tried(
        "`--engine spark`: two attempts of a task that both upload a shard (speculation)",
        tries,
        "The generation has the objects of one attempt; gc removes the other's",
        f"{RIGHT}; never files of both",
    ).keep()


def test_an_executor_with_other_software(
    cluster_spark: Sparked, new_world: Callable[[], SparkWorld]
) -> None:
    world = new_world()
    before = world.remote.keys()
    other = Patch("thinrow.engines.spark.tasks.version", other_version)
    with (
        hooked(cluster_spark.hooks, other),
        pytest.raises(EngineError, match=r"^An executor has thinrow 0\.0\.9, and the driver .*\.$"),
    ):
        world.build(4)
    assert world.remote.keys() == before
    build_with(world, cluster_spark)
    Tried(
        "`--engine spark`: executors with another version of the software",
        1,
        "Refused in one sentence before anything is written",
        "1 refused by name, 0 objects written",
    ).keep()


def test_the_disk_of_an_executor_is_full(
    cluster_spark: Sparked, new_world: Callable[[], SparkWorld]
) -> None:
    """Tasks fail there, and may succeed elsewhere, with room for some bytes drawn by chance."""
    disk, rng, seen = cluster_spark.disk, random.Random(SEED), Counter[str]()
    if disk is None:
        pytest.skip("needs the right to mount a tmpfs, which root has on a machine of its own")
    for number in range(times(1, 20)):
        world = new_world()
        before = world.remote.objects.read("CURRENT", 1 << 20)
        room = 0 if number == 0 else rng.choice((0, ROOM_SPARE_BYTES)) + rng.randrange(200_000)
        disk.leave(room)
        assert shutil.disk_usage(disk.path).free <= room + PAGE_BYTES
        try:
            world.build(4)
            seen["ended right"] += 1
        except ThinRowError as error:
            assert "\n" not in str(error)
            assert isinstance(error, StoreFullError) or "No space left on device" in str(error)
            assert world.remote.objects.read("CURRENT", 1 << 20) == before
            seen["refused"] += 1
        finally:
            disk.resize(EXECUTOR_DISK_BYTES)
        world.build(4)  # does nothing where it ended
        world.build_locally(4)
        world.check(3, 4)
    Tried(
        "`--engine spark`: the disk of one of two executors is full, or nearly",
        sum(seen.values()),
        "Tasks succeed elsewhere, or the run is refused in one sentence; with room it ends right",
        f"{seen['ended right']} ended right, {seen['refused']} refused by name; {RIGHT}",
    ).keep()
