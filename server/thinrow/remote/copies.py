"""Verified local copies of objects, each under its key."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from thinrow.core.files.permissions import make_folder
from thinrow.errors import StoreFullError, StoreUnavailableError
from thinrow.remote.generation_objects import key_of
from thinrow.remote.limits import COPIES_AT_ONCE
from thinrow.remote.threads import map_in_threads
from thinrow.store.shard import fsync, link_or_copy
from thinrow.store.stored_files import file_summary

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from thinrow.remote.generation_objects import RemoteGeneration
    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.stored_files import StoredFile

__all__ = ["OBJECTS", "ROOM_SPARE_BYTES", "Copies", "Pull"]

OBJECTS = "objects"
ROOM_SPARE_BYTES = 64 << 20
"""Space that copying leaves free on the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """Progress of copying one generation."""

    generation: int
    bytes_missing: int
    """Bytes to copy, when the pull began."""
    bytes_shared: int
    """Bytes that were here already."""
    bytes_received: int = 0
    files_missing: int
    files_received: int = 0
    is_complete: bool = False


class Copies:
    """The copies of objects in a folder.

    Args:
        store: The store.
        folder: The folder; created when the first copy is made.
        report: Receives the progress, also from other threads, one call at a time.
        remedy: What users can do about a disk that is full.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        report: Callable[[Pull], None] = lambda _: None,
        remedy: str = "give --mirror a larger disk",
    ) -> None:
        self._store = store
        self._folder = folder
        self._report = report
        self._remedy = remedy
        self._stopping = threading.Event()
        self._counting = threading.Lock()

    def stop(self) -> None:
        """Makes a running `fetch` end soon, by StoreUnavailableError."""
        self._stopping.set()

    def path(self, file: StoredFile) -> Path:
        """Returns the path of a file's copy."""
        return self._folder / key_of(file)

    def adopt(self, file: StoredFile, source: Path) -> None:
        """Takes a file that was uploaded for a copy of its object."""
        path = self.path(file)
        if not path.exists():
            make_folder(path.parent)
            link_or_copy(source, path)
            fsync(path.parent)

    def lay_out(self, generation: RemoteGeneration, folder: Path) -> None:
        """Makes the folder of a generation from the copies of its files."""
        make_folder(folder)
        for number in generation.numbers:
            make_folder(folder / generation.manifest.shards[number].name)
        for place, file in generation.files:
            make_folder((folder / place).parent)
            link_or_copy(self.path(file), folder / place)
        generation.write_manifests(folder)

    def keep(self, keys: Collection[str]) -> None:
        """Removes the copies that have another key and that no generation's folder links to."""
        for place, _, names in os.walk(self._folder, topdown=False):
            folder = self._folder / os.path.relpath(place, self._folder)
            for name in names:
                path = folder / name
                key = path.relative_to(self._folder).as_posix()
                if key not in keys and path.stat().st_nlink == 1:
                    path.unlink()
            if folder != self._folder and not any(folder.iterdir()):
                folder.rmdir()

    def fetch(self, generation: int, files: Sequence[StoredFile], *, verify: bool = False) -> None:
        """Copies the objects that are not here, several at once, each verified and on disk.

        The caller syncs the folders that name them.

        Args:
            generation: Number of their generation, for the progress.
            files: The files.
            verify: Reads the copies that are here, and replaces those that are damaged.

        Raises:
            StoreFullError: They do not fit on the disk; nothing was copied.
            StoreCorruptError: An object is missing or damaged.
            StoreUnavailableError: The object store does not answer.
            OSError: A copy cannot be written.
        """
        by_key = {key_of(file): file for file in files}
        missing = {key: file for key, file in by_key.items() if not self._has(file, verify)}
        pull = Pull(
            generation=generation,
            bytes_missing=sum(file.bytes for file in missing.values()),
            bytes_shared=sum(file.bytes for key, file in by_key.items() if key not in missing),
            files_missing=len(missing),
        )
        make_folder(self._folder)
        self._check_room(pull)
        self._report(pull)

        ended = threading.Event()

        def check_running() -> None:
            if self._stopping.is_set() or ended.is_set():
                raise StoreUnavailableError(f"Copying from {self._store.url} was stopped.")

        def count(byte_count: int, files_received: int = 0) -> None:
            nonlocal pull
            check_running()
            with self._counting:
                pull = replace(
                    pull,
                    bytes_received=pull.bytes_received + byte_count,
                    files_received=pull.files_received + files_received,
                )
                self._report(pull)

        def fetch(key: str) -> None:
            path, file = self._folder / key, missing[key]
            try:
                check_running()
                self._store.download(key, path, file.bytes, file.xxh3, count)
                count(0, 1)
            except BaseException:
                ended.set()  # the others end with their next piece
                raise

        for folder in {(self._folder / key).parent for key in missing}:
            make_folder(folder)
        try:
            for _ in map_in_threads(fetch, missing, COPIES_AT_ONCE, self._stopping):
                pass
        finally:
            ended.set()
        self._report(replace(pull, is_complete=True))

    def _has(self, file: StoredFile, verify: bool) -> bool:
        """Returns True if a copy is here; a file has its name only once it was verified."""
        path = self.path(file)
        try:
            if path.stat().st_size != file.bytes:
                return False
            return not verify or file_summary(path).has_content_of(file)
        except FileNotFoundError:
            return False

    def _check_room(self, pull: Pull) -> None:
        free = shutil.disk_usage(self._folder).free
        needed = pull.bytes_missing + ROOM_SPARE_BYTES
        if pull.bytes_missing and free < needed:
            raise StoreFullError(
                f"Generation {pull.generation} of {self._store.url} needs {needed:,} bytes more, "
                f"and the disk that holds {self._folder} has {free:,} free; free some space, or "
                f"{self._remedy}."
            )
