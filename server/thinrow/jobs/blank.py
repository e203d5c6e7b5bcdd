"""Values that lists are padded with."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["BOOLS", "blank_values", "equal_values"]

BOOLS = {"false": False, "true": True, "0": False, "1": True}


def blank_values(values: pa.Array) -> NDArray[np.bool_]:
    """The values that say nothing: null, 0, -1, NaN, an empty text, false, vectors of these."""

    def is_blank(flat: pa.Array) -> pa.Array:
        kind = flat.type
        if pa.types.is_boolean(kind):
            return pc.invert(flat)
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            flat = flat.cast(pa.float64())
            return pc.or_(pc.is_nan(flat), pc.is_in(flat, pa.array([0.0, -1.0])))
        if pa.types.is_integer(kind):
            blanks = [0] if pa.types.is_unsigned_integer(kind) else [0, -1]
            return pc.is_in(flat, pa.array(blanks, kind))
        if pa.types.is_temporal(kind):
            return is_blank(flat.cast(pa.int64() if kind.bit_width == 64 else pa.int32()))
        if pa.types.is_null(kind):
            return pa.array(np.ones(len(flat), dtype=np.bool_))
        try:
            return pc.equal(pc.binary_length(flat.cast(pa.large_string())), 0)
        except pa.ArrowException:  # of no trait's type
            return pa.array(np.zeros(len(flat), dtype=np.bool_))

    return _tested(values, is_blank, null=True)


def equal_values(values: pa.Array, text: str, *, strict: bool) -> NDArray[np.bool_]:
    """The values that a text names: null, nan, a number (of a time in its own unit), or a text.

    strict: Raises InputError for a text that is no value of this type; else nothing equals it.
    """

    def equals(flat: pa.Array) -> pa.Array:
        kind = flat.type
        if pa.types.is_temporal(kind):
            return equals(flat.cast(pa.int64() if kind.bit_width == 64 else pa.int32()))
        try:
            if pa.types.is_boolean(kind):
                return pc.equal(flat, BOOLS[text.lower()])
            if pa.types.is_floating(kind):
                flat = flat.cast(pa.float64())
                number = float(text)
                return pc.is_nan(flat) if np.isnan(number) else pc.equal(flat, number)
            if pa.types.is_integer(kind):
                return pc.equal(flat, pa.scalar(int(text), kind))
            if pa.types.is_decimal(kind):
                return pc.equal(flat, pa.scalar(Decimal(text)))
            return pc.equal(flat.cast(pa.large_string()), text)
        except (ValueError, KeyError, ArithmeticError, pa.ArrowException):
            if strict:
                raise InputError(
                    f"--padding-value {text} is no value of a list of {kind}; give one that its "
                    f"padding has, or null."
                ) from None
            return pa.array(np.zeros(len(flat), dtype=np.bool_))

    if text == "null":
        mask: NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
        return mask
    return _tested(values, equals, null=False)


def _tested(
    values: pa.Array, test: Callable[[pa.Array], pa.Array], *, null: bool
) -> NDArray[np.bool_]:
    """Applies a test to values, and to vectors' elements, all of which must pass it."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    is_null: NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        failed = ~_tested(values.flatten(), test, null=null)
        counts = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        ends = np.cumsum(counts)
        before = np.append(0, np.cumsum(failed))
        passed = before[ends] == before[ends - counts]
    else:
        passed = pc.fill_null(test(values), null).to_numpy(zero_copy_only=False)
    return np.where(is_null, null, passed)
