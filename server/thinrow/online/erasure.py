"""Erasure in the tier: events of users that a published generation erased."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from thinrow.online.event_tier import EventTier
    from thinrow.store.generation import Generation

__all__ = ["erase_from_tier"]

USERS_PER_STEP = 512
"""Users looked up at once; between two steps other threads get the interpreter."""


def erase_from_tier(tier: EventTier, generation: Generation) -> None:
    """Deletes what arrived of each user before the generation's history of them was erased.

    Requests of older generations must have ended: they would read shorter histories.
    """
    runs = tier.user_runs(generation.watermark_ts)
    while step := list(islice(runs, USERS_PER_STEP)):
        users = np.array([user for _, user, _ in step], np.int64)
        order, places = np.unique(users, return_inverse=True)
        erased_ts = generation.directories(order).erased_ts[places].tolist()
        erased = [
            (epoch, user, ts)
            for (epoch, user, first_ts), ts in zip(step, erased_ts, strict=True)
            if first_ts < ts
        ]
        if erased:
            tier.erase(erased)
        time.sleep(0)
