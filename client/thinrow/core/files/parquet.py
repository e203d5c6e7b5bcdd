"""One Parquet file as a table, whose columns include the keys of its Hive folders."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from thinrow.core.files.arrow import conformed_batch, joint_schema, leaf_count, load_pyarrow
from thinrow.core.files.io_errors import access_failure, first_line
from thinrow.core.files.parquet_sizes import GroupSizes
from thinrow.core.files.paths import DataFile, located
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["INT96_UNIT", "JointColumns", "ParquetTable", "joined_batches", "open_parquet"]

BUFFER_BYTES = 1 << 16
"""Bytes of a column that are read ahead where only its dictionary is wanted."""
INT96_UNIT = "us"
"""Unit of Spark's INT96 timestamps: nanoseconds, Arrow's default, wrap outside 1677 to 2262."""


class ParquetTable:
    """An open file. Every method raises InputError, naming it, where it cannot be read.

    As Spark and DuckDB have it, a folder's key hides a column of that name in the file.
    """

    def __init__(self, file: DataFile) -> None:
        self.name = str(file)
        arrow = load_pyarrow()
        keys = dict(file.keys)
        path, filesystem = located(file.name)
        with self._readable():
            self._file: pq.ParquetFile = arrow.parquet.ParquetFile(
                path, filesystem=filesystem, coerce_int96_timestamp_unit=INT96_UNIT
            )

        def open_texts(paths: list[str]) -> pq.ParquetFile:
            return arrow.parquet.ParquetFile(
                path,
                filesystem=filesystem,
                metadata=self._file.metadata,
                read_dictionary=paths,
                buffer_size=BUFFER_BYTES,
            )

        self._open_texts = open_texts
        self._local_path = path if filesystem is None else None
        schema: pa.Schema = self._file.schema_arrow
        self._places = {field.name: place for place, field in enumerate(schema)}
        if len(self._places) < len(schema):
            twice = next(name for name in schema.names if schema.names.count(name) > 1)
            self._file.close()
            raise InputError(f"{self.name} has two columns named {twice!r}; rename one.")
        keys |= {key: None for key in file.other_keys if key not in self._places}
        self._keys = keys
        for key, value in keys.items():
            field = arrow.field(key, arrow.scalar(value).type)
            place = self._places.get(key)
            schema = schema.append(field) if place is None else schema.set(place, field)
        self.schema_arrow = schema
        """Columns of the file, then those of its folders."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def metadata(self) -> pq.FileMetaData:
        """The footer."""
        return self._file.metadata

    def leaves(self, column: str) -> range:
        """Numbers the columns in which Parquet stores one of the table; none for a key."""
        if column in self._keys:
            return range(0)
        counts = [leaf_count(field.type) for field in self._file.schema_arrow]
        place = self._places[column]
        first = sum(counts[:place])
        return range(first, first + counts[place])

    def iter_batches(
        self,
        rows: int,
        *,
        columns: Sequence[str] | None = None,
        row_groups: Sequence[int] | None = None,
        leaves: Sequence[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Reads at most `rows` at a time, fewer where repeated texts are long.

        Args:
            rows: Most rows of a batch.
            columns: Names in the order wanted; None for all.
            row_groups: Numbers of the row groups to read; None for all.
            leaves: Numbers of Parquet's columns to read, of those wanted; None for all.
        """
        pa = load_pyarrow()
        names = self.schema_arrow.names if columns is None else list(dict.fromkeys(columns))
        if leaves is None:
            leaves = [leaf for name in names for leaf in self.leaves(name)]
        # A batch without columns would not know how many rows it has.
        leaves = leaves or [0]
        groups = range(self.metadata.num_row_groups) if row_groups is None else row_groups
        rows = min([rows, *self._rows_max(groups, frozenset(leaves))])
        paths = self._paths(leaves)
        with self._readable():
            for batch in self._file.iter_batches(rows, row_groups=groups, columns=paths):
                arrays = [
                    pa.repeat(pa.scalar(self._keys[name]), len(batch))
                    if name in self._keys
                    else batch.column(name)
                    for name in names
                ]
                yield pa.RecordBatch.from_arrays(arrays, names)

    def read(
        self, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
    ) -> pa.Table:
        """Reads whole columns, or what some row groups have of them."""
        pa = load_pyarrow()
        names = self.schema_arrow.names if columns is None else list(columns)
        kinds = pa.schema([self.schema_arrow.field(name) for name in names])
        batches = self.iter_batches(BATCH_ROWS, columns=names, row_groups=row_groups)
        return pa.Table.from_batches([batch.cast(kinds) for batch in batches], kinds)

    def _rows_max(self, groups: Sequence[int], leaves: frozenset[int]) -> list[int]:
        """Checks the sizes of row groups, and returns the most rows to read at once of each."""
        pa = load_pyarrow()
        with self._readable(), ExitStack() as stack:
            source = None
            if self._local_path is not None:
                source = stack.enter_context(pa.OSFile(self._local_path))
            sizes = GroupSizes(self.name, self.metadata, source, self._open_texts)
            return [sizes.rows_max(group, leaves) for group in groups]

    def _paths(self, leaves: Sequence[int]) -> list[str]:
        """Names Parquet's columns.

        A name with dots also stands for another column's field, which is read, too, and left out.
        """
        stored = self._file.schema
        return sorted({stored.column(leaf).path for leaf in leaves})

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Names the file in what goes wrong while it is read."""
        pa = load_pyarrow()
        try:
            yield
        except IsADirectoryError as error:
            raise InputError(f"{self.name} is a folder, not a file.") from error
        except FileNotFoundError as error:
            raise InputError(f"There is no file {self.name}; check the name.") from error
        except InputError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            if (failure := access_failure(error)) is not None:
                raise InputError(f"Cannot read {self.name}: {failure}.") from error
            reason = first_line(error)
            raise InputError(
                f"{self.name} cannot be read as Parquet: {reason}; write the file again."
            ) from error


BATCH_ROWS = 1 << 18
"""Rows that are read at once."""


def open_parquet(file: str | Path | DataFile) -> ParquetTable:
    """Opens a file. Raises InputError, naming it, where it is no Parquet."""
    return ParquetTable(file if isinstance(file, DataFile) else DataFile(str(file)))


@dataclass(frozen=True, slots=True)
class JointColumns:
    """Columns of several files that make one table."""

    schema: pa.Schema
    is_common: bool
    """True where every file has these very columns, so that nothing is converted."""

    @classmethod
    def of(cls, files: Sequence[DataFile], columns: Sequence[str] | None = None) -> JointColumns:
        """Finds the columns of some files; None for all.

        Raises:
            InputError: A file cannot be read, lacks a column of another, or has it in another type.
        """
        schemas = []
        for file in files:
            with open_parquet(file) as table:
                schemas.append(table.schema_arrow.remove_metadata())
        every = dict.fromkeys(name for schema in schemas for name in schema.names)
        names = list(every if columns is None else columns)
        joint = joint_schema(files, schemas, names)
        is_common = all(schema.equals(schemas[0]) for schema in schemas)
        if is_common:
            joint = load_pyarrow().schema([schemas[0].field(name) for name in names])
        return cls(joint, is_common)

    def batches(
        self,
        file: DataFile,
        rows: int,
        row_groups: Sequence[int] | None = None,
        leaves_of: Callable[[ParquetTable, pa.Schema], Sequence[int]] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Reads one of the files, at most `rows` at a time.

        Args:
            file: The file.
            rows: Most rows of a batch.
            row_groups: Numbers of the row groups to read; None for all.
            leaves_of: Finds the numbers of Parquet's columns to read; None for all of the schema.
        """
        with open_parquet(file) as table:
            leaves = None if leaves_of is None else leaves_of(table, self.schema)
            for batch in table.iter_batches(
                rows, columns=self.schema.names, row_groups=row_groups, leaves=leaves
            ):
                yield batch if self.is_common else conformed_batch(file, batch, self.schema)


def joined_batches(
    files: Sequence[DataFile], rows: int, columns: Sequence[str] | None = None
) -> tuple[pa.Schema, Iterator[tuple[DataFile, pa.RecordBatch]]]:
    """Reads files that make one table, at most `rows` of one file at a time; columns None for all.

    Returns:
        The schema of all batches, and each batch with its file.

    Raises:
        InputError: A file cannot be read, lacks a column of another, or has it in another type.
    """
    joint = JointColumns.of(files, columns)
    batches = ((file, batch) for file in files for batch in joint.batches(file, rows))
    return joint.schema, batches
