"""Sizes that the columns of a Parquet file take once they are read, worked out before they are.

Pages say how many bytes they become, but not how often a text of their dictionary repeats, or a
prefix of the text before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.core.files.arrow import is_list_of_any_length, load_pyarrow
from thinrow.core.files.arrow_sizes import text_lengths
from thinrow.core.files.parquet_pages import ColumnPages, declared_pages, read_pages
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["BATCH_TEXT_BYTES_MAX", "GROUP_BYTES_MAX", "GroupSizes"]

GROUP_BYTES_MAX = 1 << 30
"""Limit on what a row group becomes beyond a multiple of its bytes."""
BYTES_PER_STORED_BYTE = 1000
"""Compression that honest columns do not reach: there equal values fill whole row groups."""
BATCH_TEXT_BYTES_MAX = 256 << 20
"""Limit on the texts of a dictionary in one batch; a batch has fewer rows where they are long."""
VALUE_BYTES = 8


@dataclass(frozen=True, slots=True)
class GroupSizes:
    """Sizes of the row groups of one file. Methods raise pyarrow's errors and ValueError."""

    path: str
    metadata: pq.FileMetaData
    source: pa.NativeFile | None
    """The file; None if reading a page's header from it takes a request over the network."""
    open_texts: Callable[[list[str]], pq.ParquetFile]
    """Opens the file again, so that these columns of texts are read as dictionaries."""

    def rows_max(self, group: int, leaves: Collection[int]) -> int:
        """Checks what columns of a row group become, and returns the most rows to read at once.

        Rows are read some thousand at a time, but a page is decompressed whole, and one row may
        hold all values of a list.

        Args:
            group: Number of the row group.
            leaves: Numbers of Parquet's columns.

        Raises:
            InputError: They would take too much; the message names file and column.
        """
        row_group = self.metadata.row_group(group)
        columns = {leaf: row_group.column(leaf) for leaf in sorted(leaves)}
        pages = {
            leaf: declared_pages(column) if self.source is None else read_pages(self.source, column)
            for leaf, column in columns.items()
        }
        for leaf, of_leaf in pages.items():
            is_flat = not self.metadata.schema.column(leaf).max_repetition_level
            if is_flat and of_leaf.values != row_group.num_rows:
                # A reader would leave out the rows, or the values, of which there are more.
                raise ValueError(
                    f"row group {group} has {row_group.num_rows} rows and a column has "
                    f"{of_leaf.values} values"
                )
        stored = sum(column.total_compressed_size for column in columns.values())
        most = GROUP_BYTES_MAX + BYTES_PER_STORED_BYTE * stored
        sizes = {leaf: self._page_bytes(leaf, pages[leaf]) for leaf in leaves}
        self._require(group, stored, most, sizes)
        row_bytes = 0
        for leaf, of_leaf in pages.items():
            if not self._repeats_long(leaf, of_leaf):
                continue
            longest = self._longest_bytes(group, leaf, of_leaf)
            if sum(sizes.values()) + longest * of_leaf.values > most:
                longest, texts = self._measured(group, leaf, of_leaf)
                sizes[leaf] += texts
            self._require(group, stored, most, sizes)
            if not self.metadata.schema.column(leaf).max_repetition_level:
                row_bytes += longest
        return max(1, BATCH_TEXT_BYTES_MAX // max(1, row_bytes))

    def _page_bytes(self, leaf: int, pages: ColumnPages) -> int:
        """Bytes of a column's pages, and of values of a fixed width that they may repeat."""
        column = self.metadata.schema.column(leaf)
        width = VALUE_BYTES if column.max_repetition_level else 0
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY":
            width = max(width, column.length)
        return max(pages.decoded_bytes, width * pages.values)

    def _repeats_long(self, leaf: int, pages: ColumnPages) -> bool:
        """Returns whether repeated texts can make the column much larger than its pages."""
        once = pages.decoded_bytes if pages.shares_prefixes else pages.dictionary_bytes
        is_text = self.metadata.schema.column(leaf).physical_type == "BYTE_ARRAY"
        return is_text and once * pages.values > BATCH_TEXT_BYTES_MAX

    def _longest_bytes(self, group: int, leaf: int, pages: ColumnPages) -> int:
        """Bounds the bytes of a text that the column repeats."""
        if pages.shares_prefixes:
            return pages.decoded_bytes
        if not pages.opens_with_dictionary:
            return pages.dictionary_bytes
        # The first row comes with the whole dictionary.
        arrays = next(self._texts(group, leaf, 1), ())
        return max((int(text_lengths(a.dictionary).max(initial=0)) for a in arrays), default=0)

    def _measured(self, group: int, leaf: int, pages: ColumnPages) -> tuple[int, int]:
        """Bytes of the longest text that the column has, and of all, each standing for itself."""
        rows, repeated = MEASURED_ROWS, True
        if pages.shares_prefixes:  # Arrow does not make dictionaries of them
            rows, repeated = max(1, BATCH_TEXT_BYTES_MAX // pages.decoded_bytes), False
        longest = total = 0
        for arrays in self._texts(group, leaf, rows, as_dictionaries=repeated):
            for array in arrays:
                lengths = text_lengths(array)
                if repeated:
                    lengths = text_lengths(array.dictionary)[array.indices.drop_null().to_numpy()]
                longest = max(longest, int(lengths.max(initial=0)))
                total += int(lengths.sum())
        return longest, total

    def _texts(
        self, group: int, leaf: int, rows: int, *, as_dictionaries: bool = True
    ) -> Iterator[list[pa.Array]]:
        """Reads one column of texts, some rows at a time."""
        stored = self.metadata.schema
        path = stored.column(leaf).path
        if [stored.column(n).path for n in range(len(stored))].count(path) > 1:
            raise InputError(
                f"{self.path} has two columns that are stored as {path!r}; rename one."
            )
        with self.open_texts([path] if as_dictionaries else []) as file:
            for batch in file.iter_batches(rows, row_groups=[group], columns=[path]):
                yield [array for column in batch.columns for array in text_arrays(column)]

    def _require(self, group: int, stored: int, most: int, sizes: dict[int, int]) -> None:
        decoded = sum(sizes.values())
        if decoded <= most:
            return
        largest = self.metadata.schema.column(max(sizes, key=sizes.__getitem__)).path
        raise InputError(
            f"{self.path}: the {stored:,} bytes of row group {group} would take {decoded:,} once "
            f"read, most of them for {largest}; write it in smaller row groups."
        )


MEASURED_ROWS = 1 << 16
"""Rows of a column that are measured at once."""


def text_arrays(array: pa.Array) -> Iterator[pa.Array]:
    """The arrays without children within an array."""
    types, kind = load_pyarrow().types, array.type
    if types.is_map(kind):
        yield from text_arrays(array.keys)
        yield from text_arrays(array.items)
    elif types.is_struct(kind):
        for child in array.flatten():
            yield from text_arrays(child)
    elif is_list_of_any_length(kind) or types.is_fixed_size_list(kind):
        yield from text_arrays(array.flatten())
    else:
        yield array
