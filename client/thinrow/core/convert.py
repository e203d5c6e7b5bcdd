"""Lossless conversion of arrays and sequences that callers hand in.

Floats may round to the width of a float trait, as they do in files of events; everything else is
converted exactly or refused.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal, Inexact
from itertools import compress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["counted", "exact", "exact_rows", "mask", "split_absent"]

DTYPES = {"M": "datetime64", "m": "timedelta64"}
UNIT_NAMES = {
    "D": "days",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
}
FLOATS = (float, np.floating)
EXACT = Context(prec=100, traps=[Inexact])
"""Arithmetic of decimals that raises ArithmeticError instead of rounding."""


def exact(given: Any, dtype: np.dtype[Any]) -> NDArray[Any]:  # noqa: ANN401 - what numpy takes
    """Converts numbers to `dtype`, in this machine's byte order.

    Args:
        given: An array of any shape, byte order and strides, or a flat sequence of numbers.
        dtype: Of integers, floats or bools.

    Raises:
        ValueError: A value would change; the message names it.
    """
    if isinstance(given, np.ndarray) and given.dtype != object:
        if np.ma.isMaskedArray(given) and np.ma.getmaskarray(given).any():
            raise ValueError("it has masked values, where every value is needed")
        return _from_numbers(np.asarray(given), dtype)
    if isinstance(given, np.ndarray):
        return _from_objects(given.ravel().tolist(), dtype).reshape(given.shape)
    return _from_objects(_as_list(given), dtype)


def exact_rows(rows: Any, dtype: np.dtype[Any], size: int) -> NDArray[Any]:  # noqa: ANN401
    """Converts vectors of `size` elements to an array of shape (rows, size); see `exact`."""
    if isinstance(rows, np.ndarray) and rows.dtype != object:
        array = exact(rows, dtype)
    else:
        parts = [exact(row, dtype) for row in _as_list(rows)]
        wrong = next((part for part in parts if part.shape != (size,)), None)
        if wrong is not None:
            raise ValueError(f"it has a vector of shape {wrong.shape}, not ({size},)")
        array = np.stack(parts) if parts else np.zeros((0, size), dtype)
    if array.ndim != 2 or array.shape[1] != size:
        raise ValueError(f"it has the shape {array.shape}, but must have (events, {size})")
    return array


def mask(given: Any, events: int) -> NDArray[np.bool_]:  # noqa: ANN401 - what numpy takes
    """Converts `present` to bools of shape (events,); integers would choose events by number.

    Raises:
        ValueError: It has another shape, or values other than 0 and 1.
    """
    present = exact(given, np.dtype(np.bool_))
    if present.shape != (events,):
        raise ValueError(f"present has the shape {present.shape}, but must have ({events},)")
    return present


def split_absent(
    given: Any,  # noqa: ANN401 - what numpy takes
    *,
    nan: bool = False,
) -> tuple[Any, NDArray[np.bool_] | None]:
    """Separates values from absent ones, which are masked, or None in a sequence.

    Args:
        given: An array or a sequence.
        nan: True if NaN is absent, too, as where pandas stores integers as floats. Then floats
            are refused from where on they skip some integers.

    Returns:
        The values that are there, and a mask of shape (events,) that is True where one is; None
        where all are.

    Raises:
        ValueError: A vector is masked in part, or a float may be a rounded integer.
    """
    values: Any = given
    if np.ma.isMaskedArray(given):
        values, absent = given.data, np.ma.getmaskarray(given).reshape(len(given), -1)
        present = np.asarray(~absent.all(axis=1))
        if (absent.any(axis=1) == present).any():
            raise ValueError("a vector is masked in part; mask it whole or not at all")
    elif isinstance(given, np.ndarray) and given.dtype != object:
        if not nan or given.dtype.kind != "f":
            return values, None
        present = ~np.isnan(given)
    else:
        values = _as_list(given)
        present = np.array([value is not None for value in values], np.bool_)
        if nan:  # which is what differs from itself
            present &= np.array([not isinstance(v, FLOATS) or v == v for v in values], np.bool_)
    if present.all():
        return values, None
    is_array = isinstance(values, np.ndarray)
    values = values[present] if is_array else list(compress(values, present))
    if nan:
        _refuse_rounded(values if is_array else [v for v in values if isinstance(v, FLOATS)])
    return values, present


def _refuse_rounded(given: NDArray[Any] | list[Any]) -> None:
    """Refuses floats of integers with gaps that may have been other integers before."""
    values = np.asarray(given, None if len(given) else np.float64)
    if values.dtype.kind != "f":
        return
    exact_below = 2.0 ** (np.finfo(values.dtype).nmant + 1)
    rounded = np.abs(values) >= exact_below
    if rounded.any():
        raise ValueError(
            f"{values[rounded][0]} is {values.dtype}, which rounds integers from "
            f"{exact_below:.0f} on; give integers, with None or a mask where one is absent"
        )


def counted(given: Any, unit: str | None, scale: int | None = None) -> Any:  # noqa: ANN401
    """Converts times to counts of a unit, and decimals to counts of steps; see `TraitForm`.

    Args:
        given: An array or a flat sequence without absent values; others than times and decimals
            are returned as they are.
        unit: Unit of times; None where they are refused.
        scale: Digits of decimals after the point; None for those of integers, whole ones.

    Raises:
        ValueError: A value is no whole number of the unit, or of steps.
    """
    if isinstance(given, np.ndarray) and given.dtype.kind in "mM":
        return _ticks(given, unit)
    if isinstance(given, np.ndarray) and given.dtype != object:
        if scale is not None and given.dtype.kind == "f":
            raise ValueError(f"it has {given.dtype}, where decimals or counts of steps must be")
        return given
    values = given if isinstance(given, list) else _as_list(given)
    kinds = set(map(type, values))
    if any(issubclass(kind, date | timedelta | np.datetime64 | np.timedelta64) for kind in kinds):
        return np.concatenate([_ticks(_time(value), unit) for value in values])
    takes_steps = (Decimal, *FLOATS) if scale is not None else (Decimal,)
    if any(issubclass(kind, takes_steps) for kind in kinds):
        return [_steps(value, scale or 0) for value in values]
    return values


def _time(value: object) -> NDArray[Any]:
    """Returns one time as an array of one; a moment in UTC where it has no time zone."""
    for method in ("to_datetime64", "to_timedelta64"):  # of pandas, which has nanoseconds
        if hasattr(value, method):
            return np.atleast_1d(getattr(value, method)())
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    array = np.atleast_1d(np.asarray(value))
    if array.dtype == object:
        array = array.astype("m8[us]" if isinstance(value, timedelta) else "M8")
    return array


def _ticks(given: NDArray[Any], unit: str | None) -> NDArray[np.int64]:
    """Converts datetime64 or timedelta64 to counts of a unit."""
    if unit is None:
        raise ValueError(f"it has {given.dtype}, for which its trait has no unit")
    if given.dtype in ("m8[M]", "m8[Y]"):
        raise ValueError(f"it has {given.dtype}, which has no fixed length")
    if np.isnat(given).any():
        raise ValueError("it has a time that is NaT")
    kind, unit = given.dtype.kind, unit.upper() if unit == "d" else unit
    times = given.astype(f"{kind}8[{unit}]")
    if (times.astype(given.dtype) != given).any() or (
        # Coarse units wrap round where finer ones do not reach.
        times.astype(f"{kind}8[D]") != given.astype(f"{kind}8[D]")
    ).any():
        raise ValueError(
            f"it has times that are no whole {UNIT_NAMES[unit]}; round them with "
            f".astype('{DTYPES[kind]}[{unit}]')"
        )
    return times.view(np.int64)


def _steps(value: object, scale: int) -> object:
    """Converts a decimal to steps; integers count steps already, and floats are no decimals."""
    if isinstance(value, FLOATS):
        raise ValueError(f"{value} is a float, where a decimal or a count of steps must be")
    if not isinstance(value, Decimal):
        return value
    with suppress(ArithmeticError):  # of more digits than EXACT has
        if value.is_finite() and (steps := value.scaleb(scale, EXACT)) == int(steps):
            return int(steps)
    raise ValueError(f"{value} is no whole number of steps of a scale of {scale}")


def _as_list(given: Any) -> list[Any]:  # noqa: ANN401
    """Lists a sequence's elements as Python's own values where it knows how."""
    if isinstance(given, str | bytes):
        raise ValueError(f"it is the text {given!r}, not a sequence")
    for method in ("tolist", "to_pylist"):
        if not isinstance(given, np.ndarray) and hasattr(given, method):
            given = getattr(given, method)()
    # What masked arrays have in place of a masked element turns into 0 as a number.
    return [None if value is np.ma.masked else value for value in given]


def _from_numbers(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Converts an array of numbers."""
    source, target = values.dtype.kind, dtype.kind
    if source not in "biuf":
        raise ValueError(f"it holds {values.dtype}, not numbers")
    if values.dtype == dtype:
        return values
    if target == "b":
        _require((values == 0) | (values == 1), values, dtype)
    elif target in "iu" and source == "f":
        bounds = np.iinfo(dtype)
        wide = values.astype(np.float64) if values.itemsize < 8 else values
        # Both bounds are floats without rounding; the upper one is exclusive.
        fits = (wide >= float(bounds.min)) & (wide < float(int(bounds.max) + 1))
        _require(fits & (np.trunc(wide) == wide), values, dtype)
    elif target in "iu" and source in "iu":
        bounds = np.iinfo(dtype)
        _require((values >= int(bounds.min)) & (values <= int(bounds.max)), values, dtype)
    elif target == "f" and source in "iu":
        # Integers up to this are floats; beyond it some are.
        most = 1 << (np.finfo(dtype).nmant + 1)
        if values.size and max(-int(values.min()), int(values.max())) > most:
            exactly = [_is_float(value, dtype) for value in values.ravel().tolist()]
            _require(np.array(exactly).reshape(values.shape), values, dtype)
    elif target == "f" and source == "f" and dtype.itemsize < values.itemsize:
        with np.errstate(over="ignore"):
            narrow = values.astype(dtype)
        _require(np.isfinite(narrow) | ~np.isfinite(values), values, dtype)
        return narrow
    return values.astype(dtype)


