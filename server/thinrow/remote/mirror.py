"""Mirror: a local folder that holds verified copies of a store's shards and is a store itself.

MIRROR/objects holds each object under its key, MIRROR/generation-NNNNNN links to them, and
MIRROR/CURRENT names the generation that is complete here. An object is copied once, however many
generations share it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import xxhash
from thinrow.core.files.permissions import file_mode, make_folder
from thinrow.errors import StoreCorruptError, StoreError, StoreLockedError, UsageError
from thinrow.remote.copies import OBJECTS, Copies
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import key_of, require_generation
from thinrow.remote.threads import map_in_threads
from thinrow.store.completeness import stored_shards
from thinrow.store.current import current_folder
from thinrow.store.generation import Generation
from thinrow.store.generations import (
    FOREIGN_ALLOWED,
    generation_folders,
    locked_store,
    remove_leftovers,
)
from thinrow.store.layout import (
    CURRENT,
    HIGHEST,
    MANIFEST,
    VOCABULARIES,
    generation_name,
    generation_number,
)
from thinrow.store.manifest import read_manifest, shard_manifest
from thinrow.store.shard import fsync, storage_error
from thinrow.store.small_files import read_small, unreadable, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from thinrow.remote.copies import Pull
    from thinrow.remote.current import Current, CurrentRecord
    from thinrow.remote.generation_objects import RemoteGeneration
    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.manifest import Manifest

__all__ = ["CHANGES_MAX", "MARK", "MARK_BYTES_MAX", "Mirror"]

MARK = "MIRROR"
"""Holds the URL of the store that the folder is a mirror of; locked by the process that uses it."""
MARK_BYTES_MAX = 4096
CHANGES_MAX = 5
"""Times that the serving generation may change while it is copied."""
SYNCS_AT_ONCE = 32
"""Folders that are synced at once."""
_PULLING = "pulling"
"""The next generation before it is complete."""
_REMOVED = "removed"
"""A generation that is about to be gone."""


class Mirror:
    """A mirror of some shards, or of all. One process uses it; a context manager.

    Args:
        store: The store.
        folder: The mirror's folder; created if it does not exist.
        choose: Receives the count of shards; returns the numbers of those to mirror.
        report: Receives the progress.
        may_lack: True if `choose` may return other shards with time: what is here may lack some of
            them, until `pull` has added them.

    Raises, when entered:
        UsageError: The folder holds something else.
        StoreLockedError: Another process uses it.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        choose: Callable[[int], Collection[int]] = range,
        report: Callable[[Pull], None] = lambda _: None,
        *,
        may_lack: bool = False,
    ) -> None:
        self.folder = folder
        self.store = store
        self.copies = Copies(store, folder / OBJECTS, report)
        self.current: Current | None = None
        """CURRENT of the store, as it was when its generation was last complete here."""
        self._choose = choose
        self._may_lack = may_lack
        self._complete: _Complete | None = None
        """The generation that is here, once it was checked."""
        self._lock: int | None = None
        self._pulls = threading.Lock()

    def __enter__(self) -> Self:
        try:
            self._claim()
            with locked_store(self.folder):
                remove_leftovers(self.folder)
            if (self.folder / _REMOVED).exists():
                shutil.rmtree(self.folder / _REMOVED)
        except OSError as error:
            self.__exit__()
            raise storage_error(error, self.folder) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _claim(self) -> None:
        """Makes the folder this process's own."""
        make_folder(self.folder)
        mark = self.folder / MARK
        names = [path.name for path in self.folder.iterdir()]
        if not mark.exists() and set(names) - FOREIGN_ALLOWED:
            raise UsageError(
                f"{self.folder} holds other files and is no mirror; give --mirror a new or an "
                f"empty folder."
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(mark, flags, file_mode())
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLockedError(
                f"Another process uses the mirror {self.folder}; give each its own --mirror."
            ) from error
        try:
            known = read_small(mark, MARK_BYTES_MAX).strip()
        except ValueError as error:
            raise unreadable(mark, error) from error
        if not known:
            os.write(self._lock, f"{self.store.url}\n".encode())
            os.fsync(self._lock)
        elif known != self.store.url:
            raise UsageError(
                f"{self.folder} is a mirror of {known}, not of {self.store.url}; give --mirror "
                f"another folder."
            )

    @property
    def generation(self) -> int:
        """Number of the generation that is here; 0 for none."""
        folder = current_folder(self.folder)
        return 0 if folder is None else generation_number(folder.name) or 0

    def problem(self) -> str | None:
        """Returns why the generation that is here cannot be opened; None if it can.

        Raises:
            UsageError: It has too few shards for the choice.
        """
        folder = current_folder(self.folder)
        if folder is None:
            return "the mirror is empty"
        try:
            manifest = read_manifest(folder)
            numbers = set(self._choose(manifest.shard_count))
            if self._may_lack:
                numbers &= stored_shards(folder)
            if numbers and not _is_published(folder, manifest, min(numbers)):
                return f"{folder.name} was built here, and not published"
            Generation(folder, cache_bytes_max=1, numbers=numbers).close()
        except StoreError as error:
            return str(error)
        return None

    def pull(self, *, is_open: bool = False, verify: bool = False) -> bool:
        """Copies the serving generation, and makes it the one that is here once it is complete.

        Of a generation that is here already, shards that are new in the choice are added.

        Args:
            is_open: A reader may have the generation that is here open, so its folder stays.
            verify: Reads what was copied before again, and copies what is damaged once more.

        Returns:
            True if another generation is here than before, or more shards of it.

        Raises:
            StoreMissingError: The store holds no generation.
            StoreCorruptError: An object is missing or damaged; what is here stays.
            StoreFullError: The disk has no room for the generation.
            StoreUnavailableError: The object store does not answer.
        """
        with self._pulls:
            return self._pull_latest(is_open=is_open, verify=verify)

    def _pull_latest(self, *, is_open: bool, verify: bool) -> bool:
        for _ in range(CHANGES_MAX):
            current = require_current(self.store, self.current)
            record = current.record
            try:
                is_new = verify or not self._is_complete(record)
                if is_new:
                    self._pull(record, is_open=is_open, verify=verify)
                self.current = current
                return is_new
            except StoreCorruptError:
                # gc may have removed a generation that was replaced in the meantime.
                if require_current(self.store).record.number == record.number:
                    raise
            except OSError as error:
                raise storage_error(error, self.folder) from error
        raise StoreError(f"The serving generation of {self.store.url} keeps changing; try again.")

    def reset(self, highest: int) -> None:
        """Makes the folder as the store is: without what a run built here and could not publish.

        Args:
            highest: The number after which the next run counts on.
        """
        if self.current is None:
            (self.folder / CURRENT).unlink(missing_ok=True)
        write_atomically(self.folder / HIGHEST, generation_name(highest) + "\n")
        self._remove_generations({current_folder(self.folder)})
        if (self.folder / VOCABULARIES).exists():
            shutil.rmtree(self.folder / VOCABULARIES)
        kept = [] if self.current is None else self.current.record.vocabularies
        for vocabulary in kept:
            file = vocabulary.file
            make_folder(self.folder / VOCABULARIES)
            path = self.folder / VOCABULARIES / file.name
            self.store.download(key_of(file), path, file.bytes, file.xxh3)

    def adopt(self, generation: RemoteGeneration) -> None:
        """Takes over a generation that was built here and published, so that it is not copied."""
        folder = self.folder / generation_name(generation.manifest.number)
        for place, file in generation.files:
            self.copies.adopt(file, folder / place)
        generation.write_manifests(folder)
        fsync(folder)

    def _is_complete(self, record: CurrentRecord) -> bool:
        known = self._complete
        if known is not None and known.xxh3 == record.manifest_xxh3:
            return known.shards >= set(self._choose(known.shard_count))
        folder = current_folder(self.folder)
        if folder is None or not _is_same(folder, record):
            return False
        shard_count, shards = read_manifest(folder).shard_count, stored_shards(folder)
        # Another choice of shards than at the last start needs other files.
        if not shards >= set(self._choose(shard_count)):
            return False
        if not self._may_lack and not self._read(record).is_complete_in(folder):
            return False
        self._complete = _Complete(record.manifest_xxh3, shard_count, shards)
        return True

    def _read(self, record: CurrentRecord, without: Collection[int] = ()) -> RemoteGeneration:
        """Reads the manifests of the generation of a record, and of the shards of the choice."""

        def choose(shard_count: int) -> Collection[int]:
            return set(self._choose(shard_count)).difference(without)

        return require_generation(self.store, record.number, record.manifest_xxh3, choose)

    def _pull(self, record: CurrentRecord, *, is_open: bool, verify: bool) -> None:
        name = generation_name(record.number)
        before = current_folder(self.folder)
        if is_open and before is not None and before.name == name:
            self._add_shards(record, before)
            return
        generation = self._read(record)
        keys = {key_of(file) for _, file in generation.files}
        self._remove_generations({before})
        self.copies.keep(keys)
        pulled = self._copied(generation, verify=verify)
        if (self.folder / name).exists():
            (self.folder / name).rename(self.folder / _REMOVED)
        pulled.rename(self.folder / name)
        write_atomically(self.folder / CURRENT, name + "\n")
        self._complete = _Complete.of(generation, set())
        self._remove_generations({self.folder / name, before if is_open else None})
        self.copies.keep(keys)

    def _add_shards(self, record: CurrentRecord, folder: Path) -> None:
        """Adds the shards that are missing to the generation that is here and may be open."""
        if not _is_same(folder, record):
            raise StoreError(
                f"{self.store.url} has another generation {record.number} than the mirror "
                f"{self.folder}; restart the server, which copies it again."
            )
        here = stored_shards(folder)
        generation = self._read(record, without=here)
        pulled = self._copied(generation)
        for shard in generation.shards.values():
            if (folder / shard.name).exists():  # of an addition that was interrupted
                shutil.rmtree(folder / shard.name)
            (pulled / shard.name).rename(folder / shard.name)
        fsync(folder)
        # From now on readers take the shards for complete.
        generation.write_shard_manifests(folder)
        fsync(folder)
        self._complete = _Complete.of(generation, here)
        shutil.rmtree(pulled)

    def _copied(self, generation: RemoteGeneration, *, verify: bool = False) -> Path:
        """Copies the shards of a generation; returns a folder with them, on disk."""
        files = generation.files
        self.copies.fetch(generation.manifest.number, [file for _, file in files], verify=verify)
        pulling = self.folder / _PULLING
        if pulling.exists():
            shutil.rmtree(pulling)
        self.copies.lay_out(generation, pulling)
        folders = {pulling, *((pulling / place).parent for place, _ in files)}
        folders |= {self.copies.path(file).parent for _, file in files}
        # At once, so that the file system writes its journal a few times and not for each.
        for _ in map_in_threads(fsync, folders, SYNCS_AT_ONCE):
            pass
        return pulling

    def _remove_generations(self, kept: Collection[Path | None]) -> None:
        removed = self.folder / _REMOVED
        if removed.exists():
            shutil.rmtree(removed)
        for folder in generation_folders(self.folder).values():
            if folder not in kept:
                folder.rename(removed)
                shutil.rmtree(removed)


@dataclass(frozen=True, slots=True)
class _Complete:
    """A generation that is here."""

    xxh3: str
    """Checksum of its root manifest."""
    shard_count: int
    shards: set[int]
    """Numbers of those that are here."""

    @classmethod
    def of(cls, generation: RemoteGeneration, added_to: set[int]) -> Self:
        """Returns a generation whose shards were copied, and added to others."""
        shards = added_to | set(generation.numbers)
        return cls(generation.xxh3, generation.manifest.shard_count, shards)


def _is_same(folder: Path, record: CurrentRecord) -> bool:
    """Returns True if the generation in a folder is that of a record."""
    if folder.name != generation_name(record.number):
        return False
    try:
        body = (folder / MANIFEST).read_bytes()
    except OSError:
        return False
    return xxhash.xxh3_64_hexdigest(body) == record.manifest_xxh3


def _is_published(folder: Path, manifest: Manifest, number: int) -> bool:
    """Returns False if a run that ended before it published has built a generation."""
    files = shard_manifest(folder, manifest, number).files
    return all(file.object is not None for file in files)
