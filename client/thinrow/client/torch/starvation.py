"""Time that the trainer waited for its batches, by stage of the loader."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, get_args

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Stage", "StageClock", "Starvation"]

Stage = Literal["rows", "lookup", "wire", "widen", "copy"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class StageClock:
    """The loader's activity: spans of time without a gap, each with its stage.

    While the widening thread works, that is the stage; while it rests, it waits for the lookup
    thread, whose stage counts. The trainer reads the spans of its waits and drops older ones.
    """

    def __init__(self, stage: Stage) -> None:
        self._lock = threading.Lock()
        self._lookup: Stage = stage
        self._widen: Stage | None = None
        self._spans: deque[tuple[float, Stage]] = deque([(time.perf_counter(), stage)])
        """Starts and stages, oldest first; each lasts until the next."""

    def enter(self, stage: Stage) -> None:
        """Sets the stage of the lookup thread."""
        with self._lock:
            self._lookup = stage
            self._mark()

    def work(self, stage: Stage) -> None:
        """Sets the stage of the widening thread."""
        with self._lock:
            self._widen = stage
            self._mark()

    def rest(self) -> None:
        """Marks the widening thread as idle."""
        with self._lock:
            self._widen = None
            self._mark()

    def answered(self, since_s: float, server_s: float) -> None:
        """Counts the first `server_s` after `since_s` as `lookup` (the server), not `wire`."""
        worked_s = since_s + server_s
        with self._lock:
            later: list[tuple[float, Stage]] = []
            end_s = time.perf_counter()
            while self._spans and self._spans[-1][0] >= since_s:
                later.append(self._spans.pop())
            while later:
                start_s, stage = later.pop()
                stop_s = later[-1][0] if later else end_s
                if stage == "wire" and start_s < worked_s:
                    self._spans.append((start_s, "lookup"))
                    start_s = min(worked_s, stop_s)
                if start_s < stop_s or not later:
                    self._spans.append((start_s, stage))

    def _mark(self) -> None:
        stage = self._widen or self._lookup
        if self._spans[-1][1] != stage:
            self._spans.append((time.perf_counter(), stage))

    def between(self, start_s: float, stop_s: float) -> dict[Stage, float]:
        """Returns the seconds of each stage in [start_s, stop_s), and drops older spans."""
        seconds: dict[Stage, float] = {}
        with self._lock:
            while self._spans:
                begin_s, stage = self._spans[0]
                end_s = self._spans[1][0] if len(self._spans) > 1 else stop_s
                overlap_s = min(end_s, stop_s) - max(begin_s, start_s)
                if overlap_s > 0:
                    seconds[stage] = seconds.get(stage, 0.0) + overlap_s
                if len(self._spans) == 1 or end_s > stop_s:
                    break
                self._spans.popleft()
        return seconds


class Starvation:
    """The trainer's time, and the parts of it spent waiting for the loader.

    rows: reading thin rows; lookup: the server's work, or waiting for a generation; wire: transport
    and retries; widen: making tensors; copy: copying them to the device.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._waited_s = dict.fromkeys(STAGES, 0.0)
        self._elapsed_s = 0.0
        self._examples: dict[str, int] = {}
        self._lookups = self._groups = 0
        self._metrics = None if registry is None else Metrics(registry)

    @property
    def elapsed_s(self) -> float:
        """Seconds of the trainer in loops over the loader, waiting or not."""
        return self._elapsed_s

    @property
    def waited_s(self) -> dict[Stage, float]:
        """Seconds waited, by stage."""
        return dict(self._waited_s)

    @property
    def share(self) -> float:
        """Share of the time that was waiting, 0 to 1."""
        return sum(self.shares.values())

    @property
    def shares(self) -> dict[Stage, float]:
        """Share of the time that was waiting for each stage; their sum is `share`."""
        return {
            stage: seconds / self._elapsed_s if self._elapsed_s else 0.0
            for stage, seconds in self._waited_s.items()
        }

    @property
    def examples(self) -> dict[str, int]:
        """Examples so far by status, delivered or left out."""
        return dict(self._examples)

    @property
    def lookups(self) -> int:
        """Lookups that were answered."""
        return self._lookups

    @property
    def groups_per_lookup(self) -> float:
        """Mean number of groups of a cluster that a lookup went to; 1 for one server, 0 so far."""
        return self._groups / self._lookups if self._lookups else 0.0

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {share:.1%}" for stage, share in self.shares.items())
        statuses = ", ".join(f"{count} {status}" for status, count in self._examples.items())
        return (
            f"the trainer waited {self.share:.1%} of {self._elapsed_s:.1f} s ({stages}); "
            f"examples: {statuses or 'none'}; groups per lookup: {self.groups_per_lookup:.1f}"
        )

    def __repr__(self) -> str:
        return f"Starvation({self})"

    def waited(self, seconds: dict[Stage, float]) -> None:
        """Adds time waited."""
        for stage, waited_s in seconds.items():
            self._waited_s[stage] += waited_s
            if self._metrics is not None:
                self._metrics.waited.labels(stage).inc(waited_s)

    def elapsed(self, seconds: float) -> None:
        """Adds time of the trainer."""
        self._elapsed_s += seconds
        if self._metrics is not None:
            self._metrics.elapsed.inc(seconds)

    def count(self, statuses: dict[str, int]) -> None:
        """Adds examples by status."""
        for status, count in statuses.items():
            self._examples[status] = self._examples.get(status, 0) + count
            if self._metrics is not None:
                self._metrics.examples.labels(status).inc(count)

    def looked_up(self, groups: int) -> None:
        """Adds a lookup, and the groups of servers that it went to; from one thread only."""
        self._lookups, self._groups = self._lookups + 1, self._groups + groups
        if self._metrics is not None:
            self._metrics.lookups.inc()
            self._metrics.groups.inc(groups)


class Metrics:
    """Counters of Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        try:
            from prometheus_client import Counter
        except ImportError as error:
            raise UsageError(
                "Metrics need prometheus-client: pip install prometheus-client."
            ) from error
        self.elapsed: Any = Counter(
            "thinrow_trainer_seconds",
            "Seconds of the trainer in loops over the loader.",
            registry=registry,
        )
        self.waited: Any = Counter(
            "thinrow_trainer_wait_seconds",
            "Seconds of those that the trainer waited, by stage: rows, lookup, wire, widen, copy.",
            ["stage"],
            registry=registry,
        )
        self.examples: Any = Counter(
            "thinrow_trainer_examples",
            "Examples delivered or left out, by status.",
            ["status"],
            registry=registry,
        )
        self.lookups: Any = Counter(
            "thinrow_trainer_lookups",
            "Lookups of rows that were answered.",
            registry=registry,
        )
        self.groups: Any = Counter(
            "thinrow_trainer_lookup_groups",
            "Groups of servers that those lookups went to; 1 each if there is no cluster.",
            registry=registry,
        )
        for stage in STAGES:
            self.waited.labels(stage)
