"""Drivers of Spark that are killed or overtaken, object stores that fail, and mistakes of users."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_store import sample
from support.spark_cluster import MASTER, properties
from support.spark_worlds import HOUR_MS, SparkWorld
from support.task_hooks import Fault, write_hooks
from support.tried import SEED, Tried, times
from support.worlds import as_of, thinrow
from thinrow.errors import StoreCorruptError, StoreLockedError
from thinrow.remote import publication
from thinrow.remote.current import require_current
from thinrow.remote.gc import collect_garbage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.object_storage import ObjectStorage

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("local_spark")]
RIGHT = "0 lost, doubled or wrong"
KINDS = ("truncated", "flipped", "lost", "swapped")

DIES = """
import os, signal, sys
from thinrow.remote import publication
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] != "-":
    setattr(publication, sys.argv[1], die)
del sys.argv[1]
from thinrow.cli.entry import main
main()
"""


def command(world: SparkWorld, day: int) -> list[str]:
    """The command that builds a generation at the URL on Spark."""
    files = map(str, world.files(day))
    options = ["--store", world.url, "--watermark", str(as_of(day)), "--time-unit", "ms"]
    return ["compact", *files, *options, "--engine", "spark"]


def killed_driver(world: SparkWorld, step: str, folder: Path, *hooks: Fault) -> None:
    """Runs the command in a process that is killed before a step of publication, or by a task."""
    folder.mkdir()
    write_hooks(folder / "hooks", hooks)
    wanted = {**properties(folder, spark_master="local[2]"), "spark.driver.host": MASTER}
    options = [part for pair in wanted.items() for part in ("--spark-conf", "=".join(pair))]
    ended = subprocess.run(
        [sys.executable, "-c", DIES, step, *command(world, 4), *options],
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


@pytest.mark.parametrize("step", ["upload", "_create_root", "_swap"])
def test_the_driver_is_killed(
    new_world: Callable[[], SparkWorld], step: str, tmp_path: Path
) -> None:
    """While tasks upload, before the root manifest, and after it, before CURRENT."""
    garbage, tries = 0, times(1, 5)
    for number in range(tries):
        world = new_world()
        before = world.remote.objects.read("CURRENT", 1 << 20)
        traces = tmp_path / f"traces-{number}"
        traces.mkdir()
        upload = "thinrow.remote.object_store.ObjectStore.upload"
        # The vocabulary was uploaded before, by the driver.
        kill = [Fault(upload, "kill_driver", traces, when="after")] if step == "upload" else []
        name = "-" if step == "upload" else step
        killed_driver(world, name, tmp_path / f"killed-{number}", *kill)
        assert world.remote.objects.read("CURRENT", 1 << 20) == before
        claimed = step == "_swap"
        assert world.build(4).generation == (3 if claimed else 2)
        if claimed:
            highest = world.remote.local.store / "HIGHEST"
            highest.write_text("generation-000002\n", encoding="utf-8")
        world.build_locally(4)
        world.check(3, 4)
        garbage += world.check_no_garbage_left()
        world.check(3, 4)
    assert garbage > 0
    when = {"upload": "while tasks upload", "_create_root": "before the root manifest"}
    Tried(
        f"`--engine spark`: SIGKILL to the driver {when.get(step, 'before CURRENT')}",
        tries,
        "The last generation serves; the next run works, under a number of its own; gc cleans up",
        f"{RIGHT}; {garbage} objects removed",
    ).keep()


def test_objects_of_the_last_generation_are_damaged(new_world: Callable[[], SparkWorld]) -> None:
    """Whatever a run builds on is verified: nothing is published, and repaired it goes on."""
    world = new_world()
    before = world.remote.objects.read("CURRENT", 1 << 20)
    keys = sorted(world.remote.current().keys)
    tables = [key for key in world.remote.tables() if "shard-0001" not in key]
    # Nothing of an empty file can be altered; a table is swapped for another one.
    sizes = {one.key: one.bytes for one in world.remote.objects.listed()}
    cases = [
        (key, kind)
        for key in keys
        for kind in KINDS
        if (kind == "lost" or sizes[key]) and (kind != "swapped" or key in tables)
    ]
    chosen = [(tables[0], kind) for kind in KINDS]
    chosen += sample(cases, times(1, len(cases)), SEED)
    for key, kind in chosen:
        whole = world.remote.objects.read(key, 1 << 30)
        assert whole is not None
        world.remote.damage(key, kind)
        with pytest.raises(StoreCorruptError) as raised:
            world.build(4)
        assert key in str(raised.value)
        assert "\n" not in str(raised.value)
        world.remote.objects.write(key, whole.data)
    assert world.remote.objects.read("CURRENT", 1 << 20) == before
    world.build(4)
    world.build_locally(4)
    world.check(3, 4)
    Tried(
        "`--engine spark`: objects of the last generation truncated, flipped, lost or swapped",
        len(chosen),
        "The run names the object and publishes nothing; once restored, it ends right",
        f"{len(chosen)} named, 0 built on; {RIGHT}",
    ).keep()


def test_the_object_store_refuses_for_a_while(
    new_world: Callable[[], SparkWorld], object_storage: ObjectStorage
) -> None:
    """503 to reads and writes, and answers to writes that are lost, of tasks and of the driver."""
    world, tries = new_world(), 0
    cases = [("refused", "GET"), ("refused", "PUT"), ("lost", "PUT")]
    for day in range(4, 4 + times(3, 21)):
        kind, method = cases[day % len(cases)]
        object_storage.fail(kind, method, 4, "runs/" if kind == "lost" else "")
        try:
            world.build(day)
        finally:
            object_storage.fail(kind, method, 0)
        world.build_locally(day)
        world.check(3, day)
        tries += 1
    world.check_no_garbage_left()
    Tried(
        "`--engine spark`: the object store answers 503, or loses answers to uploads",
        tries,
        "Requests are repeated; the generation is the embedded engine's",
        RIGHT,
    ).keep()


def beside_commit(act: Callable[[], object]) -> mock._patch[object]:
    """Does something when all is built and uploaded, before anything is published."""

    def commit(*arguments: Any) -> None:  # noqa: ANN401
        act()
        publication.commit(*arguments)

    return mock.patch("thinrow.engines.spark.compact.commit", commit)


def test_another_run_publishes_meanwhile(new_world: Callable[[], SparkWorld]) -> None:
    world = new_world()
    with (
        beside_commit(lambda: world.build_embedded(5)),
        pytest.raises(StoreLockedError, match="Another run has published"),
    ):
        world.build(4)
    world.build_locally(5)
    world.check(3, 5)
    world.build(6)
    world.build_locally(6)
    world.check(3, 5, 6)
    assert world.check_no_garbage_left() > 0
    Tried(
        "`--engine spark`: another run publishes while tasks build",
        1,
        "One of them is published, the other is refused by name; the next builds on the first",
        f"1 refused, {RIGHT}",
    ).keep()


def test_gc_runs_during_a_build(new_world: Callable[[], SparkWorld]) -> None:
    """Within its grace period nothing of a run goes; later all may go, and the run sees that."""
    world = new_world()
    world.build(4)
    world.build_locally(4)

    def collect(grace_ms: int) -> None:
        objects = world.remote.objects
        collect_garbage(objects, keep=1, withdrawn=True, grace_ms=grace_ms)

    with beside_commit(lambda: collect(HOUR_MS)):
        world.build(5)
    world.build_locally(5)
    world.check(3, 4, 5)
    with (
        beside_commit(lambda: collect(-HOUR_MS)),
        pytest.raises(StoreCorruptError, match="it is gone"),
    ):
        world.build(6)
    assert require_current(world.remote.objects).record.history == [3]
    world.check(3, 4, 5)
    world.build(6)
    world.build_locally(6)
    world.check(3, 4, 5, 6)
    world.check_no_garbage_left()
    Tried(
        "`--engine spark`: gc while tasks build, within its grace period and after it",
        2,
        "Within it nothing of a run goes; a run that lost objects publishes nothing, and says so",
        f"1 published, 1 refused; {RIGHT}",
    ).keep()


def test_a_mistake_of_a_user_is_one_sentence(
    new_world: Callable[[], SparkWorld], tmp_path: Path
) -> None:
    """Found by a task, and said as the embedded engine says it."""
    world = new_world()
    first, *rest = world.files(4)
    table = pq.read_table(first)
    bad = pa.array([None, *table.column("user_id").to_pylist()[1:]], pa.int64())
    pq.write_table(table.set_column(0, "user_id", bad), tmp_path / "bad.parquet")
    arguments = command(world, 4)
    arguments[1] = str(tmp_path / "bad.parquet")
    assert str(rest[0]) in arguments
    keys = world.remote.keys()
    wanted = properties(tmp_path, spark_master="local[2]")
    del wanted["spark.log.level"]
    options = [part for pair in wanted.items() for part in ("--spark-conf", "=".join(pair))]
    shown = []
    for command_line in ([*arguments, *options], [*arguments[:-1], "embedded"]):
        ended = thinrow(*command_line, timeout_s=600)
        assert ended.returncode == 2, ended.stderr
        # pyspark's own daemon may report that the program, and so its socket, has gone.
        for stack in ("THINROW_TASK", "thinrow/engines", "\tat "):
            assert stack not in ended.stderr
        shown.append(ended.stderr.splitlines()[-1])
    assert shown[0] == shown[1]
    assert shown[0].startswith(f"Error: {tmp_path}/bad.parquet")
    assert world.remote.keys() == keys
    Tried(
        "`--engine spark`: events that cannot be used",
        1,
        "One sentence, the embedded engine's; nothing is published",
        "1 refused by name",
    ).keep()


def test_spark_connect(new_world: Callable[[], SparkWorld], tmp_path: Path) -> None:
    """A driver that has no Spark of its own, but a server's; tasks, errors and all are the same."""
    pytest.importorskip("grpc_status", reason="grpcio-status is not installed: make spark")
    world = new_world()
    options = ["--spark-conf", "spark.remote=local[2]"]
    program = "import sys; sys.argv[0] = 'thinrow'; from thinrow.cli.entry import main; main()"
    environment = {**os.environ, "SPARK_LOCAL_IP": MASTER, "SPARK_LOCAL_DIRS": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *command(world, 4), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    world.build_locally(4)
    world.check(3, 4)
