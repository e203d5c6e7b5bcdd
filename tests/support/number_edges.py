"""Numbers at the edges of every type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SOURCES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
]
TRAITS = [*SOURCES, "categorical"]
EDGES = [
    *(0, 1, 2, -1, -2, 127, 128, -128, -129, 255, 256, 2047, 2048, 2049, 65504, 65520, 70000),
    *(1 << 15, (1 << 16) - 1, 1 << 16, (1 << 24) - 1, (1 << 24) + 1, (1 << 25) + 2),
    *(1 << 31, (1 << 31) - 1, -(1 << 31), -(1 << 31) - 1, (1 << 32) - 1, 1 << 32),
    *((1 << 53) - 1, (1 << 53) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
]
FRACTIONS = [
    *(-0.0, 0.5, 1.5, 42.7, 0.1, 1e-8, 1e-40, 1e-300, 65519.0, 65520.0, 3.4028235e38, 3.5e38),
    *(1e300, -1e300, math.inf, -math.inf, math.nan),
]


def values_of(source: str) -> list[Any]:
    """The edges that a type can hold, as it holds them."""
    if source == "bool":
        return [False, True]
    dtype = np.dtype(source)
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = {
                str(value): value for value in np.array([*EDGES, *FRACTIONS], float).astype(dtype)
            }
        return list(held.values())
    bounds = np.iinfo(dtype)
    return [value for value in EDGES if bounds.min <= value <= bounds.max]
