"""One shard: a RocksDB directory, written once in key order and from then on only read.

Every RocksDB option that matters is set here, explicitly.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Self, cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    ChecksumType,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    ReadOptions,
    SstFileWriter,
)
from thinrow.core.files.io_errors import access_failure, first_line, is_temporary
from thinrow.errors import StoreCorruptError, StoreError, StoreFullError, StoreUnavailableError
from thinrow.store.kv_digest import KeyValueDigest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "BLOCK_BYTES",
    "BLOCK_CACHE_BYTES",
    "BLOOM_BITS_PER_KEY",
    "LAYERS_MAX",
    "LAYERS_SHARE_MAX",
    "LIBRARY_FILE",
    "SST_BYTES_MAX",
    "ZLIB_WINDOW_BITS",
    "ZSTD_LEVEL",
    "Shard",
    "ShardWriter",
    "block_cache",
    "fsync",
    "storage_error",
]

BLOCK_BYTES = 8 * 1024
ZSTD_LEVEL = 3
ZLIB_WINDOW_BITS = -14
"""RocksDB's default; zstd does not look at it."""
SST_BYTES_MAX = 256 * 1024 * 1024
BLOOM_BITS_PER_KEY = 10
LIBRARY_FILE = "rocksdict-config.json"
LAYERS_MAX = 6
LAYERS_SHARE_MAX = 0.25
"""Bounds on what lies over a shard's last whole writing: tables, and bytes in proportion to it."""
BLOCK_CACHE_BYTES = 64 * 1024 * 1024
"""Shared by all shards that one process has open; recently read values are cached beside it."""


@cache
def block_cache() -> Cache:
    """Returns the cache of recently read blocks that all shards of this process share."""
    return Cache(BLOCK_CACHE_BYTES)


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_block_size(BLOCK_BYTES)
    table.set_format_version(5)
    table.set_checksum_type(ChecksumType.xxh3())
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    table.set_block_cache(block_cache())
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.zstd())
    options.set_compression_options(ZLIB_WINDOW_BITS, ZSTD_LEVEL, 0, 0)
    options.set_disable_auto_compactions(True)
    options.set_paranoid_checks(True)
    options.set_max_open_files(-1)  # all files stay open: pruning cannot take one away
    options.set_keep_log_file_num(1)
    options.set_stats_dump_period_sec(0)
    options.set_write_buffer_size(1 << 20)
    return options


def storage_error(error: Exception, path: Path) -> StoreError:
    """The one of our exceptions that says what went wrong below ``path``."""
    text = str(error)
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in text:
        return StoreFullError(
            f"The disk that holds {path} is full; free some space and run again "
            f"(the last published generation still serves)."
        )
    if (reason := access_failure(error)) is not None:
        kind = StoreUnavailableError if is_temporary(error) else StoreError
        return kind(f"Cannot read or write {path}: {reason}.")
    if isinstance(error, OSError) and error.errno is not None:
        return StoreError(f"Cannot read or write {path}: {os.strerror(error.errno)}.")
    if text.startswith("Corruption") or "No such file" in text:
        text = re.sub(r"/\S*/thinrow-shard-[^/\s]+", str(path), text)
        named = re.search(r"(/\S+\.(?:sst|log)|/\S*MANIFEST-\d+|/\S+/CURRENT)", text)
        return StoreCorruptError(
            f"{named[1].rstrip(':') if named else path} is damaged ({text.splitlines()[0]}); "
            f"restore it from a replica or build the generation again."
        )
    return StoreError(f"Storage failed at {path}: {first_line(error)}.")


