"""Compared sides: they make the same tensors, done in turn, with their clocks and costs."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Tensors = list[torch.Tensor]
"""Offsets and one tensor per trait, all int64."""

BATCHES_AHEAD = 2
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Side(Protocol):
    """One way to the tensors."""

    @property
    def name(self) -> str:
        """Name in the tables."""

    @property
    def pids(self) -> Sequence[int]:
        """Processes of the side other than this one."""

    def batches(self) -> Iterator[Tensors]:
        """All batches once."""


@dataclass(kw_only=True)
class Figures:
    """Times of one side, without the warm-up round."""

    examples: int = 0
    events: int = 0
    """Figures of one round."""
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    batch_s: list[float] = field(default_factory=list)

    @property
    def round_s(self) -> float:
        """Median seconds of a round."""
        return median(self.seconds)

    @property
    def best_s(self) -> float:
        """Seconds of the fastest round, for what is a limit."""
        return min(self.seconds)

    @property
    def events_per_s(self) -> float:
        return self.events / self.round_s

    @property
    def cpu_s_per_million(self) -> float:
        """Seconds of processor, all processes, per million events."""
        return 1e6 * sum(self.cpu_s) / len(self.cpu_s) / self.events

    def batch_ms(self, percentile: float) -> float:
        """Time that the consumer waited for each batch."""
        return float(np.percentile(self.batch_s, percentile)) * 1000


def measure(
    sides: Iterable[Side],
    reference: Callable[[], Iterator[Tensors]],
    rounds: int,
    report: Callable[[str], None],
    limits: Iterable[Side] = (),
) -> tuple[dict[str, Figures], float]:
    """Compares every side's tensors with the reference, then times sides and limits in turn.

    Also returns the cores that other processes used meanwhile; there should be none.


    report: Receives the name of the next step; the first round does not count.
    limits: what makes no tensors, so there is nothing to compare.
    """
    sides = list(sides)
    for side in sides:
        report(f"checking {side.name}")
        check_equal(side, reference())
    figures: dict[str, Figures] = defaultdict(Figures)
    for number in range(rounds + 1):
        report(f"round {number} of {rounds}")
        if number == 1:
            start_s, busy_s = time.perf_counter(), machine_s()
        for side in (*sides, *limits):
            once(side, figures[side.name] if number else Figures())
    ours_s = sum(sum(one.cpu_s) for one in figures.values())
    others = (machine_s() - busy_s - ours_s) / (time.perf_counter() - start_s)
    return dict(figures), max(0.0, others)


def once(side: Side, figures: Figures) -> None:
    """Takes all batches of a side, as a trainer that does nothing would."""
    figures.examples = figures.events = 0
    cpu_s = processor_s(side.pids)
    start_s = last_s = time.perf_counter()
    for tensors in side.batches():
        now_s = time.perf_counter()
        figures.batch_s.append(now_s - last_s)
        last_s = now_s
        figures.examples += len(tensors[0]) - 1
        figures.events += int(tensors[0][-1])
    figures.seconds.append(time.perf_counter() - start_s)
    figures.cpu_s.append(processor_s(side.pids) - cpu_s)


def check_equal(side: Side, reference: Iterator[Tensors]) -> None:
    """Every value must be the same."""
    for number, (ours, theirs) in enumerate(zip(side.batches(), reference, strict=True)):
        equal = len(ours) == len(theirs) and all(
            mine.dtype == torch.int64 and torch.equal(mine, other)
            for mine, other in zip(ours, theirs, strict=True)
        )
        if not equal:
            raise SystemExit(f"{side.name}: batch {number} differs. Nothing was measured.")


def processor_s(pids: Sequence[int]) -> float:
    """Seconds of processor so far of this process and of others, their ended children included."""
    return sum(process_s(pid) for pid in (os.getpid(), *pids))


def process_s(pid: int) -> float:
    """Seconds of processor so far of one process, its ended children included."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(part) for part in stat[11:15]) / TICKS_PER_S


def machine_s() -> float:
    """Seconds of processor so far of everything on this machine, stolen time included."""
    ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS_PER_S


def ahead(batches: Iterator[Tensors]) -> Iterator[Tensors]:
    """The same batches, made by a thread that is some of them ahead, as our own loader is."""
    made: queue.Queue[Tensors | BaseException | None] = queue.Queue(BATCHES_AHEAD)

    def make() -> None:
        try:
            for tensors in batches:
                made.put(tensors)
            made.put(None)
        except BaseException as error:
            made.put(error)

    threading.Thread(target=make, daemon=True).start()
    while (tensors := made.get()) is not None:
        if isinstance(tensors, BaseException):
            raise tensors
        yield tensors
