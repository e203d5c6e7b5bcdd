"""Types and forms of traits, and the NumPy dtypes of their values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

__all__ = [
    "BATCH_DTYPES",
    "LIST_LENGTH_MAX",
    "NS_PER_UNIT",
    "SCALE_MAX",
    "VECTOR_SIZE_MAX",
    "TraitForm",
    "TraitType",
    "length_bytes",
]

NS_PER_UNIT = {"d": 86_400 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Units of times, by length."""
SCALE_MAX = 18
"""Limit on the digits after the point: an int64 has no more."""
VECTOR_SIZE_MAX = 4096
LIST_LENGTH_MAX = 4096
"""Limit on the limit that a schema gives the lists of a trait."""


class TraitType(IntEnum):
    """Types of traits; the numbers are those of `thinrow.v1.TraitType`."""

    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT16 = 9
    FLOAT32 = 10
    FLOAT64 = 11
    BOOL = 12
    CATEGORICAL = 13
    STRING = 14

    @property
    def label(self) -> str:
        """The name used in schema files."""
        return self.name.lower()

    @property
    def is_float(self) -> bool:
        """True for floats of any width."""
        return self in (TraitType.FLOAT16, TraitType.FLOAT32, TraitType.FLOAT64)

    @property
    def is_integer(self) -> bool:
        """True for integers of any width whose values are numbers, not codes."""
        return self.name.startswith(("INT", "UINT"))

    @property
    def has_vectors(self) -> bool:
        """True for types whose traits may be fixed-size vectors: integers and floats."""
        return not self.is_indexed and self is not TraitType.BOOL

    @property
    def is_indexed(self) -> bool:
        """True for types whose words are indices of a dictionary."""
        return self in (TraitType.CATEGORICAL, TraitType.STRING)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """The dtype of one value: int64 for categorical traits, object for text."""
        if self is TraitType.STRING:
            return np.dtype(object)
        return np.dtype("int64" if self is TraitType.CATEGORICAL else self.label)

    @property
    def word_dtype(self) -> np.dtype[Any]:
        """The integer dtype of equal size that carries a value's bits through the store."""
        if self.is_float:
            return np.dtype(f"uint{8 * self.value_dtype.itemsize}")
        if self is TraitType.STRING:
            return np.dtype("uint64")  # an index
        return np.dtype("uint8") if self is TraitType.BOOL else self.value_dtype


BATCH_DTYPES: dict[int, np.dtype[Any]] = {
    kind: np.dtype(np.int32) if kind is TraitType.STRING else kind.value_dtype for kind in TraitType
}
"""The dtype of a trait's values in a batch, by type: text as codes, anything else as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitForm:
    """Form of a trait's values, and what integers count."""

    type: TraitType
    size: int = 1
    """Elements of a vector; 1 for a scalar or a list."""
    length_max: int = 0
    """Limit on the elements of a list; 0 for no list."""
    unit: str | None = None
    """Unit of times since 1970 in UTC, or of durations; None for other numbers."""
    scale: int | None = None
    """Digits after the point of decimals, which integers count in steps of 10^-scale; None for
    other numbers."""
    buckets: int | None = None
    """Buckets of texts, whose codes integers are (see `thinrow.core.codes`); None for others."""
    coded: TraitType | None = None
    """Type of the values whose codes in a store's vocabulary integers are; None for others."""

    @property
    def is_counted(self) -> bool:
        """True if integers stand for values of another type."""
        return (self.unit, self.scale, self.buckets, self.coded) != (None, None, None, None)


def length_bytes(length_max: int) -> int:
    """Returns the bytes of each length of lists, on the wire and in stripes."""
    return 1 if length_max < 1 << 8 else 2
