"""Lookups of clusters that are larger than this machine holds: a simulation, and no measurement.

It draws lookups, splits each among groups, and gives every request a time from a straight line that
was fitted to measured requests, times a deviation that was measured. Replicas are independent of
each other; the network costs nothing, and a server never has another client's request before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Line", "Simulated", "fitted", "simulated"]

LOOKUPS = 2_000
HEDGE_QUANTILE = 0.95


@dataclass(frozen=True)
class Line:
    """Cost of a request: a constant, and one for each of its examples."""

    request_s: float
    example_s: float
    deviations: NDArray[np.float64]
    """Measured times as multiples of what the line says."""

    def at(self, examples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the seconds of requests, without deviations."""
        return self.request_s + self.example_s * examples


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Lookups of one cluster."""

    groups: int
    requests: float
    """Requests of a lookup, on average, without hedges."""
    server_s: float
    """Processor time of servers for an example."""
    median_s: float
    p99_s: float
    p99_hedged_s: float


def fitted(examples: Sequence[int], seconds: Sequence[NDArray[np.float64]]) -> Line:
    """Fits the line to the medians of requests of several sizes."""
    sizes = np.array(examples, np.float64)
    medians = np.array([np.median(each) for each in seconds])
    # Relative errors count: the times of small requests are as important as those of large ones.
    weights = 1 / medians
    columns = np.stack([np.ones_like(sizes), sizes], axis=1) * weights[:, None]
    request_s, example_s = np.maximum(np.linalg.lstsq(columns, medians * weights)[0], 0.0)
    line = request_s + example_s * sizes
    deviations = [each / at for each, at in zip(seconds, line, strict=True)]
    return Line(float(request_s), float(example_s), np.concatenate(deviations))


def simulated(
    latency: Line,
    server: Line,
    groups: int,
    lookup_examples: int,
    *,
    parts: int | None,
    slow_share: float,
    slow_times: float,
) -> Simulated:
    """Simulates lookups of a cluster.

    Args:
        latency: Time until a response has come.
        server: Processor time of a server.
        groups: Groups of the cluster, of two replicas each.
        lookup_examples: Examples of a lookup.
        parts: Parts of rows that a lookup mixes; None for rows without parts.
        slow_share: Share of the replicas that are slow, drawn for each lookup.
        slow_times: Times of a slow replica, as multiples of another one's.
    """
    rng = np.random.default_rng(groups)
    reached = groups if parts is None else min(groups, parts)
    share = np.full(reached, 1 / reached)
    examples = rng.multinomial(lookup_examples, share, LOOKUPS)
    requested = examples > 0

    def drawn() -> NDArray[np.float64]:
        slow = np.where(rng.random(examples.shape) < slow_share, slow_times, 1.0)
        return latency.at(examples) * rng.choice(latency.deviations, examples.shape) * slow

    first, second = drawn(), drawn()
    # Each group knows the recent times of its own requests; one in twenty is sent again.
    patience = np.quantile(first, HEDGE_QUANTILE, axis=0)
    hedged = np.minimum(first, np.maximum(patience, 0) + second)
    whole = np.where(requested, first, 0).max(axis=1)
    whole_hedged = np.where(requested, np.where(first > patience, hedged, first), 0).max(axis=1)
    server_s = np.where(requested, server.at(examples), 0).sum() / examples.sum()
    return Simulated(
        groups=groups,
        requests=float(requested.sum(axis=1).mean()),
        server_s=float(server_s),
        median_s=float(np.median(whole)),
        p99_s=float(np.quantile(whole, 0.99)),
        p99_hedged_s=float(np.quantile(whole_hedged, 0.99)),
    )
