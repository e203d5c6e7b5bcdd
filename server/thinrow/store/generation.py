"""An open generation: batched reads across shards, and a cache of recently read values."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import numpy as np
from thinrow import _native
from thinrow.core.shards import shard_of
from thinrow.errors import (
    ShardMissingError,
    StoreCorruptError,
    StoreError,
    StoreMissingError,
    UsageError,
)
from thinrow.schema import DIRECTORY_GROUP
from thinrow.store.completeness import check_files
from thinrow.store.current import require_current_folder
from thinrow.store.directory import Directories, parse_directories
from thinrow.store.keys import KEY_BYTES, USER_BYTES, pack_keys
from thinrow.store.layout import VOCABULARIES, generation_name
from thinrow.store.manifest import read_manifest
from thinrow.store.shard import Shard
from thinrow.store.shard_source import EVERY_SHARD

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.schema import Trait
    from thinrow.store.shard_manifest import ShardManifest
    from thinrow.store.shard_source import ShardSource
    from thinrow.store.vocabulary import Vocabulary

__all__ = [
    "CACHE_BYTES_MAX",
    "DIGEST_SUMS_MAX",
    "OPEN_ATTEMPTS_MAX",
    "VALUE_BYTES_ASSUMED",
    "Generation",
]

OPEN_ATTEMPTS_MAX = 5
"""A generation may be pruned between reading CURRENT and opening it."""
DIGEST_SUMS_MAX = 1 << 20
"""Most digests that are remembered, some 32 bytes each."""
CACHE_BYTES_MAX = 256 * 1024 * 1024
"""Default limit on the memory of an open generation's cached values."""
VALUE_BYTES_ASSUMED = 1024 * 1024
"""Bytes of the largest value of a store whose manifest does not record it."""


class _Memory:
    """Values, digests and vocabularies that were read before; valid, as no generation changes."""

    def __init__(self, cache_bytes_max: int) -> None:
        self.values = _native.ValueCache(cache_bytes_max)
        self.digests = _native.DigestMemory(DIGEST_SUMS_MAX)
        self.vocabularies: dict[int, Vocabulary] = {}
        self.reading_vocabulary = threading.Lock()


