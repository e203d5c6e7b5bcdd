"""The RocksDB of the mutable tier: its options, its write-ahead log, reads and failures."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rocksdict import (
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    ChecksumType,
    CompactOptions,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    ReadOptions,
    SliceTransform,
    WriteBatch,
    WriteOptions,
)
from thinrow.core.files.permissions import make_folder
from thinrow.errors import StoreError, StoreLockedError, StoreUnavailableError
from thinrow.online.limits import (
    BLOCK_CACHE_BYTES,
    MEMTABLE_BYTES,
    MEMTABLES_FLUSHED,
    MEMTABLES_MAX,
)
from thinrow.store.shard import fsync, storage_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = [
    "EVERYTHING",
    "KeyRange",
    "TierDatabase",
    "WriteAheadLog",
]

KeyRange = tuple[bytes | None, bytes | None]
"""Keys ``[first, last)``; None: unbounded."""
EVERYTHING: KeyRange = (None, None)
BLOCK_BYTES = 16 * 1024
BLOOM_BITS_PER_KEY = 10
MEMTABLE_BLOOM_SHARE = 0.05
PREFIX_BYTES = 13
"""Kind, epoch and user: a request reads the events of one user in one epoch."""


def _options() -> Options:
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
    chosen.set_min_write_buffer_number_to_merge(MEMTABLES_FLUSHED)
    chosen.set_max_open_files(-1)
    chosen.set_paranoid_checks(True)
    # A torn end was never acknowledged; damage before it is an error, not a shorter past.
    chosen.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    chosen.set_keep_log_file_num(1)
    chosen.set_stats_dump_period_sec(0)
    return chosen


def _read_options(*, total_order: bool) -> ReadOptions:
    chosen = ReadOptions()
    chosen.set_total_order_seek(total_order)
    chosen.set_prefix_same_as_start(not total_order)
    return chosen


class TierDatabase:
    """RocksDB with a write-ahead log that any thread can sync.

    Thread-safe. After a write has failed, which data is durable is unknown until the next start;
    ``failure`` then holds the error.

    Raises:
        StoreLockedError: Another process has the database open.
        StoreError: The database cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.failure: StoreError | None = None
        self._folder = folder
        try:
            make_folder(folder)
            self._rocksdb = Rdict(str(folder), _options())
        except Exception as error:
            if "lock" in str(error).lower():
                raise StoreLockedError(
                    f"Another process has {folder} open; a tier has one writer."
                ) from error
            raise storage_error(error, folder) from error
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[method-assign, assignment]
        # Keys of one batch are near each other: a user's events, and their ids.
        self._unlogged.memtable_insert_hint_per_batch = True
        self._of_one_user = _read_options(total_order=False)
        self._of_all = _read_options(total_order=True)
        self._log = WriteAheadLog(folder)

    def close(self) -> None:
        """Closes the files; committed data is durable already."""
        self._log.close()
        try:
            self._rocksdb.close()
        except Exception as error:
            if self.failure is None:
                raise storage_error(error, self._folder) from error

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Records the failure of a write in the block, and raises it as StoreError."""
        try:
            yield
        except Exception as error:
            failure = storage_error(error, self._folder)
            if isinstance(failure, StoreUnavailableError):
                failure = StoreError(str(failure))  # a retry fails until the next start
            self.failure = failure
            raise failure from error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raises what fails in the block as StoreError."""
        try:
            yield
        except Exception as error:
            raise storage_error(error, self._folder) from error

    def require_healthy(self) -> None:
        """Raises the StoreError of the write that failed."""
        if self.failure is not None:
            raise self.failure

    def get(self, key: bytes) -> bytes | None:
        """Returns the value of a key; None if there is none."""
        value: bytes | None = self._rocksdb.get(key)
        return value

    def get_many(self, keys: list[Any]) -> Sequence[bytes | None]:
        """Returns the value of each key; other threads run meanwhile."""
        return self._rocksdb.get(keys) or ()

    def put(self, key: bytes, value: bytes) -> None:
        """Writes one pair, which is durable after `sync`."""
        self._rocksdb[key] = value

    def write(self, pairs: WriteBatch) -> None:
        """Writes pairs atomically, which are durable after `sync`."""
        self._rocksdb.write(pairs)

    def write_unlogged(self, pairs: WriteBatch) -> None:
        """Writes pairs atomically, which are durable after `flush`.

        If the process dies before, all unlogged pairs since some such write are missing, and all
        before it are there: RocksDB makes its memory tables durable whole, in order.
        """
        self._rocksdb.write(pairs, self._unlogged)

    def flush(self) -> None:
        """Makes all pairs durable, those of `write_unlogged` too."""
        self._rocksdb.flush(True)

    def sync(self) -> None:
        """Makes all writes so far durable. Raises OSError."""
        self._log.sync()

    def items(
        self, first: bytes, last: bytes, *, one_user: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yields the pairs with keys in ``[first, last)``, ascending.

        Args:
            first: First key.
            last: End of the keys, exclusive.
            one_user: True if both keys share the first PREFIX_BYTES, which makes the seek cheap.
        """
        iterator = self._rocksdb.iter(self._of_one_user if one_user else self._of_all)
        iterator.seek(first)
        valid, key_of, value_of, step = (
            iterator.valid,
            iterator.key,
            iterator.value,
            iterator.next,
        )
        while valid() and (key := key_of()) < last:
            yield key, value_of()
            step()
        iterator.status()

    def keys_apart(
        self, first: bytes, prefix: bytes, next_first: Callable[[bytes], bytes]
    ) -> Iterator[bytes]:
        """Yields the first key at or after ``first``, then that at or after ``next_first(key)``.

        Ends at the first key without ``prefix``.
        """
        iterator = self._rocksdb.iter(self._of_all)
        iterator.seek(first)
        while iterator.valid() and (key := iterator.key()).startswith(prefix):
            yield key
            iterator.seek(next_first(key))
        iterator.status()

    def delete(self, ranges: Sequence[tuple[bytes, bytes]]) -> None:
        """Deletes ranges of keys; files hold them until `rewrite`."""
        for first, last in ranges:
            self._rocksdb.delete_range(first, last)

    def rewrite(self, ranges: Sequence[KeyRange]) -> None:
        """Rewrites all files that overlap the ranges, without the keys deleted there.

        Other threads read and write meanwhile. Removes the write-ahead logs so far.
        """
        chosen = CompactOptions()
        chosen.set_exclusive_manual_compaction(False)
        # Without this, a file on the last level stays as it is.
        chosen.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        self._rocksdb.flush(True)
        for first, last in ranges:
            self._rocksdb.compact_range(first, last, chosen)
        self._log.sync()  # closes the removed logs

    def property_value(self, name: str) -> int:
        """Returns a number that RocksDB keeps; 0 if it keeps none of that name."""
        return int(self._rocksdb.property_int_value(name) or 0)


class WriteAheadLog:
    """Syncs RocksDB's log files itself, because the binding would hold the interpreter's lock.

    Thread-safe: the commit thread and threads of requests sync at the same time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}

    def sync(self) -> None:
        """Forces all written data to disk. Raises OSError."""
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
