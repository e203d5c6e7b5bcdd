"""The loader when things go wrong: servers, workers and trainers that die, trainers that leave."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from support.thin_rows import write_rows
from support.trainer import Trainer, lines
from support.worlds import OWN_HOST, REPEATS, World, built_world, running_server
from thinrow.client import ClientConfig, Projection
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from thinrow.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECTION = Projection(sequence_length=20)
PATIENT = ClientConfig(retry_deadline_s=60, backoff_max_s=0.2)
OWN_THREADS = ("thinrow", "consume_request_iterator")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[str]:
    with running_server(world.store) as running:
        yield running.address


def assert_no_thread_left() -> None:
    until_s = time.monotonic() + 60
    left = [""]
    while left and time.monotonic() < until_s:
        left = [t.name for t in threading.enumerate() if any(own in t.name for own in OWN_THREADS)]
        time.sleep(0.01)
    assert not left


class Mayhem(threading.Thread):
    """Kills one of two servers at random moments and starts it again, so that one is always up."""

    def __init__(self, world: World, seed: int, kills: int) -> None:
        super().__init__()
        self.kills = 0
        self._world, self._random, self._kills_max = world, random.Random(seed), kills
        self._stack = ExitStack()
        self._servers = [self._start(f"{OWN_HOST}:0") for _ in range(2)]
        self.addresses = [server.address for server in self._servers]

    def _start(self, address: str) -> Any:  # noqa: ANN401
        return self._stack.enter_context(running_server(self._world.store, listen=address))

    def run(self) -> None:
        for number in range(self._kills_max):
            time.sleep(self._random.random() * 0.3)
            victim = number % 2
            self._servers[victim].process.kill()
            self._servers[victim].process.wait()
            self.kills += 1
            self._servers[victim] = self._start(self.addresses[victim])

    def close(self) -> None:
        self.join()
        self._stack.close()


def test_servers_that_die_cost_no_example(tmp_path: Path, world: World) -> None:
    paths = write_rows(tmp_path, [200, 100])
    mayhem = Mayhem(world, seed=int(os.environ.get("THINROW_SEED", "0")), kills=3 * REPEATS)
    config = LoaderConfig(batch_examples=11, lookup_examples=4, client=PATIENT)
    try:
        with ThinRowLoader(paths, mayhem.addresses, PROJECTION, config) as loader:
            mayhem.start()
            while mayhem.is_alive():
                seen = []
                for batch in loader:
                    seen += batch.example_ids.tolist()
                    time.sleep(0.005)
                assert sorted(seen) == list(range(300))
    finally:
        mayhem.close()
    assert mayhem.kills == 3 * REPEATS
    assert_no_thread_left()


def test_a_server_that_stays_away_is_an_error(tmp_path: Path) -> None:
    config = LoaderConfig(client=ClientConfig(retry_deadline_s=0.3))
    with (
        ThinRowLoader(write_rows(tmp_path, [9]), "localhost:1", PROJECTION, config) as loader,
        pytest.raises(UnavailableError, match="localhost:1"),
    ):
        list(loader)
    assert_no_thread_left()


def test_a_loader_is_closed_at_once_while_no_server_answers(tmp_path: Path) -> None:
    config = LoaderConfig(client=ClientConfig(backoff_max_s=0.5, retry_deadline_s=3600))
    loader = ThinRowLoader(write_rows(tmp_path, [9]), "localhost:1", PROJECTION, config)
    closing = threading.Timer(0.5, loader.close)
    closing.start()
    with pytest.raises(Exception, match="closed"):
        list(loader)
    closing.join()
    assert_no_thread_left()


def seen_in(log: Path) -> list[int]:
    return [number for line in lines(log) for number in line["ids"]]


@pytest.mark.parametrize("workers", [None, 2])
def test_a_trainer_that_is_killed_goes_on(tmp_path: Path, server: str, workers: int | None) -> None:
    paths = write_rows(tmp_path, [150, 81])
    log = tmp_path / "log"
    trainer = Trainer(
        paths=paths,
        server=[server],
        log=str(log),
        workers=workers,
        pause_s=0.02,
        batch_events=100,
    )
    rng = random.Random(7)
    for _ in range(REPEATS):
        before = len(seen_in(log))
        process = subprocess.Popen(trainer.command(), start_new_session=True)
        while len(seen_in(log)) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert before < len(seen_in(log)) < 231
    subprocess.run(trainer.command(), check=True, timeout=60)
    assert sorted(seen_in(log)) == list(range(231))


def living() -> Iterator[tuple[int, int, int]]:
    """Every process that still lives, as its own number, its parent's and its session's."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            yield int(path.parent.name), int(fields[1]), int(fields[3])


