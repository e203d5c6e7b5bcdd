"""Costs of a row against its events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Curve"]


@dataclass(frozen=True, slots=True)
class Curve:
    """A cost against events: straight between points, and on beyond the last two.

    A curve and not a line, since files of shorter rows compress better or worse than those of long.
    """

    events: tuple[float, ...]
    """Ascending; two points at least."""
    costs: tuple[float, ...]

    @staticmethod
    def line(per_row: float, per_event: float) -> Curve:
        """The same for every event."""
        return Curve((0.0, 1.0), (per_row, per_row + per_event))

    def at(self, events: float) -> float:
        """Cost of a row of a given number of events."""
        if events <= self.events[-1]:
            return float(np.interp(events, self.events, self.costs))
        slope = (self.costs[-1] - self.costs[-2]) / (self.events[-1] - self.events[-2])
        return self.costs[-1] + slope * (events - self.events[-1])

    def times(self, factor: float) -> Curve:
        """The same with every cost multiplied."""
        return Curve(self.events, tuple(factor * cost for cost in self.costs))
