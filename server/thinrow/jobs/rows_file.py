"""How thin rows lie in a Parquet file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

ZSTD_LEVEL = 9


def thin_rows_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Opens a file of thin rows to be written; row groups of some ten thousand rows pack best."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        # A user's snapshots repeat one another within a day. Zstd finds whole runs of them only
        # where values keep their bytes, and indexes of a dictionary are packed into bits.
        use_dictionary=[path for path in _leaves(schema) if not _changes(path)],
    )


def _leaves(schema: pa.Schema) -> list[str]:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [leaves.column(index).path for index in range(len(leaves))]


def _changes(path: str) -> bool:
    return path in ("request_ts", "uih.digest") or path.startswith("mutable.")
