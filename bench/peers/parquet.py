"""Fat rows in zstd Parquet, by PyArrow and by Polars.

PyArrow's documentation reads large files with `ParquetFile.iter_batches` and its default threads;
Polars' with `scan_parquet` and its streaming engine, batch by batch with `collect_batches`. Both
use all cores by themselves; reading them ahead in a thread was no faster, nor were PyArrow's
datasets, memory mapping, or whole row groups.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch

warnings.filterwarnings("ignore", "The given NumPy array is not writable")

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sides import Tensors


class FatRows:
    """A Parquet file of fat rows, of which some columns are wanted."""

    pids: Sequence[int] = ()

    def __init__(
        self, path: Path, traits: Sequence[str], batch_examples: int, sequence_length: int = 0
    ) -> None:
        """sequence_length: newest events wanted of rows that hold more; 0: all there are."""
        self.path = path
        self.traits = list(traits)
        self.batch_examples = batch_examples
        self.sequence_length = sequence_length

    def batches(self) -> Iterator[Tensors]:
        """Batches as they are read."""
        raise NotImplementedError

    def cut(self, offsets: np.ndarray, columns: list[np.ndarray]) -> Tensors:
        """Final tensors of lists, given where each begins in the flat columns."""
        offsets = offsets.astype(np.int64) - offsets[0]
        if self.sequence_length and (np.diff(offsets) > self.sequence_length).any():
            ends = offsets[1:]
            starts = np.maximum(offsets[:-1], ends - self.sequence_length)
            pairs = list(zip(starts.tolist(), ends.tolist(), strict=True))
            columns = [np.concatenate([column[a:b] for a, b in pairs]) for column in columns]
            offsets = np.append(0, np.cumsum(ends - starts))
        return int64_tensors(offsets, columns)


class PyArrowRows(FatRows):
    """Read with PyArrow."""

    name = "fat rows, PyArrow"

    def batches(self) -> Iterator[Tensors]:
        """Batches of the size wanted."""
        file = pq.ParquetFile(self.path)
        for batch in file.iter_batches(self.batch_examples, columns=self.traits):
            lists = [batch.column(trait) for trait in self.traits]
            values = [column.flatten().to_numpy() for column in lists]
            yield self.cut(lists[0].offsets.to_numpy(), values)


class PolarsRows(FatRows):
    """Read with Polars."""

    name = "fat rows, Polars"

    def batches(self) -> Iterator[Tensors]:
        """Batches cut from the chunks that the streaming engine makes."""
        frames = pl.scan_parquet(self.path).select(self.traits)
        rest: pl.DataFrame | None = None
        for chunk in frames.collect_batches(chunk_size=self.batch_examples):
            frame = chunk if rest is None or not len(rest) else pl.concat([rest, chunk])
            start = 0
            while len(frame) - start >= self.batch_examples:
                yield self.of_frame(frame.slice(start, self.batch_examples))
                start += self.batch_examples
            rest = frame.slice(start)
        if rest is not None and len(rest):
            yield self.of_frame(rest)

    def of_frame(self, frame: pl.DataFrame) -> Tensors:
        """Tensors of one batch; Polars' lists are Arrow's, so nothing is copied here."""
        lists = [frame[trait].rechunk().to_arrow() for trait in self.traits]
        assert all(isinstance(column, pa.LargeListArray) for column in lists)
        values = [column.flatten().to_numpy() for column in lists]
        return self.cut(lists[0].offsets.to_numpy(), values)


class ShuffledPyArrowRows:
    """A table read whole with PyArrow; batches are its rows in another order, by `take`."""

    name = "fat rows, PyArrow"
    pids: Sequence[int] = ()

    def __init__(
        self, path: Path, traits: Sequence[str], batch_examples: int, order: np.ndarray
    ) -> None:
        self.path = path
        self.traits = list(traits)
        self.batch_examples = batch_examples
        self.order = order

    def batches(self) -> Iterator[Tensors]:
        """Batches of the size wanted."""
        table = pq.read_table(self.path, columns=self.traits).combine_chunks()
        lists = [table.column(trait).chunk(0) for trait in self.traits]
        for start in range(0, len(self.order), self.batch_examples):
            places = pa.array(self.order[start : start + self.batch_examples])
            yield list_tensors([column.take(places) for column in lists])


class ShuffledPolarsRows(ShuffledPyArrowRows):
    """The same with Polars, whose `gather` uses all cores."""

    name = "fat rows, Polars"

    def batches(self) -> Iterator[Tensors]:
        """Batches of the size wanted."""
        frame = pl.read_parquet(self.path, columns=self.traits).rechunk()
        for start in range(0, len(self.order), self.batch_examples):
            rows = frame[self.order[start : start + self.batch_examples]]
            yield list_tensors([rows[trait].rechunk().to_arrow() for trait in self.traits])


def list_tensors(lists: Sequence[pa.Array]) -> Tensors:
    """Tensors of columns of lists of one length."""
    offsets = lists[0].offsets.to_numpy().astype(np.int64)
    return int64_tensors(offsets - offsets[0], [column.flatten().to_numpy() for column in lists])


def int64_tensors(offsets: np.ndarray, columns: Sequence[np.ndarray]) -> Tensors:
    """Tensors over the arrays, widened where they are narrower.

    Arrow's memory is read-only, of which torch warns; nothing writes here, and a copy would cost.
    """
    arrays = (offsets, *columns)
    return [torch.from_numpy(array.astype(np.int64, copy=False)) for array in arrays]
