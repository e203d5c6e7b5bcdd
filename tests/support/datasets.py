"""Real events for tests, each read once a run. None of it lies in the repository."""

from __future__ import annotations

from functools import cache

import pytest
from support.paths import ROOT
from thinrow.demo import sample_data

MATHOVERFLOW = ROOT.parent / "shared/data/mathoverflow_events.parquet"


@cache
def movielens_100k() -> sample_data.SampleData:
    """100,000 ratings, with the films' genres as a string trait."""
    return sample_data.movielens_100k(genres=True)


@cache
def complete_journey() -> sample_data.SampleData:
    """1.47 million purchases, simulated."""
    return sample_data.complete_journey()


@cache
def mathoverflow() -> sample_data.SampleData:
    """506,550 interactions; skips the test where the file is not beside the checkout."""
    if not MATHOVERFLOW.exists():
        pytest.skip(
            "MathOverflow's events are not at ../shared/data/mathoverflow_events.parquet "
            "beside the checkout"
        )
    return sample_data.mathoverflow(MATHOVERFLOW)
