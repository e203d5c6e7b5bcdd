"""Keys chosen to collide under well-known hashes, and the probes that the native map spends."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from support.paths import NATIVE, SUPPORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    # NumPy's stubs know no arithmetic of uint64 with int.
    Keys = NDArray[Any]

PROBES = SUPPORT / "count_probes.cpp"
WORD = (1 << 64) - 1
RELATIVE_PROBES_MAX = 1.5
"""Probes of chosen keys, by those of as many random ones."""


def probes_in(folder: Path) -> Callable[[Keys, str], int]:
    """Builds a program there that counts the probes of adding keys, and finding each again."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    program = folder / "count_probes"
    subprocess.run([compiler, "-std=c++17", "-O1", "-I", NATIVE, PROBES, "-o", program], check=True)

    def count(keys: Keys, kind: str) -> int:
        counted = subprocess.run([program, kind], input=keys.tobytes(), capture_output=True)
        assert counted.returncode == 0, "a key was lost"
        return int(counted.stdout)

    return count


def inverse(factor: int) -> int:
    return pow(factor, -1, 1 << 64)


def without_murmur3(hashed: Keys) -> Keys:
    """The numbers whose MurmurHash3 finalizer gives `hashed`."""
    for factor in (0xC4CEB9FE1A85EC53, 0xFF51AFD7ED558CCD):
        hashed = (hashed ^ hashed >> 33) * inverse(factor)
    return hashed ^ hashed >> 33  # type: ignore[no-any-return]


def without_murmur2(hashed: Keys) -> Keys:
    """The eight bytes whose std::hash, as libstdc++ has it, is `hashed`."""
    factor = 0xC6A4A7935BD1E995
    hashed = (hashed ^ hashed >> 47) * inverse(factor)
    hashed = hashed ^ hashed >> 47
    mixed = (hashed * inverse(factor) ^ 0xC70F6907 ^ 8 * factor & WORD) * inverse(factor)
    return (mixed ^ mixed >> 47) * inverse(factor)


def chosen_keys(count: int, zeros: int = 24) -> dict[str, Keys]:
    """Different keys by their choice; the `zeros` lowest bits of their hashes are zero."""
    steps = np.arange(1, count + 1, dtype=np.uint64)
    hashed = steps << zeros
    return {
        "murmur3": without_murmur3(hashed),
        "murmur2": without_murmur2(hashed),
        "identity": hashed,
        "consecutive": steps,
        "high bits": steps << 32,
        "golden ratio": steps * 0x9E3779B97F4A7C15,
        "swapped": steps.byteswap(),
    }


def narrow_hash(text: bytes, seed: int = 0) -> int:
    """Returns a key of a text by its first letter alone."""
    return xxhash.xxh3_64_intdigest(text if seed else text[:1], seed)
