"""Tables in memory as inputs of jobs: a scratch file of Parquet, known by the content of its rows.

Jobs read files several times and in parts; a table may be a stream that can be read once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from thinrow.core.files.arrow import is_list_of_any_length, plain, plain_schema
from thinrow.core.files.io_errors import first_line
from thinrow.core.files.paths import DataFile
from thinrow.core.files.tables import table_name, to_reader
from thinrow.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["GROUP_BYTES", "GROUP_ROWS", "write_scratch"]

GROUP_ROWS = 1 << 17
GROUP_BYTES = 64 << 20
"""A row group is written once it has one or the other; memory holds it and a batch of the table."""


def write_scratch(rows: Any, path: Path) -> DataFile:  # noqa: ANN401 - any class with Arrow data
    """Writes a table to a file, batch by batch.

    Args:
        rows: As `thinrow.core.files.tables.to_reader` takes it.
        path: The file.

    Returns:
        The file. Its fingerprint is a hash of the columns' names and types, and of every value in
        order; batches, dictionaries and the layouts of texts and lists make no difference.

    Raises:
        InputError: The table cannot be read, or has a type that Parquet lacks.
        OSError: The file cannot be written.
    """
    name = table_name(rows)
    reader = to_reader(rows)
    schema = plain_schema(reader.schema)
    hashes = _ContentHash(schema)
    waiting: list[pa.RecordBatch] = []
    try:
        with pq.ParquetWriter(path, schema, compression="lz4") as writer:
            for batch in _batches(reader, name):
                converted = pa.record_batch([plain(column) for column in batch.columns], schema)
                hashes.add(converted)
                waiting.append(converted)
                if (
                    sum(map(len, waiting)) >= GROUP_ROWS
                    or sum(each.nbytes for each in waiting) >= GROUP_BYTES
                ):
                    writer.write_table(pa.Table.from_batches(waiting), row_group_size=GROUP_ROWS)
                    waiting.clear()
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting), row_group_size=GROUP_ROWS)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"{name} has a column that Parquet cannot hold: {first_line(error)}; leave it out or "
            f"convert it."
        ) from error
    return DataFile(str(path), shown=name, fingerprint=f"table in memory {hashes.hexdigest()}")


def _batches(reader: pa.RecordBatchReader, name: str) -> Iterator[pa.RecordBatch]:
    """Yields slices of the stream's batches, of at most GROUP_ROWS rows."""
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name} cannot be read to its end: {first_line(error)}.") from error
        for start in range(0, len(batch), GROUP_ROWS):
            yield batch.slice(start, GROUP_ROWS)


class _ContentHash:
    """XXH3 of a table's content, by level of each column, so that batches make no difference."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._parts: dict[str, xxhash.xxh3_128] = {}
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds rows in the one layout of `plain`."""
        self._rows += len(batch)
        for place, column in enumerate(batch.columns):
            self._add(str(place), column)

    def hexdigest(self) -> str:
        """Returns the hash of names, types, the number of rows, and all values."""
        columns = [(field.name, str(field.type)) for field in self._schema]
        whole = xxhash.xxh3_128(f"{columns} {self._rows}".encode())
        for path, part in sorted(self._parts.items()):
            whole.update(path.encode())
            whole.update(part.digest())
        return whole.hexdigest()

    def _add(self, path: str, values: pa.Array) -> None:
        """Adds which values are present, then those; the bytes in place of a null are not read."""
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        values = plain(values)
        self._update(f"{path}?", values.is_valid().cast(pa.uint8()))
        values, kind = values.drop_null(), values.type
        types = pa.types
        if types.is_struct(kind):
            for place, child in enumerate(values.flatten()):
                self._add(f"{path}.{place}", child)
        elif is_list_of_any_length(kind) or types.is_map(kind):
            ends = values.offsets.cast(pa.int64())
            self._update(f"{path}#", pc.subtract(ends[1:], ends[:-1]))
            first, count = ends[0].as_py(), ends[-1].as_py() - ends[0].as_py()
            children = [values.keys, values.items] if types.is_map(kind) else [values.values]
            for place, child in enumerate(children):
                self._add(f"{path}[{place}]", child.slice(first, count))
        elif types.is_fixed_size_list(kind):
            self._add(f"{path}[]", values.flatten())
        elif types.is_large_string(kind) or types.is_large_binary(kind):
            self._update(f"{path}#", pc.binary_length(values))
            self._part(path).update(_bytes_of(values))
        elif types.is_boolean(kind):
            self._update(path, values.cast(pa.uint8()))
        elif not types.is_null(kind):
            self._update(path, values)

    def _update(self, path: str, values: pa.Array) -> None:
        """Adds values of one width."""
        width = values.type.bit_width // 8
        data = values.buffers()[1]
        if data is not None and len(values):
            self._part(path).update(
                memoryview(data)[values.offset * width :][: len(values) * width]
            )

    def _part(self, path: str) -> xxhash.xxh3_128:
        return self._parts.setdefault(path, xxhash.xxh3_128())


def _bytes_of(values: pa.Array) -> memoryview:
    """Returns the bytes of texts without nulls, one after another."""
    _, _, data = values.buffers()
    if data is None or not len(values):
        return memoryview(b"")
    offsets = pa.Array.from_buffers(
        pa.int64(), len(values) + 1, [None, values.buffers()[1]], offset=values.offset
    )
    return memoryview(data)[offsets[0].as_py() : offsets[-1].as_py()]
