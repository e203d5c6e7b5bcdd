"""Rows of a fill in memory: each key once, found for events by a join."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow.errors import InputError, UsageError
from thinrow.filling.config import VALUES_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.filling.table import FillTable

__all__ = ["FillRows", "check_bytes", "text_of_key"]


class FillRows:
    """Distinct rows of a table of values."""

    def __init__(self, rows: pa.Table, table: FillTable) -> None:
        """Takes rows in canonical form.

        Raises:
            InputError: Two rows of one key have different values; names the key and the column.
        """
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        self.key = list(table.key)
        frame = _distinct(frame, self.key, table)
        self._users: NDArray[np.uint64] | None = None
        if table.by_user:
            users = frame["user_id"].to_numpy().view(np.uint64)
            order = np.argsort(users, kind="stable")
            frame, self._users = frame[order], users[order]
        self.keys = frame.select(self.key)
        self.values = frame.select([trait.name for trait in table.filled])
        self.matched = np.zeros(len(frame), dtype=np.bool_)
        """True for rows that an event had, shape (rows,)."""

    def match(self, events: pl.DataFrame) -> NDArray[np.int64]:
        """Finds each event's row.

        Args:
            events: Columns of the key; of users that ascend as keys do.

        Returns:
            Number of the row, -1 for none; shape (events,).
        """
        first, last = 0, len(self.keys)
        if self._users is not None and len(events):
            users = events["user_id"].to_numpy().view(np.uint64)
            first = int(np.searchsorted(self._users, users[0]))
            last = int(np.searchsorted(self._users, users[-1], side="right"))
        if first == last or not len(events):
            return np.full(len(events), -1)
        numbered = self.keys[first:last].with_columns(
            pl.Series("row", np.arange(first, last), dtype=pl.Int64)
        )
        # Key traits may be null, and then stand for events that lack them.
        joined = events.join(
            numbered, on=self.key, how="left", nulls_equal=True, maintain_order="left"
        )
        found = joined["row"].fill_null(-1).to_numpy()
        self.matched[found[found >= 0]] = True
        return found

    @property
    def unmatched(self) -> pl.DataFrame:
        """Keys of the rows that no event had."""
        return self.keys.filter(~self.matched)


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


def _distinct(frame: pl.DataFrame, key: Sequence[str], table: FillTable) -> pl.DataFrame:
    """One row of each key. Raises InputError where rows contradict one another."""
    numbered = frame.with_row_index("row:")
    first = numbered.unique(list(key), keep="first", maintain_order=True)
    if len(first) == len(frame):
        return frame
    others = numbered.join(first.select("row:"), on="row:", how="anti")
    names = [trait.name for trait in table.filled]
    both = others.join(first, on=list(key), how="left", nulls_equal=True, suffix=":first")
    for name in names:
        differs = both.filter(pl.col(name).ne_missing(pl.col(f"{name}:first")))
        if len(differs):
            shown = text_of_key(differs.select(key).row(0, named=True))
            raise InputError(
                f"{table.files[0] if len(table.files) == 1 else 'The files of values'}: rows with "
                f"{shown} have different values of {name}; keep one of them."
            )
    return first.drop("row:")
