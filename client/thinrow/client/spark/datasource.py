"""The data source: tasks of Spark look up ranges of rows with the reader of Arrow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import to_arrow_schema
from thinrow.client.arrow.reader import history_batches, history_schema
from thinrow.client.arrow.thin_rows import POINTER_COLUMNS, RowBatches, chosen_columns
from thinrow.client.client import connect
from thinrow.client.spark.options import ReadOptions
from thinrow.client.spark.types import cast_batch, spark_schema
from thinrow.core.files.parquet import JointColumns
from thinrow.core.files.row_ranges import RowRanges
from thinrow.core.files.rows import thin_row_files
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql.types import StructType

__all__ = ["ThinRowDataSource"]


@dataclass(frozen=True)
class RowPartition(InputPartition):
    """Rows [first, last) of the table that the files make."""

    first: int
    last: int


class ThinRowDataSource(DataSource):
    """Thin rows with their histories, one row per example. For `spark.read.format("thinrow")`."""

    @classmethod
    def name(cls) -> str:
        """Returns the name of the format."""
        return "thinrow"

    def schema(self) -> StructType:
        """Finds the columns, on the driver.

        Raises:
            InputError: Rows or their columns do not fit.
            UsageError: An option is unknown, missing or out of its range.
            ThinRowError: Any error of Client.materialize.
        """
        return spark_schema(ThinRowReader(ReadOptions.of(self.options)).histories)

    def reader(self, schema: StructType) -> DataSourceReader:
        """Returns a reader.

        Raises:
            UsageError: The session gave a schema of its own, or the store's has changed.
        """
        reader = ThinRowReader(ReadOptions.of(self.options))
        found = spark_schema(reader.histories)
        if found.simpleString() != schema.simpleString():
            raise UsageError(
                "The columns of the histories are others than those of the DataFrame; load it "
                "again, without .schema(…)."
            )
        return reader


class ThinRowReader(DataSourceReader):
    """The work of the tasks.

    Args:
        options: What to read, and how.
    """

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        files = thin_row_files(options.rows)
        ranges = RowRanges.of(files)
        if options.columns is not None:
            chosen = chosen_columns(ranges.columns.schema, options.columns)
            wanted = list(dict.fromkeys((*POINTER_COLUMNS, *chosen)))
            ranges = replace(ranges, columns=JointColumns.of(files, wanted))
        self._ranges = ranges.absolute
        with connect(options.target, options.config.client) as client:
            self.histories = history_schema(client, self._source(0, 0), options.projection)
            """Columns of the histories as the reader of Arrow has them."""

    def partitions(self) -> list[InputPartition]:
        """Returns partitions of whole row groups."""
        bounds = self._ranges.bounds(self._options.partition_rows)
        found: list[InputPartition] = [RowPartition(*each) for each in pairwise(bounds)]
        return found or [RowPartition(0, 0)]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a partition with their histories."""
        assert isinstance(partition, RowPartition)
        options, histories = self._options, self.histories
        source = self._source(partition.first, partition.last)
        schema = to_arrow_schema(spark_schema(histories), timezone="UTC")
        with connect(options.target, options.config.client) as client:
            for batch in history_batches(
                client, source, options.projection, options.config, histories
            ):
                yield cast_batch(batch, schema)

    def _source(self, first: int, last: int) -> RowBatches:
        """Returns rows [first, last)."""
        ranges, options = self._ranges, self._options
        schema = ranges.columns.schema
        chosen = pa.schema([schema.field(name) for name in chosen_columns(schema, options.columns)])
        names = [file.name for file in ranges.files]
        name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} other files"
        return RowBatches(name, chosen, ranges.batches(first, last, options.config.lookup_rows))
