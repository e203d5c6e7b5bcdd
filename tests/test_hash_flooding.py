"""Chosen keys cost the native maps no more probes than random ones, whatever the callers choose."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Keys = NDArray[np.uint64]

NATIVE = Path(__file__).parent.parent / "native"
PROBES = Path(__file__).with_name("count_probes.cpp")
KEYS = 100_000
WORD = (1 << 64) - 1


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Keys, str], int]:
    """Counts the probes of adding keys, and finding each again."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    program = tmp_path_factory.mktemp("probes") / "count_probes"
    subprocess.run([compiler, "-std=c++17", "-O1", "-I", NATIVE, PROBES, "-o", program], check=True)

    def count(keys: Keys, kind: str) -> int:
        counted = subprocess.run([program, kind], input=keys.tobytes(), capture_output=True)
        assert counted.returncode == 0, "a key was lost"
        return int(counted.stdout)

    return count


def inverse(factor: int) -> int:
    return pow(factor, -1, 1 << 64)


def without_murmur3(hashed: int) -> int:
    """The number whose MurmurHash3 finalizer gives `hashed`."""
    for factor in (0xC4CEB9FE1A85EC53, 0xFF51AFD7ED558CCD):
        hashed ^= hashed >> 33
        hashed = hashed * inverse(factor) & WORD
    return hashed ^ hashed >> 33


def without_murmur2(hashed: int) -> int:
    """The eight bytes whose std::hash, as libstdc++ has it, is `hashed`."""
    factor = 0xC6A4A7935BD1E995
    hashed ^= hashed >> 47
    hashed = hashed * inverse(factor) & WORD
    hashed ^= hashed >> 47
    mixed = hashed * inverse(factor) & WORD ^ 0xC70F6907 ^ 8 * factor & WORD
    mixed = mixed * inverse(factor) & WORD
    mixed ^= mixed >> 47
    return mixed * inverse(factor) & WORD


def chosen(undo: Callable[[int], int]) -> Keys:
    """Keys whose hashes all end in zeros."""
    return np.array([undo(number << 24 & WORD) for number in range(1, KEYS + 1)], np.uint64)


STEPS = np.arange(1, KEYS + 1, dtype=np.uint64)


@pytest.mark.parametrize("kind", ["numbers", "texts"])
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(chosen(without_murmur3), id="murmur3"),
        pytest.param(chosen(without_murmur2), id="murmur2"),
        pytest.param(chosen(lambda hashed: hashed), id="identity"),
        pytest.param(STEPS, id="consecutive"),
        pytest.param(STEPS << np.uint64(32), id="high bits"),
        pytest.param(STEPS * np.uint64(0x9E3779B97F4A7C15), id="golden ratio"),
        pytest.param(STEPS.byteswap(), id="swapped"),
    ],
)
def test_chosen_keys_cost_as_many_probes_as_random_ones(
    probes: Callable[[Keys, str], int], keys: Keys, kind: str
) -> None:
    random = np.random.default_rng(1).integers(0, 1 << 63, KEYS, np.uint64)
    assert len(set(keys.tolist())) == KEYS
    assert probes(keys, kind) < 1.5 * probes(random, kind)


def test_processes_draw_their_own_secret(probes: Callable[[Keys, str], int]) -> None:
    keys = chosen(without_murmur3)
    assert len({probes(keys, "numbers") for _ in range(4)}) > 1


def test_no_native_map_hashes_without_the_secret() -> None:
    for path in NATIVE.iterdir():
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"unordered_(?:multi)?(?:map|set)\b|std::hash\b", code), path.name