class Generation:
    """One generation of a store, open for reading. Thread-safe.

    A user's shard follows from the number of shards in the manifest, whether or not all of them are
    open here. A user whose shard is not open is an error, never an unknown user.
    """

    def __init__(
        self,
        folder: Path,
        cache_bytes_max: int = CACHE_BYTES_MAX,
        numbers: Collection[int] | None = None,
        earlier: Generation | None = None,
    ) -> None:
        """Opens the generation in `folder`.

        Args:
            folder: Folder of the generation.
            cache_bytes_max: Limit on the memory of cached values.
            numbers: Shards to open; None for all.
            earlier: A generation that stays open meanwhile. If it is the same one with other
                shards, the two share their caches, and the shards that both have open.

        Raises:
            UsageError: The generation has no shard of one of the numbers.
            StoreCorruptError: A file is missing or altered; the message names it.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.shard_count = self.manifest.shard_count
        """Shards of the generation, open or not."""
        if numbers is not None and not set(numbers) <= set(range(self.shard_count)):
            raise UsageError(
                f"{folder} has shards 0 to {self.shard_count - 1}; open only such numbers."
            )
        if self.manifest.vocabularies:
            # Polars and pyarrow take long to load: now, and not within the first request.
            import thinrow.store.vocabulary  # noqa: F401
        wanted = set(range(self.shard_count) if numbers is None else numbers)
        shared: dict[int, Shard] = {}
        self._memory: _Memory
        if earlier is not None and (earlier.folder, earlier.manifest) == (folder, self.manifest):
            self._memory = earlier._memory
            shared = {number: earlier.shards[number] for number in wanted & earlier.shards.keys()}
        else:
            self._memory = _Memory(cache_bytes_max)
        files = check_files(folder, self.manifest, wanted - shared.keys())
        self.schema = self.manifest.schema_
        self.watermarks = np.array(self.manifest.watermarks, dtype=np.int64)
        self._counting = threading.Lock()
        self.values_requested = 0
        """Number of values that requests read."""
        self.values_read = 0
        """Number of those that were not cached."""
        recorded = [shard.value_bytes_max for shard in self.manifest.shards if shard.keys]
        self.value_bytes_max = max(recorded, default=1) if all(recorded) else VALUE_BYTES_ASSUMED
        """Bytes of the largest stored value."""
        self.shards: dict[int, Shard] = {}
        """The open shards, by number, ascending."""
        try:
            for number in sorted(wanted):
                if number in shared:
                    self.shards[number] = shared[number].share()
                    continue
                self.shards[number] = Shard(folder / self.manifest.shards[number].name)
                self._check_shard(number, files[number])
        except StoreError:
            self.close()
            raise
        self._is_open = np.zeros(self.shard_count, np.bool_)
        self._is_open[list(self.shards)] = True

    @classmethod
    def open_current(
        cls,
        store: Path,
        cache_bytes_max: int = CACHE_BYTES_MAX,
        shards: ShardSource = EVERY_SHARD,
        earlier: Generation | None = None,
    ) -> Self:
        """Opens the serving generation of a store.

        Args:
            store: Folder of the store.
            cache_bytes_max: Limit on the memory of cached values.
            shards: The shards to open.
            earlier: A generation that stays open meanwhile; see `Generation`.

        Raises:
            UsageError: It has too few shards for the choice.
            StoreMissingError: nothing was published there.
            StoreCorruptError: a file is missing or altered.
        """
        for _ in range(OPEN_ATTEMPTS_MAX):
            folder = require_current_folder(store)
            try:
                return cls(folder, cache_bytes_max, shards.to_open(folder), earlier)
            except StoreError:
                if require_current_folder(store) == folder:
                    raise
        raise StoreMissingError(f"The current generation of {store} keeps changing; try again.")

    @property
    def number(self) -> int:
        """Number of the generation, from 1."""
        return self.manifest.number

    @property
    def watermark_ts(self) -> int:
        """Watermark up to which the generation has events."""
        return self.manifest.watermark_ts

    @property
    def cache(self) -> _native.ValueCache:
        """Recently read values."""
        return self._memory.values

    @property
    def digest_memory(self) -> _native.DigestMemory:
        """Recently computed digests."""
        return self._memory.digests

    def shard(self, number: int) -> Shard:
        """Returns an open shard.

        Raises:
            ShardMissingError: It is not open here.
        """
        if number not in self.shards:
            raise ShardMissingError(
                f"{self.folder} is open here without shard {number} of {self.shard_count}, which "
                f"holds a user of this request; use a replica that serves this shard."
            )
        return self.shards[number]

    def is_elsewhere(self, user_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns True for users whose shards are not open here."""
        if len(self.shards) == self.shard_count:
            return np.zeros(len(user_ids), np.bool_)
        return ~self._is_open[shard_of(user_ids, self.shard_count)]

    def check_open(self, user_ids: NDArray[np.int64]) -> None:
        """Checks that the shards of users are open, whatever is cached of others.

        Raises:
            ShardMissingError: One of them is not open here.
        """
        is_elsewhere = self.is_elsewhere(user_ids)
        if is_elsewhere.any():
            self.shard(int(shard_of(user_ids[is_elsewhere][:1], self.shard_count)[0]))

    def directories(self, user_ids: NDArray[np.int64]) -> Directories:
        """Directories of several users; unknown ones are empty."""
        keys = pack_keys(user_ids, DIRECTORY_GROUP, 0)
        return parse_directories(self.values(b"".join(keys)))

    def values(self, keys: bytes) -> list[bytes | None]:
        """Returns the values of concatenated keys: cached ones, else with a batched get per shard.

        Raises:
            StoreCorruptError: a file failed its checksum.
        """
        values, missing = self._memory.values.look_up(keys)
        self.count_reads(len(values), len(missing))
        if missing:
            wanted = [keys[place * KEY_BYTES : (place + 1) * KEY_BYTES] for place in missing]
            found = self._read(wanted)
            self._memory.values.add(b"".join(wanted), found)
            for place, value in zip(missing, found, strict=True):
                values[place] = value
        return values

    def count_reads(self, requested: int, read: int = 0) -> None:
        """Counts values that a request read, and those of them that were not cached."""
        with self._counting:
            self.values_requested += requested
            self.values_read += read

    def _owners(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Returns the number of the shard of each key."""
        user_ids = np.frombuffer(b"".join(key[:USER_BYTES] for key in keys), dtype=">i8")
        return shard_of(user_ids, self.shard_count)

    def _check_shard(self, number: int, files: ShardManifest) -> None:
        """Checks that a shard's database has the manifest's tables, and users of this shard only.

        Raises:
            StoreCorruptError: It is another shard, or one of another number of shards.
        """
        shard = self.shards[number]
        listed = {file.name for file in files.files if file.name.endswith(".sst")}
        tables = shard.tables()
        if tables.keys() != listed:
            raise StoreCorruptError(
                f"{shard.path} has other tables than its manifest lists; restore it from a replica "
                f"or build the generation again."
            )
        if (self._owners([key for outer in tables.values() for key in outer]) != number).any():
            raise StoreCorruptError(
                f"{shard.path} holds users of another shard than {number} of {self.shard_count}; "
                f"restore it from a replica or build the generation again."
            )

    def _read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if self.shard_count == 1:
            return self.shard(0).get(keys)
        shard = self._owners(keys)
        values: list[bytes | None] = [None] * len(keys)
        for number in np.unique(shard).tolist():
            places = np.flatnonzero(shard == number).tolist()
            found = self.shard(number).get([keys[place] for place in places])
            for place, value in zip(places, found, strict=True):
                values[place] = value
        return values

    def vocabulary(self, trait: Trait) -> Vocabulary:
        """Returns the vocabulary of a trait that has one; read from its file once.

        Raises:
            StoreCorruptError: The file is damaged.
        """
        from thinrow.store.vocabulary import Vocabulary

        memory = self._memory
        with memory.reading_vocabulary:
            if trait.number not in memory.vocabularies:
                stored = {one.trait: one.file for one in self.manifest.vocabularies}
                file = stored[trait.number]
                path = self.folder / VOCABULARIES / file.name
                memory.vocabularies[trait.number] = Vocabulary.read(path, file)
            return memory.vocabularies[trait.number]

    @contextmanager
    def naming_damage(self) -> Iterator[None]:
        """Lets StoreCorruptError name this generation."""
        try:
            yield
        except StoreCorruptError as error:
            raise self._corrupt(error) from error

    def _corrupt(self, error: StoreCorruptError) -> StoreCorruptError:
        """The same error, naming this generation."""
        return StoreCorruptError(
            f"{self.folder} is damaged ({str(error).rstrip('.')}); build {self.folder.name} again."
        )

    def close(self) -> None:
        """Closes all files."""
        for shard in self.shards.values():
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Generation({generation_name(self.number)}, watermark_ts={self.watermark_ts})"