class ShardWriter:
    """Writes a shard: keys must come in ascending order, each once.

    Over a finished shard it writes a layer: that shard's tables are shared, and hold what the layer
    does not.
    """

    def __init__(self, path: Path, over: Path | None = None, kv_below: str | None = None) -> None:
        """Creates the shard's folder.

        Args:
            path: The folder.
            over: Folder of the shard over which a layer is written; None to write a whole one.
            kv_below: Digest of the stream of that shard's keys and values.
        """
        assert (over is None) == (kv_below is None)
        self.path = path
        self._digest = KeyValueDigest(kv_below)
        self.shared: dict[str, bool] = {}
        """Tables of the shard below, by name; True for those that are the same file."""
        self._files: list[Path] = []
        self._writer: SstFileWriter | None = None
        self._file_bytes = 0
        self.key_count = 0
        self.value_bytes_max = 0
        path.mkdir(parents=True)
        if over is not None:
            self.shared = _shared(over, path)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Adds one pair; None takes away one below. Raises StoreError where the disk does."""
        try:
            if self._writer is None:
                self._files.append(self.path / f"bulk-{len(self._files):06d}.sst")
                self._writer = SstFileWriter(_options())
                self._writer.open(str(self._files[-1]))
            self._digest.add(key, value)
            if value is None:
                del self._writer[key]
            else:
                self._writer[key] = value
                self.key_count += 1
                self._file_bytes += len(key) + len(value)
                self.value_bytes_max = max(self.value_bytes_max, len(value))
            if self._file_bytes >= SST_BYTES_MAX:
                self._finish_file()
        except StoreError:
            raise
        except Exception as error:
            self._writer = None  # closes the file, so that removing it frees space
            raise storage_error(error, self.path) from error

    @property
    def kv_xxh3_128(self) -> str:
        """Digest of the stream of keys and values so far (kv_digest.py)."""
        return self._digest.hexdigest()

    def _finish_file(self) -> None:
        if self._writer is not None:
            self._writer.finish()
            self._writer, self._file_bytes = None, 0

    def finish(self) -> None:
        """Makes the shard ready to be read, all of it on disk."""
        try:
            self._finish_file()
            options = _options()
            with Rdict(str(self.path), options, {"default": options}) as database:
                if self._files:
                    ingestion = IngestExternalFileOptions()
                    ingestion.set_move_files(True)
                    database.ingest_external_file([str(file) for file in self._files], ingestion)
            for file in self._files:
                file.unlink(missing_ok=True)
            for file in self.path.iterdir():
                # These files describe this machine and moment; the others are the shard.
                if file.name.startswith(("LOG", "OPTIONS")):
                    file.unlink()
                else:
                    fsync(file)
            fsync(self.path)
        except Exception as error:
            self._writer = None
            raise storage_error(error, self.path) from error


def link_or_copy(source: Path, target: Path) -> bool:
    """Shares a file with another folder; copies it where the file system has no links.

    Returns:
        True if both are one file.
    """
    with suppress(OSError):
        os.link(source, target)
        return True
    shutil.copyfile(source, target)
    fsync(target)
    return False


def _shared(source: Path, target: Path) -> dict[str, bool]:
    """Puts a finished shard's files into another folder: tables shared, the others copied.

    Returns:
        The tables, by name; True for those that are one file in both folders.
    """
    shared = {}
    try:
        for file in source.iterdir():
            if file.suffix == ".sst":
                shared[file.name] = link_or_copy(file, target / file.name)
            else:
                shutil.copyfile(file, target / file.name)
    except OSError as error:
        raise storage_error(error, target) from error
    return shared


def fsync(path: Path) -> None:
    """Forces a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Shard:
    """A finished shard, open for reading. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._users = 1
        self._counting = threading.Lock()
        try:
            options = _options()
            options.set_db_log_dir("/dev/null")
            # The library writes a file of its own wherever it opens, even to read; a store may be
            # mounted read-only, and is shared. All files stay open, so the links may go at once.
            with TemporaryDirectory(prefix="thinrow-shard-") as links:
                for file in path.resolve().iterdir():
                    if file.name != LIBRARY_FILE:
                        (Path(links) / file.name).symlink_to(file)
                self._database = Rdict(
                    links,
                    options,
                    # Else its column family is read with default options: a cache of 8 MB.
                    column_families={"default": options},
                    access_type=AccessType.read_only(error_if_log_file_exist=False),
                )
        except Exception as error:
            raise storage_error(error, path) from error

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of the keys, None where there is none. Releases the GIL."""
        try:
            values = self._database.get(list(keys))
        except Exception as error:
            raise storage_error(error, self.path) from error
        return cast("list[bytes | None]", values)

    def get_all(self, keys: Sequence[bytes]) -> list[bytes]:
        """Values of keys that must be there. Raises StoreCorruptError where one is not."""
        values = [value for value in self.get(keys) if value is not None]
        if len(values) != len(keys):
            raise StoreCorruptError(
                f"{self.path} lacks a stripe that its directory names; restore it from a replica "
                f"or build the generation again."
            )
        return values

    def items(self, key_count: int) -> Iterator[tuple[bytes, bytes]]:
        """Every pair, in key order.

        Raises:
            StoreCorruptError: a block failed its checksum, or there are not ``key_count`` pairs.
        """
        seen = 0
        once = ReadOptions()
        once.fill_cache(False)  # type: ignore[call-arg]  # its stub forgot the argument
        iterator = self._database.iter(once)
        try:
            iterator.seek_to_first()
            while iterator.valid():
                yield iterator.key(), iterator.value()
                seen += 1
                iterator.next()
            # An iterator that hit a bad block just ends; only its status shows it.
            iterator.status()
        except StoreError:
            raise
        except Exception as error:
            raise storage_error(error, self.path) from error
        if seen != key_count:
            raise StoreCorruptError(
                f"{self.path} holds {seen} keys where its manifest says {key_count}; restore it "
                f"from a replica or build the generation again."
            )

    def first_of_each_prefix(
        self, prefix_bytes: int, start: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        """The first pair of every distinct key prefix, in key order, of keys from `start` on.

        Raises:
            StoreCorruptError: a block failed its checksum.
        """
        iterator = self._database.iter()
        try:
            iterator.seek(start)
            while iterator.valid():
                key = iterator.key()
                yield key, iterator.value()
                prefix = int.from_bytes(key[:prefix_bytes], "big") + 1
                if prefix == 1 << (8 * prefix_bytes):
                    break
                iterator.seek(prefix.to_bytes(prefix_bytes, "big"))
            iterator.status()
        except StoreError:
            raise
        except Exception as error:
            raise storage_error(error, self.path) from error

    def tables(self) -> dict[str, tuple[bytes, bytes]]:
        """Returns the first and the last key of each table, by the name of its file."""
        return {
            table["name"].lstrip("/"): (table["start_key"], table["end_key"])
            for table in self._database.live_files()
        }

    @property
    def takes_layer(self) -> bool:
        """True if a layer may be written over this shard; else it should be written whole."""
        tables = self._database.live_files()
        bottom = max((table["level"] for table in tables), default=0)
        layers = [table["size"] for table in tables if table["level"] < bottom]
        whole = sum(table["size"] for table in tables) - sum(layers)
        return bool(tables) and len(layers) < LAYERS_MAX and sum(layers) <= LAYERS_SHARE_MAX * whole

    def share(self) -> Self:
        """Returns this shard for one user more, who closes it, too."""
        with self._counting:
            assert self._users
            self._users += 1
        return self

    def close(self) -> None:
        """Closes the files, once every user has."""
        with self._counting:
            self._users = max(0, self._users - 1)
            is_unused = not self._users
        if is_unused:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
