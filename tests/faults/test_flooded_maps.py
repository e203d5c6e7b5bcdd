"""Ids and texts that callers choose so that they collide under well-known hashes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.chosen_keys import RELATIVE_PROBES_MAX, chosen_keys, probes_in
from support.tried import FULL, SEED, Tried, times

if TYPE_CHECKING:
    from pathlib import Path

KEYS = 100_000 if FULL else 10_000
ZEROS = range(16, 41)
"""Zero bits at the low end of the hashes: more than a map of that many keys looks at first."""


@pytest.mark.timeout(3600)
def test_chosen_keys(tmp_path: Path) -> None:
    """Counted in keys that the native map compares: a clock would measure the machine, too."""
    rng, sets, most = random.Random(SEED), 0, 0.0
    probes = probes_in(tmp_path)
    for _ in range(times(2, 40)):
        drawn = np.random.default_rng(rng.getrandbits(64)).integers(0, 1 << 63, KEYS, np.uint64)
        chosen = chosen_keys(KEYS, rng.choice(ZEROS))
        for kind in ("numbers", "texts"):
            random_probes = probes(drawn, kind)
            for name, each in chosen.items():
                relative = probes(each, kind) / random_probes
                assert relative < RELATIVE_PROBES_MAX, (name, kind)
                sets, most = sets + 1, max(most, relative)
    Tried(
        fault="Sets of ids and texts that collide under MurmurHash or `std::hash`, in a native map",
        times=sets,
        promised=f"Fewer than {RELATIVE_PROBES_MAX} times the probes of random ones",
        seen=f"{sets * KEYS:,} keys, each found again; at most {most:.2f} times their probes",
    ).keep()
