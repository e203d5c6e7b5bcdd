"""A process that logs until it kills itself: at the n-th time it is about to touch the disk.

python crashing_logger.py FOLDER FIRST N SEED PARTS…; prints what was acknowledged. N of 0: ends
well. The files are in one of the given numbers of parts, by chance.
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


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    first, countdown, seed, *row_parts = map(int, sys.argv[2:])
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


if __name__ == "__main__":
    main()
