"""Rows of a fill in memory: each key once, found for events by an index."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import numpy as np
from thinrow import _native
from thinrow.errors import InputError, UsageError
from thinrow.filling.config import VALUES_BYTES_MAX

if TYPE_CHECKING:
    import polars as pl
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
        self._nullable = frozenset(column.name for column in self.keys if column.null_count())
        self._seeds = secrets.randbits(63), secrets.randbits(63)
        self._index = _native.RowIndex(*self._words(self.keys))
        firsts = self._index.firsts()
        is_first = firsts == np.arange(len(frame))
        assert not self._differs(self.keys, firsts).any(), "two hashes of 128 bits are equal"
        if not is_first.all():
            _check_alike(self.keys, self.values, np.flatnonzero(~is_first), firsts, table, names)
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
        found = self._index.find(self._words(events)[0])
        for column in events:
            if column.name not in self._nullable and column.null_count():
                found[column.is_null().to_numpy()] = -1
        found[self._differs(events, found)] = -1
        self.matched[found[found >= 0]] = True
        return found

    @property
    def unmatched(self) -> pl.DataFrame:
        """Keys of the distinct rows that no event had."""
        return self.keys.filter(self._is_first & ~self.matched)

    def _words(self, keys: pl.DataFrame) -> tuple[NDArray[np.uint64], int]:
        """Returns keys as words, one key after the other, and the words of a key.

        A word before that of a nullable column says whether the key has it. Texts and lists are two
        hashes under seeds of this table, so that no one can choose some that share them.
        """
        columns: list[NDArray[np.uint64]] = []
        for column in keys:
            if column.name in self._nullable:
                columns.append(column.is_not_null().to_numpy().astype(np.uint64))
            if not column.dtype.is_integer():
                columns += [column.hash(seed).to_numpy() for seed in self._seeds]
                continue
            numbers = column.fill_null(0).to_numpy()
            wide = numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.uint64, copy=False)
            columns.append(wide.view(np.uint64))
        return np.column_stack(columns).reshape(-1), len(columns)

    def _differs(self, events: pl.DataFrame, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns True where an event has a row of equal hashes whose texts or lists differ."""
        differs = np.zeros(len(rows), np.bool_)
        has = np.flatnonzero(rows >= 0)
        for column in events:
            if not column.dtype.is_integer():
                known = self.keys[column.name].gather(rows[has])
                differs[has] |= column.gather(has).ne_missing(known).to_numpy()
        return differs


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
