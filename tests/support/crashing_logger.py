"""Processes that log until they kill themselves: at the n-th time they are about to touch the disk.

python crashing_logger.py FOLDER PARTS…; each line FIRST N SEED of its input starts a process, which
prints what was acknowledged. N of 0: ends well. The files are in one of the given numbers of parts,
by chance. A line "ended" with its exit status follows. Processes are forked: what they import is
imported once.
"""

from __future__ import annotations

import os
import pathlib
import random
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from thinrow.client.logger import FileOutput, ThinRowLogger

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from support.logged import a_row, config_in, features_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 120
WINDOW_MS = 60


class HeldClock:
    """The time of day, which stands still from a row to its label however busy the machine is."""

    def __init__(self) -> None:
        self._held_ts: int | None = None

    def __call__(self) -> int:
        held_ts = self._held_ts
        return time.time_ns() // 1_000_000 if held_ts is None else held_ts

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held_ts = self()
        try:
            yield
        finally:
            self._held_ts = None


def armed(countdown: int, rng: random.Random) -> None:
    """Replaces what writes by what may die before, while or after it."""
    left = [countdown]

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            left[0] -= 1
            if left[0] == 0:
                kind = rng.randrange(3)
                if kind == 1 and call is pwrite:
                    file, data, offset = arguments
                    pwrite(file, data[: rng.randrange(len(data))], offset)
                elif kind == 2:
                    call(*arguments, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return calling

    pwrite = os.pwrite
    for name in ("pwrite", "fdatasync", "fsync"):
        setattr(os, name, wrapped(getattr(os, name)))
    for name in ("rename", "unlink", "mkdir"):
        setattr(pathlib.Path, name, wrapped(getattr(pathlib.Path, name)))


def log(folder: pathlib.Path, row_parts: list[int], first: int, countdown: int, seed: int) -> None:
    rng = random.Random(seed)
    files = FileOutput(
        folder=folder / "rows",
        part_ms=rng.choice((0, 50)),
        part_rows=20,
        row_parts=rng.choice(row_parts),
    )
    config = config_in(
        folder,
        join_window_ms=WINDOW_MS,
        files=files,
        segment_bytes=rng.choice((1_000, 20_000)),
        commit_ms=1,
    )
    if countdown:
        armed(countdown, rng)
    clock = HeldClock()
    with ThinRowLogger(config, clock=clock) as logger:
        unknown: list[int] = []
        for n in range(first, first + ROWS):
            row = a_row(n, request_ts=1_000_000 + n % 3 * 3_600_000)
            with clock.held():
                logger.log(f"r{n}", row, features_of(n))
                logger.label(f"r{n}", {"click": 1})
            unknown.append(n)
            if rng.random() < 0.3:
                logger.flush()
                print(*unknown, flush=True)
                unknown.clear()
            time.sleep(rng.uniform(0, 0.004))
        if not countdown:
            logger.flush()
            print(*unknown, flush=True)
            logger.drain(30)


def main() -> None:
    folder, row_parts = pathlib.Path(sys.argv[1]), [*map(int, sys.argv[2:])]
    pa.array([0])  # the first such call imports pandas, where it is installed
    for line in iter(sys.stdin.readline, ""):
        started = os.fork()
        if not started:
            log(folder, row_parts, *map(int, line.split()))
            return
        _, status = os.waitpid(started, 0)
        # Who was killed may have left a line without its end.
        print("\nended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
