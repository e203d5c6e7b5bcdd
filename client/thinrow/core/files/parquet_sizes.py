"""Sizes that a Parquet file declares in its footer, compared with the bytes that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection

    import pyarrow.parquet as pq

__all__ = ["GROUP_BYTES_MAX", "require_bounded_group"]

GROUP_BYTES_MAX = 1 << 30
"""Limit on what the pages of a row group become beyond a multiple of their bytes."""
BYTES_PER_STORED_BYTE = 1000
"""Compression that honest columns do not reach: there equal values fill whole row groups."""
VALUE_BYTES = 8


def require_bounded_group(
    path: str,
    metadata: pq.FileMetaData,
    group: int,
    leaves: Collection[int],
) -> None:
    """Checks what the columns of a row group become once they are read.

    Rows are read some thousand at a time, but a page is decompressed whole, and one row may hold
    all values of a list. Raises InputError, naming file and column, before anything is read.
    """
    row_group = metadata.row_group(group)
    decoded = stored = 0
    largest, largest_bytes = "", -1
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        if number not in leaves:
            continue
        is_list = metadata.schema.column(number).max_repetition_level > 0
        size = max(column.total_uncompressed_size, VALUE_BYTES * column.num_values * is_list)
        decoded, stored = decoded + size, stored + column.total_compressed_size
        if size > largest_bytes:
            largest, largest_bytes = column.path_in_schema, size
    if decoded > GROUP_BYTES_MAX + BYTES_PER_STORED_BYTE * stored:
        raise InputError(
            f"{path}: the {stored:,} bytes of row group {group} would take {decoded:,} once read, "
            f"most of them for {largest}; write it in smaller row groups."
        )
