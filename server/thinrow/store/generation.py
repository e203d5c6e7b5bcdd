"""An open generation: batched reads of directories and stripes across shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from thinrow.errors import StoreCorruptError, StoreError, StoreMissingError
from thinrow.schema import DIRECTORY_GROUP
from thinrow.store.directory import Directories, parse_directories
from thinrow.store.hashing import shard_of
from thinrow.store.keys import pack_keys
from thinrow.store.manifest import (
    check_files,
    generation_name,
    read_manifest,
    require_current_folder,
)
from thinrow.store.shard import Shard
from thinrow.store.stripe import StripeSet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

OPEN_ATTEMPTS_MAX = 5
"""A generation may be pruned between reading CURRENT and opening it."""


class Generation:
    """One generation of a store, open for reading. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Opens the generation in ``folder``. Raises StoreCorruptError, naming the file."""
        self.folder = folder
        self.manifest = read_manifest(folder)
        check_files(folder, self.manifest)
        self.schema = self.manifest.schema_
        self.watermarks = np.array(self.manifest.watermarks, dtype=np.int64)
        self.shards: list[Shard] = []
        try:
            for summary in self.manifest.shards:
                self.shards.append(Shard(folder / summary.name))
        except StoreError:
            self.close()
            raise

    @classmethod
    def open_current(cls, store: Path) -> Self:
        """Opens the serving generation of a store.

        Raises:
            StoreMissingError: nothing was published there.
            StoreCorruptError: a file is missing or altered.
        """
        for _ in range(OPEN_ATTEMPTS_MAX):
            folder = require_current_folder(store)
            try:
                return cls(folder)
            except StoreError:
                if require_current_folder(store) == folder:
                    raise
        raise StoreMissingError(f"The current generation of {store} keeps changing; try again.")

    @property
    def number(self) -> int:
        return self.manifest.number

    @property
    def watermark_ts(self) -> int:
        return self.manifest.watermark_ts

    def read(self, user_ids: NDArray[np.int64], keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of ``keys``, key i being of user i: one batched get per shard."""
        if len(self.shards) == 1:
            return self.shards[0].get(keys)
        shard = shard_of(user_ids, len(self.shards))
        values: list[bytes | None] = [None] * len(keys)
        for number in np.unique(shard).tolist():
            places = np.flatnonzero(shard == number).tolist()
            found = self.shards[number].get([keys[place] for place in places])
            for place, value in zip(places, found, strict=True):
                values[place] = value
        return values

    def directories(self, user_ids: NDArray[np.int64]) -> Directories:
        """Directories of several users; unknown ones are empty."""
        return parse_directories(self.read(user_ids, pack_keys(user_ids, DIRECTORY_GROUP, 0)))

    def stripes(
        self,
        user_ids: NDArray[np.int64],
        stripes: NDArray[np.int64],
        wanted: Mapping[int, NDArray[np.int64]],
    ) -> dict[int, StripeSet]:
        """Reads stripes of several groups at once.

        Args:
            user_ids, stripes: user and stripe number of each stripe that may be read.
            wanted: for each group, indexes into those of the stripes to read.

        Returns:
            For each group its stripes, in the order of ``wanted``.

        Raises:
            StoreCorruptError: a stripe is missing that its directory names, or contradicts itself.
        """
        keys: list[bytes] = []
        for group, chosen in wanted.items():
            keys += pack_keys(user_ids[chosen], group, stripes[chosen])
        owners = np.concatenate([user_ids[chosen] for chosen in wanted.values()] or [user_ids[:0]])
        values = [value for value in self.read(owners, keys) if value is not None]
        if len(values) != len(keys):
            raise StoreCorruptError("a stripe is missing that its directory names")
        place, sets = 0, {}
        for group, chosen in wanted.items():
            sets[group] = StripeSet(values[place : place + len(chosen)])
            place += len(chosen)
        return sets

    def corrupt(self, error: StoreCorruptError) -> StoreCorruptError:
        """The same error, naming this generation."""
        return StoreCorruptError(
            f"{self.folder} is damaged ({str(error).rstrip('.')}); build {self.folder.name} again."
        )

    def close(self) -> None:
        """Closes all files."""
        for shard in self.shards:
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Generation({generation_name(self.number)}, watermark_ts={self.watermark_ts})"
