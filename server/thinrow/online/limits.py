"""Memory of the mutable tier's RocksDB, apart from it: configurations are read before it loads."""

from __future__ import annotations

__all__ = ["BLOCK_CACHE_BYTES", "MEMTABLES_FLUSHED", "MEMTABLES_MAX", "MEMTABLE_BYTES"]

BLOCK_CACHE_BYTES = 256 << 20
MEMTABLE_BYTES = 4 << 20
"""Small, since an insertion takes longer the larger a table is: 1.7 times as long with 16 MiB."""
MEMTABLES_FLUSHED = 3
"""Tables that are written to a file together."""
MEMTABLES_MAX = 6
"""Tables of what was written last, each with MEMTABLE_BYTES, that are in memory at once."""