def in_session(session: int) -> list[int]:
    return [process for process, _, of in living() if of == session]


def children_of(parent: int) -> list[int]:
    return [process for process, of, _ in living() if of == parent]


def test_a_worker_that_is_killed_ends_the_trainer_and_costs_nothing(
    tmp_path: Path, server: str
) -> None:
    log = tmp_path / "log"
    trainer = Trainer(
        paths=write_rows(tmp_path, [150, 81]),
        server=[server],
        log=str(log),
        workers=2,
        pause_s=0.02,
    )
    process = subprocess.Popen(
        trainer.command(), start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    while not seen_in(log) and process.poll() is None:
        time.sleep(0.01)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    # torch notices by a signal or by a look at its workers. Where the trainer was just taking a
    # tensor from the worker, its connection breaks.
    endings = ("is killed by signal", "exited unexpectedly", "Connection")
    assert any(ending in errors for ending in endings), errors
    assert not in_session(process.pid)
    assert 0 < len(seen_in(log)) < 231
    subprocess.run(trainer.command(), check=True, timeout=60)
    assert sorted(seen_in(log)) == list(range(231))


@pytest.mark.parametrize("workers", [None, 2])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, server: str, workers: int | None) -> None:
    log = tmp_path / "log"
    trainer = Trainer(
        paths=write_rows(tmp_path, [400]),
        server=[server],
        log=str(log),
        workers=workers,
        batch_examples=1,
        pause_s=0.05,
    )
    process = subprocess.Popen(
        trainer.command(), start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        while not seen_in(log) and process.poll() is None:
            time.sleep(0.01)
        # As a terminal does: to every process of the group.
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGINT, 130)
        assert "KeyboardInterrupt" in errors
        assert "Fatal" not in errors
        until_s = time.monotonic() + 60
        while in_session(process.pid) and time.monotonic() < until_s:
            time.sleep(0.01)
        assert not in_session(process.pid)
    finally:
        for survivor in in_session(process.pid):
            os.kill(survivor, signal.SIGKILL)
        process.wait()


def test_leaving_the_loop_in_any_way_leaves_no_thread(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [200])
    config = LoaderConfig(batch_examples=4, lookup_examples=4)

    def new() -> ThinRowLoader:
        return ThinRowLoader(paths, server, PROJECTION, config)

    def raises() -> None:
        for _ in new():
            raise ZeroDivisionError

    def raises_within() -> None:
        with new() as loader:
            for _ in loader:
                raise ZeroDivisionError

    def breaks() -> None:
        for _ in new():
            break

    def closes() -> None:
        loader = new()
        iterator = iter(loader)
        next(iterator)
        assert any("thinrow" in thread.name for thread in threading.enumerate())
        loader.close()

    def forgets() -> None:
        next(iter(new()))

    def never_begins() -> None:
        iter(new())

    for leave in (raises, raises_within, breaks, closes, forgets, never_begins):
        with suppress(ZeroDivisionError):
            leave()
        assert_no_thread_left()


FORGETFUL = """
import sys
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, ThinRowLoader
loader = ThinRowLoader(*sys.argv[1:], Projection(), LoaderConfig(batch_examples=1))
batches = iter(loader)
next(batches)
print("done")
"""


def test_a_program_may_end_in_the_middle(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [200])
    run = subprocess.run(
        [sys.executable, "-c", FORGETFUL, paths, server],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "done\n", "")


class MallocInfo(ctypes.Structure):
    """Result of the GNU C library's mallinfo2; the names are its own."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def memory_in_use() -> tuple[int, int]:
    """Bytes of the C library's and Arrow's allocators, and Python's objects.

    Resident memory shows less: each pass has threads of its own, and for up to eight threads a
    core the C library keeps an arena of several MiB, whose memory is free.
    """
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallocInfo
    result = mallinfo2()
    return result.uordblks + result.hblkhd + pa.total_allocated_bytes(), sys.getallocatedblocks()


def test_memory_is_flat_over_thousands_of_tiny_batches(tmp_path: Path, server: str) -> None:
    paths = write_rows(tmp_path, [1000])
    config = LoaderConfig(batch_examples=1, lookup_examples=50)
    passes = 3 * REPEATS
    with ThinRowLoader(paths, server, PROJECTION, config) as loader:
        for _ in range(2):  # whatever is made once
            assert sum(len(batch) for batch in loader) == 1000
        bytes_before, objects_before = memory_in_use()
        for _ in range(passes):
            assert sum(len(batch) for batch in loader) == 1000
        bytes_after, objects_after = memory_in_use()
    assert bytes_after - bytes_before < 1 << 20
    assert objects_after - objects_before < 1000 * passes / 3, "objects of every third batch"
