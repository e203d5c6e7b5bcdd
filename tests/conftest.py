"""How the property tests run; THINROW_EXAMPLES multiplies their examples (see scenarios.py)."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Each example builds stores on disk: slow by nature. What a failure needs to come back is printed.
settings.register_profile(
    "thinrow",
    deadline=None,
    # A change is judged by the same examples each time; people and long runs look further.
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("thinrow")
