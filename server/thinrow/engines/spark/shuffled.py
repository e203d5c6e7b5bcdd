"""Rows that are shuffled: each has Arrow data of one range of users of one shard.

One row of Spark for each event takes twice the time of Arrow messages of thousands. Messages are
compressed here, since Java copies and sorts what they have.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from thinrow.core.runs import offsets_of
from thinrow.core.shards import shard_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

__all__ = ["COLUMNS", "Item", "Scatter", "batches", "items", "message", "read_table"]

COLUMNS = "part int, sub int, kind string, body binary"
"""Part: shard; sub: number of the range of users, or -1 for what comes before all of them."""
_SCHEMA = pa.schema(
    [("part", pa.int32()), ("sub", pa.int32()), ("kind", pa.string()), ("body", pa.binary())]
)
FLUSH_BYTES = 96 << 20
"""Bytes of events that are divided among shards at once: more make larger messages."""
MESSAGE_BYTES = 1 << 20
"""Bytes of one message before compression, about: Java's collector moves small objects only."""
ZSTD_LEVEL = 1
"""A third of the bytes, for a hundredth of a second a million events."""
BATCH_BYTES = 16 << 20
"""Bytes of messages that Spark gets at once, about."""


class Item(NamedTuple):
    """One row."""

    part: int
    sub: int
    kind: str
    body: bytes | pa.Buffer


class Scatter:
    """Divides tables with `user_id` among shards and ranges of users.

    Args:
        shards: Number of shards.
        bounds: Last user of each range but the last one, as unsigned numbers, ascending.
        kind: Kind of the rows.
    """

    def __init__(self, shards: int, bounds: NDArray[np.uint64], kind: str) -> None:
        self._shards, self._bounds, self._kind = shards, bounds, kind
        self._waiting: list[pa.Table] = []
        self._byte_count = 0

    def add(self, table: pa.Table) -> Iterator[Item]:
        """Takes some rows, and yields what is ready."""
        self._waiting.append(table)
        self._byte_count += table.nbytes
        if self._byte_count >= FLUSH_BYTES:
            yield from self.flush()

    def flush(self) -> Iterator[Item]:
        """Yields all that waits."""
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._byte_count = [], 0
        users = table.column("user_id").to_numpy()
        ranges = len(self._bounds) + 1
        owners = shard_of(users, self._shards) * ranges
        owners += np.searchsorted(self._bounds, users.view(np.uint64))
        order = np.argsort(owners, kind="stable")
        table = table.take(pa.array(order)).combine_chunks()
        starts = offsets_of(np.bincount(owners, minlength=self._shards * ranges)).tolist()
        rows_max = max(1, table.num_rows * MESSAGE_BYTES // max(table.nbytes, 1))
        for owner, (first, last) in enumerate(pairwise(starts)):
            for start in range(first, last, rows_max):
                for batch in table.slice(start, min(rows_max, last - start)).to_batches():
                    yield Item(owner // ranges, owner % ranges, self._kind, message(batch))


def message(batch: pa.RecordBatch) -> pa.Buffer:
    """Returns an Arrow stream of one batch."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", ZSTD_LEVEL), use_threads=False)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def batches(rows: Iterable[Item]) -> Iterator[pa.RecordBatch]:
    """Yields rows as batches for Spark."""
    waiting: list[Item] = []
    byte_count = 0
    for row in rows:
        waiting.append(row)
        byte_count += len(row.body)
        if byte_count >= BATCH_BYTES:
            yield _batch(waiting)
            waiting, byte_count = [], 0
    if waiting:
        yield _batch(waiting)


def _batch(rows: list[Item]) -> pa.RecordBatch:
    columns = [
        [row.part for row in rows],
        [row.sub for row in rows],
        [row.kind for row in rows],
        [bytes(row.body) for row in rows],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def items(found: Iterable[pa.RecordBatch]) -> Iterator[Item]:
    """Yields the rows of batches from Spark."""
    for batch in found:
        bodies = batch.column("body")
        columns = (batch.column(name).to_pylist() for name in ("part", "sub", "kind"))
        for place, (part, sub, kind) in enumerate(zip(*columns, strict=True)):
            yield Item(part, sub, kind, bodies[place].as_buffer())


def read_table(bodies: Iterable[pa.Buffer | bytes], schema: pa.Schema) -> pa.Table:
    """Joins the messages of one kind."""
    tables = [pa.ipc.open_stream(body).read_all() for body in bodies]
    return pa.concat_tables([schema.empty_table(), *tables])
