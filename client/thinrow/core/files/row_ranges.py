"""Files that make one table, read by ranges of its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.parquet import JointColumns, open_parquet
from thinrow.core.files.rows import leaves_of, with_traits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from thinrow.core.files.paths import DataFile

__all__ = ["RowRanges"]


@dataclass(frozen=True, slots=True)
class RowRanges:
    """Files, and where their rows lie in the table that they make."""

    files: tuple[DataFile, ...]
    group_rows: tuple[tuple[int, ...], ...]
    """Rows of each row group of each file."""
    columns: JointColumns
    has_fewer_traits: bool = False
    """True if not all traits of mutable events are read."""

    @classmethod
    def of(cls, files: Sequence[DataFile], columns: Sequence[str] | None = None) -> RowRanges:
        """Finds the rows and columns of some files; columns None for all.

        Raises:
            InputError: A file cannot be read, lacks a column of another, or has it in another type.
        """
        groups = []
        for file in files:
            with open_parquet(file) as table:
                count = table.metadata.num_row_groups
                groups.append(tuple(table.metadata.row_group(n).num_rows for n in range(count)))
        return cls(tuple(files), tuple(groups), JointColumns.of(files, columns))

    def narrowed(self, columns: Sequence[str], traits: Sequence[str] | None) -> RowRanges:
        """Returns the same thin rows with no other columns, and no other traits of mutable events.

        Args:
            columns: Columns to read, `mutable` among them.
            traits: Traits to read of mutable events; None for all.
        """
        joint = self.columns
        schema = load_pyarrow().schema([field for field in joint.schema if field.name in columns])
        # Files that differ are conformed to the joint schema, which needs all of a column.
        has_fewer = traits is not None and joint.is_common
        if traits is not None and has_fewer:
            schema = with_traits(schema, traits)
        return replace(self, columns=replace(joint, schema=schema), has_fewer_traits=has_fewer)

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(map(sum, self.group_rows))

    @property
    def absolute(self) -> RowRanges:
        """The same files by paths that hold in every folder."""
        return replace(self, files=tuple(file.absolute for file in self.files))

    def bounds(self, rows: int) -> list[int]:
        """Cuts the table where row groups end, into ranges of about some rows.

        Returns:
            The first row of each range, and the number of all rows.
        """
        bounds = [0]
        ends = accumulate(count for counts in self.group_rows for count in counts)
        for end in ends:
            if end - bounds[-1] >= rows:
                bounds.append(end)
        return bounds if bounds[-1] == self.rows else [*bounds, self.rows]

    def batches(
        self, first: int, last: int, rows: int
    ) -> Iterator[tuple[DataFile, pa.RecordBatch]]:
        """Reads rows `[first, last)`, at most `rows` of one file at a time, each with its file."""
        start = 0
        for file, counts in zip(self.files, self.group_rows, strict=True):
            ends = list(accumulate(counts, initial=start))
            groups = [
                number
                for number in range(len(counts))
                if ends[number] < last and ends[number + 1] > first
            ]
            start = ends[-1]
            if not groups:
                continue
            place = ends[groups[0]]
            leaves = leaves_of if self.has_fewer_traits else None
            for batch in self.columns.batches(file, rows, groups, leaves):
                low, high = max(first - place, 0), min(last - place, len(batch))
                place += len(batch)
                if low < high:
                    yield file, batch.slice(low, high - low)
                if place >= last:
                    break
