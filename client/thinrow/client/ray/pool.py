"""An elastic pool of actors that look rows up, for trainers on Ray."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import ray
from thinrow.client.ray.actor import LookupActor
from thinrow.client.ray.scaling import ScalingLimits, wanted_actors
from thinrow.client.torch.starvation import Starvation
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from ray.data import ReadTask
    from thinrow.client.ray.datasource import ThinRowDatasource

__all__ = ["LookupPool"]

TASKS_PER_ACTOR = 2
"""Tasks that are in flight or wait for the trainer, per actor: one is done while one is read, and
an actor that ends its task has the next one before the trainer comes back."""
RESTARTS_MAX = 3
"""Times that Ray restarts an actor that died, and repeats its task."""


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
    which the cluster has no room delays nothing; one that is no longer wanted first ends its tasks.

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
        self._running: dict[Any, int] = {}
        """Actors that run, oldest first, and the number of tasks that each has in flight."""
        self._in_flight: dict[Any, tuple[Any, Any]] = {}
        """Actors of tasks and references to their answers, by the reference to the seconds."""
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
        for actor in [*self._running, *self._starting.values()]:
            ray.kill(actor)
        self._running, self._starting, self._in_flight = {}, {}, {}

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        """Yields the answers of each task once, in the order in which tasks end."""
        waiting, ready = deque(self._tasks), deque[Any]()
        self._resize(self._limits.actors_min)
        self.sizes = [self._limits.actors_min]
        try:
            while True:
                start_s = time.perf_counter()
                actors = len(self._running)
                self._assign(waiting, ready)
                if not ready and not waiting and not self._in_flight:
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

    def _assign(self, waiting: deque[ReadTask], ready: deque[Any]) -> None:
        """Gives tasks to the actors that have fewest, while the trainer keeps up."""
        wanted = list(islice(self._running, self._wanted))
        room = TASKS_PER_ACTOR * len(wanted) - len(self._in_flight) - len(ready)
        for _ in range(min(room, len(waiting))):
            actor = min(wanted, key=self._running.__getitem__)
            answers, seconds = actor.look_up.options(num_returns=2).remote(waiting.popleft())
            self._running[actor] += 1
            self._in_flight[seconds] = actor, answers

    def _collect(self, ready: deque[Any], *, waits: bool) -> None:
        """Takes in started actors and ended tasks; waits for one if `waits`."""
        pending = [*self._starting, *self._in_flight]
        if not pending:
            return
        ended, _ = ray.wait(
            pending, num_returns=1 if waits else len(pending), timeout=None if waits else 0
        )
        for reference in ended:
            seconds = ray.get(reference)
            if reference in self._starting:
                self._running[self._starting.pop(reference)] = 0
                continue
            actor, answers = self._in_flight.pop(reference)
            self._running[actor] -= 1
            ready.append(answers)
            self._interval.busy_s += seconds
            self._interval.ended += 1
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
        seen, actors = self._interval, len(self._running)
        if seen.elapsed_s < self._interval_s or seen.ended < max(actors, 1):
            return
        starved_share = min(seen.waited_s / seen.elapsed_s, 1.0)
        wasted_share = max(1 - seen.busy_s / seen.actors_s, 0.0)
        wanted = wanted_actors(actors, starved_share, wasted_share, self._limits)
        self._interval = Interval()
        self.sizes.append(wanted)
        self._resize(wanted)

    def _resize(self, wanted: int) -> None:
        """Starts actors that are missing; releases those that are too many."""
        self._wanted = wanted
        for _ in range(wanted - len(self._running) - len(self._starting)):
            actor = self._actor.remote()
            self._starting[actor.ready.remote()] = actor
        self._release()

    def _release(self) -> None:
        """Ends actors beyond the wanted number: those that do not run yet, then idle ones."""
        while self._starting and len(self._running) + len(self._starting) > self._wanted:
            ray.kill(self._starting.popitem()[1])
        for actor in list(islice(self._running, self._wanted, None)):
            if not self._running[actor]:
                ray.kill(actor)
                del self._running[actor]
