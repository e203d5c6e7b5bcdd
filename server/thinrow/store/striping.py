"""Stripe boundaries: how a history's events are divided into stripes.

Stripe boundaries depend on the number of events alone, so every engine and every increment cuts a
history at the same events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.store.stripe import STRIPE_EVENTS_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HALVINGS", "cut_stripes"]

HALVINGS = 6
"""The shortest stripes have STRIPE_EVENTS_MAX events, halved this many times."""


def cut_stripes(
    fronts: NDArray[np.int64],
    tails: NDArray[np.int64],
    stripe_events_max: int = STRIPE_EVENTS_MAX,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divides the events of users into stripes.

    A tail becomes full stripes, then one or two of every shorter size, then one stripe of the
    remainder: a reader of the newest events reads few events, a reader of many events reads few
    stripes. An event moves to a longer stripe HALVINGS times.

    Args:
        fronts: Events of each user's front, which becomes one stripe; int64, shape (users,).
        tails: Events at the end of each user's history; int64, shape (users,).
        stripe_events_max: Events of a full stripe.

    Returns:
        The run of each stripe (twice the user's index for fronts, one more for tails) and its
        events, in the order of users, fronts first.
    """
    shorter = [stripe_events_max >> halving for halving in range(1, HALVINGS + 1)]
    shorter = [size for size in shorter if stripe_events_max % size == 0] if shorter[-1] else []
    smallest = shorter[-1] if shorter else stripe_events_max
    units, rest = tails // smallest, tails % smallest
    numbers = []
    for _ in shorter:
        numbers.append(np.where(units > 0, 2 - units % 2, 0))
        units = (units - numbers[-1]) // 2
    tail_numbers = np.column_stack([units, *numbers[::-1], rest > 0])
    front_numbers = np.zeros_like(tail_numbers)
    front_numbers[:, -1] = fronts > 0
    repeats = np.stack([front_numbers, tail_numbers], axis=1).reshape(2 * len(tails), -1)
    sizes = np.empty_like(repeats)
    sizes[:, :-1] = [stripe_events_max, *shorter]
    sizes[:, -1] = np.stack([fronts, rest], axis=1).reshape(-1)
    runs = np.repeat(np.arange(len(repeats)), repeats.sum(axis=1))
    return runs, np.repeat(sizes.reshape(-1), repeats.reshape(-1))
