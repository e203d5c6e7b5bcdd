"""Rows of a fill in memory: each key once, found for events by a join."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow import _native
from thinrow.errors import InputError, UsageError
from thinrow.filling.config import VALUES_BYTES_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.filling.key_names import KeyNames
    from thinrow.filling.table import FillTable

__all__ = ["FillRows", "check_bytes", "text_of_key"]


class FillRows:
    """Distinct rows of a table of values."""

    def __init__(self, frame: pl.DataFrame, table: FillTable, names: KeyNames) -> None:
        """Takes rows in the form in which they are stored.

        Args:
            frame: The rows.
            table: Their columns.
            names: Names keys in errors.

        Raises:
            InputError: Two rows of one key have different values; names the key and the column.
        """
        self.key = list(table.key)
        self.keys, self.values = frame.select(self.key), frame.select(table.filled_names)
        self._index = None
        if all(kind.is_integer() for kind in self.keys.dtypes):
            self._nullable = frozenset(column.name for column in self.keys if column.null_count())
            words, size = _words(self.keys, self._nullable)
            self._index = _native.RowIndex(words, size)
            firsts = self._index.firsts()
            is_first = firsts == np.arange(len(frame))
            if not is_first.all():
                _check_alike(
                    self.keys, self.values, np.flatnonzero(~is_first), firsts, table, names
                )
        else:
            first = self.keys.with_row_index("row:").unique(
                self.key, keep="first", maintain_order=True
            )
            is_first = np.zeros(len(frame), dtype=np.bool_)
            is_first[first["row:"].to_numpy()] = True
            if not is_first.all():
                firsts = _joined(self.keys, first, self.key)
                _check_alike(
                    self.keys, self.values, np.flatnonzero(~is_first), firsts, table, names
                )
            self._first = first
        self._is_first = is_first
        self.matched = np.zeros(len(frame), dtype=np.bool_)
        """True for rows that an event had, shape (rows,); of several of a key, for the first."""

    def __len__(self) -> int:
        """Returns the number of distinct rows."""
        return int(self._is_first.sum())

    def match(self, events: pl.DataFrame) -> NDArray[np.int64]:
        """Finds each event's row.

        Args:
            events: Columns of the key.

        Returns:
            Number of the row, -1 for none; shape (events,).
        """
        if self._index is not None:
            found = self._index.find(_words(events, self._nullable)[0])
            for column in events:
                if column.name not in self._nullable and column.null_count():
                    found[column.is_null().to_numpy()] = -1
        else:
            found = _joined(events, self._first, self.key)
        self.matched[found[found >= 0]] = True
        return found

    @property
    def unmatched(self) -> pl.DataFrame:
        """Keys of the distinct rows that no event had."""
        return self.keys.filter(self._is_first & ~self.matched)


def _words(keys: pl.DataFrame, nullable: frozenset[str]) -> tuple[NDArray[np.uint64], int]:
    """Returns keys as words, one key after the other, and the words of a key.

    A word before that of a nullable column says whether the key has it.
    """
    columns: list[NDArray[np.uint64]] = []
    for column in keys:
        if column.name in nullable:
            columns.append(column.is_not_null().to_numpy().astype(np.uint64))
        numbers = column.fill_null(0).to_numpy()
        wide = numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.uint64, copy=False)
        columns.append(wide.view(np.uint64))
    return np.column_stack(columns).reshape(-1), len(columns)


def _joined(events: pl.DataFrame, first: pl.DataFrame, key: list[str]) -> NDArray[np.int64]:
    """The row of each event, of keys with texts or lists; -1 for none."""
    # Key traits may be null, and then stand for events that lack them.
    joined = events.join(first, on=key, how="left", nulls_equal=True, maintain_order="left")
    found: NDArray[np.int64] = joined["row:"].cast(pl.Int64).fill_null(-1).to_numpy()
    return found


def _check_alike(
    keys: pl.DataFrame,
    values: pl.DataFrame,
    others: NDArray[np.int64],
    firsts: NDArray[np.int64],
    table: FillTable,
    names: KeyNames,
) -> None:
    """Raises InputError where rows that repeat a key have other values than the first of it."""
    for name, column in zip(values.columns, values, strict=True):
        differs = column.gather(others).ne_missing(column.gather(firsts[others]))
        if differs.any():
            key = names.shown(keys.row(int(others[differs.arg_max() or 0]), named=True))
            raise InputError(
                f"{table.files[0] if len(table.files) == 1 else 'The files of values'}: rows with "
                f"{text_of_key(key)} have different values of {name}; keep "
                f"one of them."
            )


def check_bytes(total: int, *, by_user: bool) -> None:
    """Raises UsageError where rows have more than VALUES_BYTES_MAX bytes."""
    if total > VALUES_BYTES_MAX:
        what = "of one shard" if by_user else "of the table"
        raise UsageError(
            f"The rows {what} have more than {VALUES_BYTES_MAX:,} bytes, which must be in memory "
            f"at once; fill them in parts, one after the other: each part leaves the values of "
            f"others."
        )


def text_of_key(row: dict[str, object]) -> str:
    """A row's key as people read it."""
    return ", ".join(f"{name} {value!r}" for name, value in row.items())
