"""The tier's RocksDB: every option that matters, and when what was written is on disk."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from rocksdict import (
    BlockBasedOptions,
    Cache,
    ChecksumType,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    SliceTransform,
)
from thinrow.store.shard import fsync

if TYPE_CHECKING:
    from pathlib import Path

BLOCK_BYTES = 16 * 1024
BLOCK_CACHE_BYTES = 256 * 1024 * 1024
MEMTABLE_BYTES = 16 * 1024 * 1024
MEMTABLES_MAX = 4
BLOOM_BITS_PER_KEY = 10
MEMTABLE_BLOOM_SHARE = 0.05
PREFIX_BYTES = 13
"""Kind, epoch and user: a request reads the events of one."""


def options() -> Options:
    """The options that the tier is opened with."""
    table = BlockBasedOptions()
    table.set_block_size(BLOCK_BYTES)
    table.set_format_version(5)
    table.set_checksum_type(ChecksumType.xxh3())
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    table.set_block_cache(Cache(BLOCK_CACHE_BYTES))
    chosen = Options(raw_mode=True)
    chosen.create_if_missing(True)
    chosen.set_block_based_table_factory(table)
    chosen.set_prefix_extractor(SliceTransform.create_fixed_prefix(PREFIX_BYTES))
    chosen.set_memtable_prefix_bloom_ratio(MEMTABLE_BLOOM_SHARE)
    chosen.set_memtable_whole_key_filtering(True)
    chosen.set_compression_type(DBCompressionType.lz4())
    chosen.set_write_buffer_size(MEMTABLE_BYTES)
    chosen.set_max_write_buffer_number(MEMTABLES_MAX)
    chosen.set_max_open_files(-1)
    chosen.set_paranoid_checks(True)
    # A torn end was never acknowledged; damage before it is an error, not a shorter past.
    chosen.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    chosen.set_keep_log_file_num(1)
    chosen.set_stats_dump_period_sec(0)
    return chosen


class WriteAheadLog:
    """Syncs the log files itself: RocksDB's binding would hold the interpreter's lock for it.

    Thread-safe: the commit thread and threads of requests sync at the same time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}

    def sync(self) -> None:
        """Forces all that was written to disk. Raises OSError."""
        # Each call syncs descriptors of its own, so that none waits for another's disk.
        files = self._duplicates()
        try:
            for file in files:
                os.fdatasync(file)
        finally:
            for file in files:
                os.close(file)

    def _duplicates(self) -> list[int]:
        with self._lock:
            names = {path.name for path in self._folder.glob("*.log")}
            for name in self._files.keys() - names:
                os.close(self._files.pop(name))  # its events moved to a table, which is synced
            for name in sorted(names - self._files.keys()):
                try:
                    file = os.open(self._folder / name, os.O_RDONLY)
                except FileNotFoundError:
                    continue
                self._files[name] = file
                fsync(self._folder)
            files: list[int] = []
            try:
                files.extend(os.dup(file) for file in self._files.values())
            except OSError:
                for file in files:
                    os.close(file)
                raise
            return files

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()
