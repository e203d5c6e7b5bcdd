"""Scratch files of Arrow record batches, compressed with LZ4."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LZ4", "open_batches", "read_batch", "write_batches"]

LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


def write_batches(path: Path, table: pa.Table, bounds: NDArray[np.int64]) -> None:
    """Writes a table in record batches that end at ``bounds``, of any sizes."""
    table = table.combine_chunks()
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=LZ4) as writer,
    ):
        for low, high in pairwise(bounds.tolist()):
            part = table.slice(low, high - low).to_batches()
            empty = pa.RecordBatch.from_pylist([], schema=table.schema)
            writer.write_batch(part[0] if part else empty)


def open_batches(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Opens a file of record batches."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def read_batch(path: Path, number: int) -> pa.Table:
    """Reads one record batch of a file."""
    return pa.table(open_batches(path).get_batch(number))
