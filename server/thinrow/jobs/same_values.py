"""Equality of Arrow values, whatever types hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["IncomparableError", "differing"]

NS_PER = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
DAY_NS = 86_400 * 10**9
INT64_END = 2.0**63


class IncomparableError(Exception):
    """Two types have no values in common, such as text and numbers."""


def differing(left: pa.Array, right: pa.Array) -> NDArray[np.bool_]:
    """Compares two arrays of one length by value; True where they differ.

    Numbers of any widths are equal as numbers, times as moments in any unit and time zone, integers
    beside times as milliseconds, texts and lists in any encoding. Floats of one width are equal by
    their bits; a null equals only a null.

    Raises:
        IncomparableError: Their types have no values in common.
    """
    left, right = _plain(left), _plain(right)
    null = left.is_null().to_numpy(zero_copy_only=False)
    differs: NDArray[np.bool_] = null != right.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_null(left.type) or pa.types.is_null(right.type):
        return differs
    both = np.flatnonzero(~null & ~differs)
    if len(both) == len(left):
        return _values_differ(left, right)
    chosen = pa.array(both)
    differs[both] = _values_differ(left.take(chosen), right.take(chosen))
    return differs


def _plain(values: pa.Array) -> pa.Array:
    """The same values without a dictionary, texts and bytes in their large form."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return values.cast(pa.large_binary())
    if pa.types.is_fixed_size_binary(kind):
        return values.cast(pa.binary()).cast(pa.large_binary())
    return values


def _values_differ(left: pa.Array, right: pa.Array) -> NDArray[np.bool_]:
    """Compares values without nulls."""
    kinds = left.type, right.type
    if all(_is_list(kind) for kind in kinds):
        return _lists_differ(left, right)
    if any(_tick_ns(kind) for kind in kinds):
        return _times_differ(left, right)
    if all(_is_number(kind) for kind in kinds):
        return _numbers_differ(_numbers(left), _numbers(right))
    if kinds[0] == kinds[1] and (
        pa.types.is_large_string(kinds[0]) or pa.types.is_large_binary(kinds[0])
    ):
        unequal: NDArray[np.bool_] = pc.not_equal(left, right).to_numpy(zero_copy_only=False)
        return unequal
    families = [_is_number(kind) or pa.types.is_decimal(kind) for kind in kinds]
    nested = [pa.types.is_nested(kind) for kind in kinds]
    if kinds[0] == kinds[1] or all(families) or all(nested):
        pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
        return np.array([one != other for one, other in pairs], dtype=np.bool_)
    raise IncomparableError(f"{kinds[0]} and {kinds[1]}")


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _lists_differ(left: pa.Array, right: pa.Array) -> NDArray[np.bool_]:
    counts = [
        pc.list_value_length(each).to_numpy(zero_copy_only=False).astype(np.int64)
        for each in (left, right)
    ]
    differs: NDArray[np.bool_] = counts[0] != counts[1]
    same = np.flatnonzero(~differs)
    chosen = pa.array(same)
    inner = differing(left.take(chosen).flatten(), right.take(chosen).flatten())
    rows = np.repeat(same, counts[0][same])
    differs[rows[inner]] = True
    return differs


def _numbers(values: pa.Array) -> NDArray[Any]:
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return numbers.astype(np.uint8) if numbers.dtype == np.bool_ else numbers


def _numbers_differ(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
    """Compares numbers exactly: neither side is rounded to the other's type."""
    kinds = left.dtype.kind + right.dtype.kind
    if kinds == "ff":
        if left.dtype == right.dtype:
            bits = f"u{left.dtype.itemsize}"
            return np.asarray(left.view(bits) != right.view(bits))
        wide = np.promote_types(left.dtype, right.dtype)
        left, right = left.astype(wide), right.astype(wide)
        return np.asarray((left != right) & ~(np.isnan(left) & np.isnan(right)))
    if kinds[0] == "f":
        return _numbers_differ(right, left)
    if kinds[1] == "f":
        end = 2 * INT64_END if kinds[0] == "u" else INT64_END
        number = right.astype(np.float64)
        low = 0.0 if kinds[0] == "u" else -INT64_END
        fits = (number == np.floor(number)) & (number >= low) & (number < end)
        whole = np.where(fits, number, 0.0).astype(np.uint64 if kinds[0] == "u" else np.int64)
        return np.asarray(~fits | (whole != left))
    if kinds in ("ui", "iu"):
        signed = left if kinds[0] == "i" else right
        unsigned = np.uint64
        return np.asarray((signed < 0) | (left.astype(unsigned) != right.astype(unsigned)))
    return np.asarray(left != right)


def _tick_ns(kind: pa.DataType) -> int:
    """Nanoseconds of one tick of a type of times; 0 for another type."""
    types = pa.types
    if types.is_date32(kind):
        return DAY_NS
    if types.is_date64(kind):
        return NS_PER["ms"]
    if types.is_timestamp(kind) or types.is_duration(kind) or types.is_time(kind):
        return NS_PER[kind.unit]
    return 0


def _times_differ(left: pa.Array, right: pa.Array) -> NDArray[np.bool_]:
    """Compares times as whole numbers of ticks: nanoseconds of all times would not fit int64."""
    families = {_family(kind) for kind in (left.type, right.type)} - {"number"}
    if len(families) > 1:
        raise IncomparableError(f"{left.type} and {right.type}")
    (fine, fine_ns), (coarse, coarse_ns) = sorted(
        (_ticks(left), _ticks(right)), key=lambda ticks: ticks[1]
    )
    whole = coarse_ns // fine_ns
    return np.asarray(_numbers_differ(fine // whole, coarse) | (fine % whole != 0))


def _family(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_timestamp(kind) or types.is_date(kind):
        return "moment"
    if types.is_duration(kind):
        return "duration"
    return "time of day" if types.is_time(kind) else "number" if _is_number(kind) else "other"


def _ticks(values: pa.Array) -> tuple[NDArray[Any], int]:
    tick_ns = _tick_ns(values.type)
    if not tick_ns:
        return _numbers(values), NS_PER["ms"]
    width = pa.int32() if values.type.bit_width == 32 else pa.int64()
    ticks: NDArray[np.int64] = values.cast(width).to_numpy(zero_copy_only=False).astype(np.int64)
    return ticks, tick_ns
