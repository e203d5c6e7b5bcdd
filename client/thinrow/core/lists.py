"""Lists that callers hand in, one for each event, as their elements one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.core.pointers import MutableColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["flattened", "split_rows"]


def split_rows(given: Any) -> tuple[Any, NDArray[np.bool_] | None]:  # noqa: ANN401
    """Separates lists from absent ones, which are None, or masked whole.

    Args:
        given: An array of shape (events, elements), or a sequence of lists; or a MutableColumn of
            such, of which `present` chooses.

    Returns:
        The lists that are there, and a mask of shape (events,) that is True where one is; None
        where all are.

    Raises:
        ValueError: An array has numbers where lists must be.
    """
    if isinstance(given, MutableColumn):
        if given.present is None:
            return split_rows(given.values)
        present = np.asarray(given.present, np.bool_)
        if present.shape != (len(given.values),):
            raise ValueError(f"present has the shape {present.shape}, and there are other lists")
        return list(compress(given.values, present)), present
    if isinstance(given, np.ndarray) and given.dtype != object:
        if given.ndim != 2:
            raise ValueError(f"it has the shape {given.shape}, where every event has a list")
        if not np.ma.isMaskedArray(given):
            return given, None
    rows: list[Any] = given.tolist() if isinstance(given, np.ndarray) else [*_sequence(given)]
    if np.ma.isMaskedArray(given):
        masked = np.ma.getmaskarray(given).reshape(len(given), -1).tolist()
        rows = [None if all(gone) else row for row, gone in zip(rows, masked, strict=True)]
    present = np.array([row is not None for row in rows], np.bool_)
    if present.all():
        return rows, None
    return [row for row in rows if row is not None], present


def flattened(rows: Any) -> tuple[Any, NDArray[np.int64]]:  # noqa: ANN401
    """Returns the elements of all lists, and the number of elements of each.

    Args:
        rows: An array of shape (lists, elements), or a list of arrays and sequences.

    Raises:
        ValueError: A list is none, or a list of lists.
    """
    if isinstance(rows, np.ndarray):
        return rows.reshape(-1), np.full(len(rows), rows.shape[1], np.int64)
    lists = [_sequence(row) for row in rows]
    lengths = np.array([len(each) for each in lists], np.int64)
    dtypes = {each.dtype if isinstance(each, np.ndarray) else None for each in lists}
    # Arrays of several types would become floats, which round.
    if len(dtypes) == 1 and None not in dtypes and object not in dtypes:
        return np.concatenate(lists), lengths
    return [*chain.from_iterable(map(_elements, lists))], lengths


def _sequence(row: Any) -> Any:  # noqa: ANN401
    """Returns a list, or an array of one dimension without a mask."""
    if isinstance(row, np.ndarray):
        if row.ndim != 1:
            raise ValueError(f"it has an array of shape {row.shape} where a flat one must be")
        return row.tolist() if np.ma.isMaskedArray(row) else row
    for method in ("to_pylist", "tolist"):  # of Arrow and of series
        if hasattr(row, method):
            row = getattr(row, method)()
    if not isinstance(row, Sequence) or isinstance(row, str | bytes):
        raise ValueError(f"it has {row!r} where a list must be")
    return row


def _elements(row: Any) -> Any:  # noqa: ANN401
    return row.tolist() if isinstance(row, np.ndarray) else row
