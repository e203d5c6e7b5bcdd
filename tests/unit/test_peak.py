"""The measurement of peak memory that tests of limits rely on."""

from __future__ import annotations

import pytest
from support.peak import MIB, peak_of


@pytest.mark.parametrize("prelude", ["", "len(bytearray(200 << 20))"])
def test_growth_is_seen_whatever_came_before(prelude: str) -> None:
    peak = peak_of("len(bytearray(64 << 20))", prelude)
    assert peak.outcome == str(64 * MIB)
    assert peak.grown_bytes > 60 * MIB
    assert peak_of("0", prelude).grown_bytes < 10 * MIB
