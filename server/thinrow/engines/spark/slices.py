"""Slices: pieces of the input files, each of which one task reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from thinrow.core.files.parquet import open_parquet
from thinrow.events.user_ids import UserIdReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from thinrow.core.files.paths import DataFile
    from thinrow.core.ids import IdKind

__all__ = ["SAMPLED_FILES", "SLICE_BYTES", "Slice", "cut_files", "ranges_of", "user_bounds"]

SLICE_BYTES = 64 << 20
"""Bytes of Parquet that one task reads, about; row groups stay whole."""
REQUESTS_AT_ONCE = 16
SAMPLED_FILES = 16
SAMPLED_ROWS = 1 << 16
"""Rows of each sampled file from which ranges of users are estimated."""
RANGE_EVENTS = 1 << 21
"""Events that a task has in memory at once, about; those of one user always stay together."""
RANGES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the row groups of a file, by their place among as many equal pieces."""

    file: DataFile
    piece: int
    pieces: int
    byte_count: int
    """Bytes of the piece, about."""

    def row_groups(self, count: int) -> range:
        """Returns the row groups of this piece, of a file that has `count`."""
        first, last = (count * end // self.pieces for end in (self.piece, self.piece + 1))
        return range(first, last)


def cut_files(files: Sequence[DataFile]) -> list[Slice]:
    """Cuts files into slices of about SLICE_BYTES.

    Raises:
        InputError: A file cannot be read.
    """
    found = [file.absolute for file in files]  # executors run in folders of their own
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        sizes = list(threads.map(lambda file: file.end(0)[0], found))
    slices = []
    for file, size in zip(found, sizes, strict=True):
        pieces = max(1, -(-size // SLICE_BYTES))
        slices += [Slice(file, piece, pieces, size // pieces) for piece in range(pieces)]
    return slices


def user_bounds(slices: Sequence[Slice], kind: IdKind, shards: int) -> NDArray[np.uint64]:
    """Estimates ranges of users that have about RANGE_EVENTS events in each shard.

    They decide how much a task has in memory, and nothing of what it writes.

    Args:
        slices: The input.
        kind: Kind of the ids of users.
        shards: Number of shards.

    Returns:
        The last user of each range but the last one, as unsigned numbers, ascending.

    Raises:
        InputError: A file cannot be read.
    """
    step = max(1, len(slices) // SAMPLED_FILES)
    keys, rows, group_bytes = [np.empty(0, np.int64)], 0, 0
    for one in slices[::step][:SAMPLED_FILES]:
        with open_parquet(one.file) as file:
            found = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
            # Writers may leave a first group without rows.
            sampled = next(((n, group) for n, group in enumerate(found) if group.num_rows), None)
            if sampled is None or "user_id" not in file.schema_arrow.names:
                continue
            number, group = sampled
            rows += group.num_rows
            group_bytes += sum(
                group.column(place).total_compressed_size for place in range(group.num_columns)
            )
            pieces = file.iter_batches(SAMPLED_ROWS, columns=["user_id"], row_groups=[number])
            batch = next(pieces)
            # Nulls are refused by the tasks, which read all rows.
            column = pa.table(batch).column("user_id").drop_null()
            keys.append(UserIdReader(kind).keys(one.file, column))
    if not rows:
        return np.empty(0, np.uint64)
    total = sum(one.byte_count for one in slices) * rows / max(group_bytes, 1)
    return ranges_of(np.concatenate(keys), total, shards)


def ranges_of(sampled: NDArray[np.int64], total: float, shards: int) -> NDArray[np.uint64]:
    """Returns the last user of each range but the last one, as unsigned numbers, ascending.

    Args:
        sampled: Users of some events.
        total: Number of all events, about.
        shards: Number of shards.
    """
    ranges = int(min(RANGES_MAX, max(1, -(-total // (shards * RANGE_EVENTS)))))
    users = np.sort(sampled.view(np.uint64))
    places = (np.arange(1, ranges) * len(users)) // ranges
    return np.unique(users[places]) if len(users) else np.empty(0, np.uint64)
