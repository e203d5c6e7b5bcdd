"""Memory of the mutable tier's RocksDB, apart from it: configurations are read before it loads."""

from __future__ import annotations

__all__ = ["BLOCK_CACHE_BYTES", "MEMTABLES_MAX", "MEMTABLE_BYTES"]

BLOCK_CACHE_BYTES = 256 << 20
MEMTABLE_BYTES = 16 << 20
MEMTABLES_MAX = 4
"""Tables of what was written last, each with MEMTABLE_BYTES, that are in memory at once."""
