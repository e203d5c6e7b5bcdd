"""Histories as plain arrays: what every side must deliver, made by nothing but slicing.

Fat rows and the peers' tables are written from here, so that nothing measured against ThinRow was
made by it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import polars as pl
    from numpy.typing import NDArray
    from sides import Tensors

ROW_GROUP_EVENTS = 1 << 21
"""Some 70 MB of all traits before compression. Larger ones, 16 M events, made larger files and were
read no faster by PyArrow and slower by Polars."""
TIME_BITS = 42


class Histories:
    """All events by user and time."""

    def __init__(self, events: pl.DataFrame, traits: Sequence[str]) -> None:
        """Sorts the events as histories are: by time, then by traits."""
        events = events.select("user_id", "event_ts", *traits).sort("user_id", "event_ts", *traits)
        user_ids = events["user_id"].to_numpy()
        self.event_ts = events["event_ts"].to_numpy()
        self.traits = {trait: events[trait].to_numpy() for trait in traits}
        self.users, starts = np.unique(user_ids, return_index=True)
        self.starts = np.append(starts, len(user_ids)).astype(np.int64)
        """Offsets of each user's events; shape (users + 1,)."""
        self._first_ts = int(self.event_ts.min())
        ranks = np.repeat(np.arange(len(self.users)), np.diff(self.starts))
        self._keys = self._key(ranks, self.event_ts)

    def _key(self, ranks: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        return (ranks << TIME_BITS) + np.maximum(times - self._first_ts, 0)

    def ranks(self, user_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of users in `users`."""
        return np.searchsorted(self.users, user_ids)

    def ends(self, user_ids: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of each user's first event that is not before a time."""
        return np.searchsorted(self._keys, self._key(self.ranks(user_ids), times))

    def bytes_per_event(self, traits: Sequence[str]) -> int:
        """Values, of the traits' own types."""
        return sum(self.traits[trait].dtype.itemsize for trait in traits)


@dataclass(frozen=True, eq=False)
class Examples:
    """Requests in one order, and what is wanted of each history."""

    histories: Histories
    user_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Place of the first event wanted, among all events."""
    ends: NDArray[np.int64]
    traits: tuple[str, ...]
    batch_examples: int

    @classmethod
    def of(
        cls,
        histories: Histories,
        requests: pl.DataFrame,
        sequence_length: int,
        traits: Sequence[str],
        batch_examples: int,
    ) -> Examples:
        """Make examples of requests with `user_id` and `request_ts`; a length of 0 is no limit."""
        user_ids = requests["user_id"].to_numpy()
        ends = histories.ends(user_ids, requests["request_ts"].to_numpy())
        starts = histories.starts[histories.ranks(user_ids)]
        if sequence_length:
            starts = np.maximum(starts, ends - sequence_length)
        return cls(histories, user_ids, starts, ends, tuple(traits), batch_examples)

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.ends - self.starts

    @property
    def places(self) -> Iterator[slice]:
        """The examples of each batch."""
        for start in range(0, len(self), self.batch_examples):
            yield slice(start, min(start + self.batch_examples, len(self)))

    def gathered(self, trait: str, places: slice) -> NDArray[np.generic]:
        """Values of some examples, concatenated."""
        column = self.histories.traits[trait]
        pairs = zip(self.starts[places].tolist(), self.ends[places].tolist(), strict=True)
        return np.concatenate([column[start:end] for start, end in pairs])

    def batches(self) -> Iterator[Tensors]:
        """The values that every side must deliver."""
        for places in self.places:
            offsets = offsets_of(self.lengths[places])
            columns = [self.gathered(trait, places).astype(np.int64) for trait in self.traits]
            yield [torch.from_numpy(array) for array in (offsets, *columns)]

    def record_batch(self, places: slice, dtype: type[np.int64] | None = None) -> pa.RecordBatch:
        """Some examples as lists, by default of the traits' own types."""
        offsets = pa.array(offsets_of(self.lengths[places]).astype(np.int32))
        arrays = []
        for trait in self.traits:
            values = self.gathered(trait, places)
            values = values if dtype is None else values.astype(dtype)
            arrays.append(pa.ListArray.from_arrays(offsets, pa.array(values)))
        return pa.record_batch(arrays, names=list(self.traits))

    def write_fat_rows(self, path: Path) -> float:
        """Parquet as PyArrow writes it by default, with zstd.

        Returns the seconds of processor of the writing alone, without making the rows.
        """
        user_ids = pa.array(self.user_ids)
        ends = np.cumsum(self.lengths)
        writer = None
        start = 0
        cpu_s = 0.0
        while start < len(self):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + ROW_GROUP_EVENTS, "right")))
            rows = self.record_batch(slice(start, stop))
            rows = rows.append_column("user_id", user_ids.slice(start, stop - start))
            if writer is None:
                writer = pq.ParquetWriter(path, rows.schema, compression="zstd")
            before_s = time.process_time()
            writer.write_batch(rows)
            cpu_s += time.process_time() - before_s
            start = stop
        assert writer is not None
        writer.close()
        return cpu_s


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offsets of consecutive lengths, and the end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def column_bytes(path: Path, columns: Sequence[str]) -> int:
    """Compressed bytes of some columns of a Parquet file: what reading them reads."""
    metadata = pq.ParquetFile(path).metadata
    total = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            if column.path_in_schema.split(".")[0] in columns:
                total += column.total_compressed_size
    return total
