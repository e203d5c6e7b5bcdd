"""Files of thin rows, to pick single rows from."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.files.arrow import plain
from thinrow.core.files.parquet import open_parquet
from thinrow.core.files.paths import data_files
from thinrow.core.files.rows import check, other_columns, to_thin_rows
from thinrow.core.files.user_columns import uuid_texts
from thinrow.errors import InputError
from thinrow.explore.values import value_text
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thinrow.client import ThinRows
    from thinrow.core.files.paths import DataFile, Named

__all__ = ["LABELS_MAX", "ROWS_LISTED_MAX", "ROWS_SEARCHED_MAX", "RowFiles"]

ROWS_LISTED_MAX = 25
"""Rows in one list."""
ROWS_SEARCHED_MAX = 20_000_000
"""Rows that are searched for those of one user."""
LABELS_MAX = 20
"""Other columns shown of a row."""
BATCH_ROWS = 256
"""Rows with their snapshots that are read at once."""
SEARCH_ROWS = 1 << 16
"""Ids of users that are read at once."""


class RowFiles:
    """The rows of Parquet files, numbered from 0 in the order of the files.

    Raises:
        InputError: One is no file of thin rows.
    """

    def __init__(self, path: Named) -> None:
        self._groups: list[tuple[DataFile, int]] = []
        counts = []
        for file in data_files(path):
            with open_parquet(file) as table:
                check(file, table.schema_arrow)
                for number in range(table.metadata.num_row_groups):
                    self._groups.append((file, number))
                    counts.append(table.metadata.row_group(number).num_rows)
        self._starts = list(accumulate(counts, initial=0))
        self.count = self._starts[-1]
        """Number of rows."""
        if not self.count:
            raise InputError(f"{path} holds no thin rows; name a file that has some.")

    def read(self, number: int) -> tuple[ThinRows, dict[str, str]]:
        """Returns a row, of a number below `count`, and its other columns as text."""
        group = bisect_right(self._starts, number) - 1
        file, row_group = self._groups[group]
        place = number - self._starts[group]
        with open_parquet(file) as table:
            for batch in table.iter_batches(BATCH_ROWS, row_groups=[row_group]):
                if place < len(batch):
                    row = batch.slice(place, 1)
                    return to_thin_rows(file, row), labels(row)
                place -= len(batch)
        raise InputError(f"{file} has fewer rows than its footer says; write the file again.")

    def listed(self, start: int, user_id: int | str | None = None) -> dict[str, Any]:
        """Lists ROWS_LISTED_MAX rows at most, of ROWS_SEARCHED_MAX, from a row on.

        Args:
            start: Number of the first row, `count` at most.
            user_id: A user, to leave out the rows of others.

        Returns:
            The `rows`, and the number of the row to go on from as `next`; None at the end.
        """
        found: list[dict[str, Any]] = []
        for group in range(bisect_right(self._starts, start) - 1, len(self._groups)):
            first = self._starts[group]
            if first - start >= ROWS_SEARCHED_MAX:
                return {"rows": found, "next": first}
            for batch in self._keys(group):
                places = range(max(0, start - first), len(batch))
                if user_id is not None:
                    users = uuid_texts(plain(batch["user_id"])).cast(pa.large_string())
                    is_user = pc.equal(users, pa.scalar(str(user_id), pa.large_string()))
                    of_user = pc.indices_nonzero(is_user.fill_null(False)).to_pylist()
                    places = [place for place in of_user if place in places]
                for place in places:
                    found.append(entry(first + place, batch.slice(place, 1)))
                    if len(found) == ROWS_LISTED_MAX:
                        following = first + place + 1
                        return {
                            "rows": found,
                            "next": following if following < self.count else None,
                        }
                first += len(batch)
        return {"rows": found, "next": None}

    def _keys(self, group: int) -> Iterator[pa.RecordBatch]:
        file, row_group = self._groups[group]
        with open_parquet(file) as table:
            columns = ["user_id", "request_ts"]
            yield from table.iter_batches(SEARCH_ROWS, columns=columns, row_groups=[row_group])


def entry(number: int, row: pa.RecordBatch) -> dict[str, Any]:
    """Returns a row of the list: ids as text, since browsers round large numbers."""
    values = row.to_pylist()[0]
    return {
        "row": number,
        "user": str(values["user_id"]),
        "request_time": readable_time(values["request_ts"]),
    }


def labels(row: pa.RecordBatch) -> dict[str, str]:
    """Returns the columns of one row beside its pointer and snapshot, as text."""
    names = [n for n in other_columns(row.schema) if n not in ("user_id", "request_ts")]
    return {name: value_text(row.column(name)[0].as_py()) for name in names[:LABELS_MAX]}
