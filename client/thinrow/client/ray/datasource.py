"""The datasource: tasks of Ray look rows up, and return narrow answers."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from thinrow.client.arrow.config import ReadConfig
from thinrow.client.arrow.thin_rows import POINTER_COLUMNS, chosen_columns
from thinrow.client.client import connect
from thinrow.client.ray.example_ids import ExampleIds
from thinrow.client.target import parse_targets
from thinrow.core.files.arrow import rows_at
from thinrow.core.files.row_ranges import RowRanges
from thinrow.core.files.rows import thin_row_files, to_thin_rows, traits_named
from thinrow.core.lookup.packed import pack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.client.target import Target
    from thinrow.core.files.paths import Named
    from thinrow.core.pointers import Projection, ThinRows

__all__ = ["ThinRowDatasource"]


class ThinRowDatasource(Datasource):
    """Thin rows of files, looked up by tasks. For `ray.data.read_datasource`.

    Each row of the dataset is the narrow answer to one lookup: `example_ids`, `answer` and
    `columns`, which `RayBatches` widens. An example id is the row's number in the sorted files.

    Args:
        rows: Files, folders, globs, or URLs of either, one or several. Tasks read them by row
            group, so all nodes need access to them.
        target: As for `connect`. Each task connects; a store must lie on every node.
        projection: The wanted part of each history, or the name of a tenant.
        columns: Other columns of the rows. None: all.
        done: Examples to leave out, such as those that an earlier run of the job has trained on.
        config: Rows of a lookup, deadlines and credentials.

    Raises:
        InputError: There is no file, one holds no thin rows, or there is no such column.
        UsageError: The target is unclear.
    """

    def __init__(
        self,
        rows: Named,
        target: Target,
        projection: Projection | str,
        *,
        columns: Sequence[str] | None = None,
        done: ExampleIds | None = None,
        config: ReadConfig | None = None,
    ) -> None:
        super().__init__()
        ranges = RowRanges.of(thin_row_files(rows)).absolute
        chosen = tuple(chosen_columns(ranges.columns.schema, columns))
        ranges = ranges.narrowed([*POINTER_COLUMNS, *chosen], traits_named(projection))
        self._lookups = Lookups(
            ranges,
            parse_targets(target),
            projection,
            chosen,
            ExampleIds(() if done is None else done.to_ranges()),
            config or ReadConfig(),
        )

    @property
    def rows(self) -> int:
        """Rows of all files, those in `done` included; example ids are below it."""
        return self._lookups.ranges.rows

    def get_name(self) -> str:
        """Returns the name that Ray shows."""
        return "ThinRow"

    def estimate_inmemory_data_size(self) -> int | None:
        """Returns None: how long histories are is known once they are looked up."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: object = None
    ) -> list[ReadTask]:
        """Returns tasks of whole row groups, about as many as `parallelism`."""
        del data_context
        lookups = self._lookups
        files = tuple(file.name for file in lookups.ranges.files)
        bounds = lookups.ranges.bounds(-(-lookups.ranges.rows // max(parallelism, 1)) or 1)
        tasks = []
        for first, last in pairwise(bounds):
            metadata = BlockMetadata(
                num_rows=None, size_bytes=None, input_files=files, exec_stats=None
            )

            def read(first: int = first, last: int = last) -> Iterator[pa.Table]:
                return lookups.blocks(first, last)

            tasks.append(ReadTask(read, metadata, per_task_row_limit=per_task_row_limit))
        return tasks


@dataclass(frozen=True, slots=True)
class Lookups:
    """The work of the tasks."""

    ranges: RowRanges
    target: tuple[str, ...] | Path
    projection: Projection | str
    columns: tuple[str, ...]
    done: ExampleIds
    config: ReadConfig

    def blocks(self, first: int, last: int) -> Iterator[pa.Table]:
        """Yields the answers to rows [first, last), a block for each lookup."""
        waiting: deque[tuple[NDArray[np.int64], pa.RecordBatch]] = deque()

        def thin_rows() -> Iterator[ThinRows]:
            start = first
            for file, batch in self.ranges.batches(first, last, self.config.lookup_rows):
                ids = np.arange(start, start + len(batch))
                start += len(batch)
                left = ~self.done.contains(ids)
                if not left.any():
                    continue
                if not left.all():
                    ids, batch = ids[left], rows_at(batch, np.flatnonzero(left))
                waiting.append((ids, batch.select(list(self.columns))))
                yield to_thin_rows(file, batch)

        with (
            connect(self.target, self.config.client) as client,
            closing(client.answers(thin_rows(), self.projection)) as answers,
        ):
            for answer in answers:
                ids, others = waiting.popleft()
                yield pa.table(
                    {
                        "example_ids": pa.array([ids], pa.large_list(pa.int64())),
                        "answer": one_value(pa.py_buffer(pack(answer))),
                        "columns": one_value(serialized(others)),
                    }
                )


def one_value(data: pa.Buffer) -> pa.LargeBinaryArray:
    """Returns an array of one value, which shares its bytes with `data`."""
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def serialized(batch: pa.RecordBatch) -> pa.Buffer:
    """Returns a batch as a stream of Arrow."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue()
