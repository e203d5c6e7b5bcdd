"""Chosen keys cost the native maps no more probes than random ones, whatever the callers choose."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.chosen_keys import RELATIVE_PROBES_MAX, chosen_keys, probes_in
from support.paths import NATIVE

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.chosen_keys import Keys

COUNT = 100_000
CHOSEN = chosen_keys(COUNT)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Keys, str], int]:
    return probes_in(tmp_path_factory.mktemp("probes"))


@pytest.mark.parametrize("kind", ["numbers", "texts"])
@pytest.mark.parametrize("keys", CHOSEN.values(), ids=CHOSEN)
def test_chosen_keys_cost_as_many_probes_as_random_ones(
    probes: Callable[[Keys, str], int], keys: Keys, kind: str
) -> None:
    random = np.random.default_rng(1).integers(0, 1 << 63, COUNT, np.uint64)
    assert len(np.unique(keys)) == COUNT
    assert probes(keys, kind) < RELATIVE_PROBES_MAX * probes(random, kind)


def test_processes_draw_their_own_secret(probes: Callable[[Keys, str], int]) -> None:
    assert len({probes(CHOSEN["murmur3"], "numbers") for _ in range(4)}) > 1


def test_no_native_map_hashes_without_the_secret() -> None:
    files = [*NATIVE.glob("*.cpp"), *NATIVE.glob("*.h")]
    assert files
    for path in files:
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"unordered_(?:multi)?(?:map|set)\b|std::hash\b", code), path.name
