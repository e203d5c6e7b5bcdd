"""The rule by which a pool of looking-up actors grows and shrinks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from thinrow.core.settings import require_bounds
from thinrow.errors import UsageError

__all__ = ["ScalingLimits", "wanted_actors"]

GROWTH_MAX = 2.0
"""A pool at most doubles at once: answers of new actors come only after they have connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingLimits:
    """Limits of a pool.

    Raises:
        UsageError: A value is out of its range.
    """

    actors_min: int = 1
    actors_max: int = 64
    starved_share: float = 0.02
    """Share of the trainer's time, waited for lookups, above which the pool grows."""
    wasted_share: float = 0.3
    """Share of the actors' time, idle, above which the pool shrinks."""

    def __post_init__(self) -> None:
        require_bounds(self, "actors_min", "actors_max")
        if self.actors_max < self.actors_min:
            raise UsageError("actors_max is below actors_min; swap them.")
        if not (0 < self.starved_share < 1 and 0 < self.wasted_share < 1):
            raise UsageError("starved_share and wasted_share must be above 0 and below 1.")


def wanted_actors(
    actors: int, starved_share: float, wasted_share: float, limits: ScalingLimits
) -> int:
    """Returns the number of actors for the next interval.

    A trainer that waits for lookups is starved: the pool grows by the share that it waited. A
    trainer that does not wait is the slow side, so the pool never grows then; if actors are idle,
    all of those go that leave the others busy. Idle actors beside a starved trainer mean that
    something else is slow, such as reading rows, so the pool stays.

    Args:
        actors: Actors in the last interval.
        starved_share: Share of the trainer's time in it that was waited with cause `lookup`.
        wasted_share: Share of the actors' time in it that was idle.
        limits: Limits of the pool.
    """
    starved, wasted = starved_share > limits.starved_share, wasted_share > limits.wasted_share
    wanted = actors
    if starved and not wasted:
        growth = min(1 / max(1 - starved_share, 1 / GROWTH_MAX), GROWTH_MAX)
        wanted = max(actors + 1, math.ceil(actors * growth))
    elif wasted and not starved:
        busy = actors * (1 - wasted_share)
        # Enough that the rest would be just below the share of waste that is allowed.
        wanted = min(actors - 1, math.ceil(busy / (1 - limits.wasted_share / 2)))
    return min(max(wanted, limits.actors_min), limits.actors_max)