def _from_objects(values: Sequence[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Converts Python numbers one by one, unless all are of one type."""
    kinds = set(map(type, values))
    if len(kinds) == 1 and kinds <= {int, float, bool}:
        array = np.array(values)
        # Integers of 65 bits are objects to numpy, and floats where their signs differ.
        if array.dtype.kind == {int: "i", float: "f", bool: "b"}[kinds.pop()]:
            return _from_numbers(array, dtype)
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    for value in plain:
        if not isinstance(value, int | float):
            raise ValueError(f"{value!r:.80} is no number")
        if dtype.kind in "iu" and not (
            value == value // 1 and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
        ):
            raise _misfit(value, dtype)
        if dtype.kind == "b" and value not in (0, 1):
            raise _misfit(value, dtype)
        if dtype.kind == "f" and isinstance(value, int) and not _is_float(value, dtype):
            raise _misfit(value, dtype)
    if dtype.kind == "f":
        return _from_numbers(np.array(plain, np.float64), dtype)
    return np.array([int(value) for value in plain], dtype)


def _is_float(value: int, dtype: np.dtype[Any]) -> bool:
    try:
        with np.errstate(over="ignore"):
            return int(dtype.type(value)) == value
    except OverflowError:
        return False


def _require(fits: Any, values: NDArray[Any], dtype: np.dtype[Any]) -> None:  # noqa: ANN401
    """Refuses the first value that does not fit."""
    if not np.all(fits):
        raise _misfit(values[~fits][0], dtype)


def _misfit(value: object, dtype: np.dtype[Any]) -> ValueError:
    return ValueError(f"{value} cannot be stored as {dtype} without a change")
