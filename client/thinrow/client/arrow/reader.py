"""The reader: histories of thin rows as record batches of Arrow."""

from __future__ import annotations

import math
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, cast

import numpy as np
from thinrow.client.arrow.config import ReadConfig
from thinrow.client.arrow.thin_rows import open_rows
from thinrow.client.client import connect
from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.history_columns import with_histories
from thinrow.core.lookup.batch import Batch
from thinrow.core.pointers import Pointers
from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.client.arrow.thin_rows import RowBatches
    from thinrow.client.client import Client
    from thinrow.client.target import Target
    from thinrow.core.files.tables import Rows
    from thinrow.core.lookup.answer import Answer
    from thinrow.core.pointers import Projection, ThinRows

__all__ = ["history_batches", "history_schema", "read"]

TEXT_BYTES = 16
"""Bytes that a text counts in `batch_bytes_max`: its length is known only once it is written."""


def read(
    rows: Rows,
    target: Target,
    projection: Projection | str,
    *,
    columns: Sequence[str] | None = None,
    config: ReadConfig | None = None,
) -> pa.RecordBatchReader:
    """Returns thin rows with their histories, one row per example, in the order of the rows.

    The columns are the rows' own but `uih` and `mutable`, then `uih_status` (the status by name),
    then a list for each trait, oldest event first. The lists of a row whose status is not OK are
    null.

    The reader looks rows up as they are read, so that memory holds about one record batch. Its
    calls end with its last row, or once the last reference to it is gone; `close()` alone ends
    nothing.

    Args:
        rows: Files, folders, globs, or URLs of either that fsspec knows, one or several. They are
            sorted, and a file named twice counts once. Keys of Hive folders are columns. Or rows in
            memory: any table that has Arrow's PyCapsule stream, or a DataFrame of pandas.
        target: HOST:PORT, or several replicas of one store; or the path of a store, which is then
            read in this process (see `connect`).
        projection: The wanted part of each history, or the name of a tenant.
        columns: Columns of the rows to return. None: all.
        config: Sizes of batches and lookups, deadlines and credentials.

    Raises:
        InputError: Rows or their columns do not fit.
        ThinRowError: Any error of Client.stream, at once or as the reader is read.
    """
    config = config or ReadConfig()
    source = open_rows(rows, columns, config.lookup_rows)
    batches = opened(source, target, projection, config)
    # Once it has begun, it closes the client even if no batch is read.
    schema = cast("pa.Schema", next(batches))
    return load_pyarrow().RecordBatchReader.from_batches(schema, batches)


def opened(
    source: RowBatches, target: Target, projection: Projection | str, config: ReadConfig
) -> Generator[pa.Schema | pa.RecordBatch, None, None]:
    """Yields the schema, then the record batches, and closes the client at the end."""
    with connect(target, config.client) as client:
        schema = history_schema(client, source, projection)
        yield schema
        yield from history_batches(client, source, projection, config, schema)


def history_schema(client: Client, source: RowBatches, projection: Projection | str) -> pa.Schema:
    """Returns the columns of rows with their histories.

    Raises:
        InputError: A column has the name of a trait.
        ThinRowError: Any error of Client.materialize.
    """
    # The answer to no rows has all traits of the projection, also of a tenant's.
    none = client.materialize(Pointers(user_ids=np.empty(0, np.int64), end_ts=[]), projection)
    return with_histories(none, source.schema.empty_table(), source.name).schema


def history_batches(
    client: Client,
    source: RowBatches,
    projection: Projection | str,
    config: ReadConfig,
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    """Yields rows with their histories.

    Raises:
        ThinRowError: The schema of the store changed, or any error of Client.stream.
    """
    tables: deque[pa.Table] = deque()

    def thin_rows() -> Iterator[ThinRows]:
        for rows, table in source.split():
            if len(table):
                tables.append(table)
                yield rows

    with closing(client.answers(thin_rows(), projection)) as answers:
        for answer in answers:
            table = tables.popleft()
            start = 0
            for stop in row_bounds(answer, config):
                histories = Batch.from_answers([answer[start:stop]])
                part = with_histories(histories, table.slice(start, stop - start), source.name)
                if part.schema != schema:
                    raise ThinRowError(
                        "The store's schema changed while its histories were read; read them again."
                    )
                yield from part.to_batches()
                start = stop


def row_bounds(answer: Answer, config: ReadConfig) -> Iterator[int]:
    """Yields the end of each piece of an answer that makes a record batch."""
    ends = np.cumsum(value_bytes(answer))
    start, before = 0, 0
    while start < len(answer):
        fitting = int(np.searchsorted(ends, before + config.batch_bytes_max, "right"))
        start = min(max(fitting, start + 1), start + config.batch_rows, len(answer))
        before = int(ends[start - 1])
        yield start


def value_bytes(answer: Answer) -> NDArray[np.int64]:
    """Returns the bytes of each example's values, int64, shape (examples,)."""
    event_bytes = 0
    total = np.zeros(len(answer), np.int64)
    event_ends = np.cumsum(answer.lengths)
    for trait, kind in answer.kinds.items():
        item_bytes = TEXT_BYTES if kind.text else kind.dtype.itemsize * math.prod(kind.shape)
        if kind.listed:
            elements = answer.list_offsets(trait)
            total += item_bytes * (elements[event_ends] - elements[event_ends - answer.lengths])
            item_bytes = 4  # the list's own offset
        event_bytes += item_bytes
    return total + event_bytes * answer.lengths
