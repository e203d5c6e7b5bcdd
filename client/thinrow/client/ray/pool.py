"""An elastic pool of actors that look rows up, for trainers on Ray."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import ray
from thinrow.client.ray.scaling import ScalingLimits, wanted_actors
from thinrow.client.torch.starvation import Starvation
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.data import ReadTask
    from thinrow.client.ray.datasource import ThinRowDatasource

__all__ = ["LookupPool"]

TASKS_PER_ACTOR = 2
"""Tasks that are in flight or wait for the trainer, per actor: one is done while one is read."""
RESTARTS_MAX = 3
"""Times that Ray restarts an actor that died, and repeats its task."""


class LookupActor:
    """Runs tasks of a datasource."""

    def ready(self) -> None:
        """Returns once the actor runs."""

    def look_up(self, task: ReadTask) -> tuple[pa.Table | None, float]:
        """Returns a task's answers, None if all of its rows are done, and the seconds it took."""
        start_s = time.perf_counter()
        tables = list(task())
        answers = pa.concat_tables(tables) if tables else None
        return answers, time.perf_counter() - start_s


@dataclass(slots=True)
class Interval:
    """Sums since the last decision."""

    elapsed_s: float = 0.0
    waited_s: float = 0.0
    actors_s: float = 0.0
    busy_s: float = 0.0
    ended: int = 0


class LookupPool:
    """Looks rows up in actors whose number follows the trainer. For `RayBatches`, as a dataset.

    ::

        with LookupPool(source, limits=ScalingLimits(actors_max=8)) as pool:
            for batch in RayBatches(pool, config, done):
                train(batch)

    Every `interval_s`, `wanted_actors` decides from the share of time that the trainer waited and
    the share that the actors were idle. An actor is given tasks once it runs, so that one for
    which the cluster has no room delays nothing; one that is no longer wanted first ends its task.

    Args:
        source: The rows, server and projection.
        limits: Limits of the pool.
        tasks: Number of tasks into which the rows of all ranks are cut, about.
        rank: This trainer's number; each rank has a pool and tasks of its own.
        world_size: Number of trainers.
        actor_cpus: CPUs that Ray reserves for an actor.
        interval_s: Seconds between two decisions.

    Raises:
        UsageError: A value is out of its range.
    """

    def __init__(
        self,
        source: ThinRowDatasource,
        *,
        limits: ScalingLimits | None = None,
        tasks: int = 1024,
        rank: int = 0,
        world_size: int = 1,
        actor_cpus: float = 1.0,
        interval_s: float = 5.0,
    ) -> None:
        if tasks < 1 or actor_cpus < 0 or interval_s < 0:
            raise UsageError("tasks is 1 or more; actor_cpus and interval_s are 0 or more.")
        if not 0 <= rank < world_size:
            raise UsageError("rank counts from 0 and is below world_size.")
        self._tasks = source.get_read_tasks(tasks)[rank::world_size]
        self._limits = limits or ScalingLimits()
        self._interval_s = interval_s
        # SPREAD also keeps actors out of a placement group of the trainer, which has no room.
        self._actor: Any = ray.remote(LookupActor).options(
            num_cpus=actor_cpus,
            max_restarts=RESTARTS_MAX,
            max_task_retries=RESTARTS_MAX,
            scheduling_strategy="SPREAD",
        )
        self._starting: dict[Any, Any] = {}
        """Actors that do not run yet, by the reference that says they do."""
        self._busy: dict[Any, tuple[Any, Any]] = {}
        """Actors with a task and the reference to its answers, by that to its seconds."""
        self._idle: list[Any] = []
        self._wanted = 0
        self._interval = Interval()
        self.starvation = Starvation()
        """The trainer's time, and the part of it that waited for lookups."""
        self.sizes: list[int] = []
        """Numbers of actors that were decided on, from the first on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all actors; tasks in flight are lost and are not done."""
        for actor in [
            *self._idle,
            *self._starting.values(),
            *(actor for actor, _ in self._busy.values()),
        ]:
            ray.kill(actor)
        self._idle, self._starting, self._busy = [], {}, {}

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        """Yields the answers of each task once, in the order in which tasks end."""
        waiting, ready = deque(self._tasks), deque[Any]()
        self._resize(self._limits.actors_min)
        self.sizes = [self._limits.actors_min]
        try:
            while True:
                start_s = time.perf_counter()
                actors = self._actors
                self._assign(waiting, ready)
                if not ready and not waiting and not self._busy:
                    return
                self._collect(ready, waits=not ready)
                self._assign(waiting, ready)
                answers = ray.get(ready.popleft()) if ready else None
                waited_s = time.perf_counter() - start_s
                if answers is not None:
                    yield answers
                self._count(actors, waited_s, time.perf_counter() - start_s)
                self._decide()
        finally:
            self.close()

    @property
    def _actors(self) -> int:
        """Actors that run."""
        return len(self._idle) + len(self._busy)

    def _assign(self, waiting: deque[ReadTask], ready: deque[Any]) -> None:
        """Gives tasks to idle actors while the trainer keeps up."""
        tasks_max = TASKS_PER_ACTOR * self._actors
        while waiting and self._idle and len(self._busy) + len(ready) < tasks_max:
            actor = self._idle.pop()
            answers, seconds = actor.look_up.options(num_returns=2).remote(waiting.popleft())
            self._busy[seconds] = actor, answers

    def _collect(self, ready: deque[Any], *, waits: bool) -> None:
        """Takes in actors that have started or ended a task; waits for one if `waits`."""
        pending = [*self._starting, *self._busy]
        if not pending:
            return
        ended, _ = ray.wait(
            pending, num_returns=1 if waits else len(pending), timeout=None if waits else 0
        )
        for reference in ended:
            seconds = ray.get(reference)
            if reference in self._starting:
                actor = self._starting.pop(reference)
            else:
                actor, answers = self._busy.pop(reference)
                ready.append(answers)
                self._interval.busy_s += seconds
                self._interval.ended += 1
            self._idle.append(actor)
        self._release()

    def _count(self, actors: int, waited_s: float, elapsed_s: float) -> None:
        """Adds a turn of the trainer; the wait for a first actor decides nothing."""
        self.starvation.elapsed(elapsed_s)
        self.starvation.waited({"lookup": waited_s})
        if actors:
            self._interval.elapsed_s += elapsed_s
            self._interval.waited_s += waited_s
            self._interval.actors_s += actors * elapsed_s

    def _decide(self) -> None:
        """Changes the number of actors once the interval is over and shows what each one did."""
        seen = self._interval
        if seen.elapsed_s < self._interval_s or seen.ended < max(self._actors, 1):
            return
        starved_share = min(seen.waited_s / seen.elapsed_s, 1.0)
        wasted_share = max(1 - seen.busy_s / seen.actors_s, 0.0)
        wanted = wanted_actors(self._actors, starved_share, wasted_share, self._limits)
        self._interval = Interval()
        self.sizes.append(wanted)
        self._resize(wanted)

    def _resize(self, wanted: int) -> None:
        """Starts actors that are missing; releases those that are too many."""
        self._wanted = wanted
        for _ in range(wanted - self._actors - len(self._starting)):
            actor = self._actor.remote()
            self._starting[actor.ready.remote()] = actor
        self._release()

    def _release(self) -> None:
        """Ends actors beyond the wanted number: those that do not run yet, then idle ones."""
        while self._starting and self._actors + len(self._starting) > self._wanted:
            ray.kill(self._starting.popitem()[1])
        while self._idle and self._actors > self._wanted:
            ray.kill(self._idle.pop())
