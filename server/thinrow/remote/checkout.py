"""Checkout: the last generation of a remote store, in a folder where the next one is built."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from thinrow.errors import StoreLockedError
from thinrow.remote.current import read_current
from thinrow.remote.generation_objects import read_generation, root_key
from thinrow.remote.mirror import Mirror
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.publication import highest_number, publish
from thinrow.store.current import require_current_folder
from thinrow.store.layout import CURRENT, generation_name, generation_number
from thinrow.store.manifest import read_manifest, write_manifest
from thinrow.store.small_files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from thinrow.remote.copies import Pull
    from thinrow.remote.current import Current

__all__ = ["Checkout"]


class Checkout:
    """A local store that is like a remote one, to build the next generation in.

    Args:
        url: URL of the store; a new store begins there with its first publication.
        mirror: Folder that keeps the last generation between runs; None for a temporary one.
        progress: Receives a stage, what is done of it, and all of it.
        choose: Receives the count of shards; returns the numbers of those to copy. With others the
            folder has manifests and vocabularies only.

    Raises, when entered:
        UsageError: The URL or the folder cannot be used.
        StoreLockedError: Another run uses the folder.
        StoreError: The last generation cannot be copied.
    """

    def __init__(
        self,
        url: str,
        mirror: Path | None = None,
        progress: Callable[[str, int, int], None] = lambda *_: None,
        choose: Callable[[int], Collection[int]] = range,
    ) -> None:
        self._url = url
        self._folder = mirror
        self._progress = progress
        self._choose = choose
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.store = ObjectStore(self._url, create=True)
            folder = self._folder
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(suffix="-thinrow")))
            self._mirror = stack.enter_context(Mirror(self.store, folder, self._choose, self._show))
            if read_current(self.store) is not None:
                self._mirror.pull()
            self._highest = highest_number(self.store, self._mirror.current)
            # A new store counts from 1 here, and is numbered when it is published.
            self._mirror.reset(0 if self._mirror.current is None else self._highest)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def folder(self) -> Path:
        """Folder of the local store."""
        return self._mirror.folder

    @property
    def current(self) -> Current | None:
        """CURRENT of the store as the run found it; None for a new store."""
        return self._mirror.current

    @property
    def next_number(self) -> int:
        """Number of the generation to be built."""
        return self._highest + 1

    def publish(self) -> int:
        """Publishes what was built, if anything was.

        Returns:
            The number of the generation.

        Raises:
            StoreLockedError: Another run has published in the meantime.
            StoreError: It cannot be uploaded.
        """
        base = self.current
        folder = require_current_folder(self.folder)
        previous = None
        if base is None:
            folder = self._numbered(folder)
        else:
            if generation_number(folder.name) == base.record.number:
                return base.record.number
            previous = read_generation(self.store, base.record.number, base.record.manifest_xxh3)
            if previous is None:
                raise StoreLockedError(
                    f"{root_key(base.record.number)} of {self.store.url} was removed by another "
                    f"command in the meantime; run this one again."
                )
        generation = publish(self.store, base, previous, folder, self._progress)
        self._mirror.adopt(generation)
        return generation.manifest.number

    def _numbered(self, folder: Path) -> Path:
        """Gives a first generation its number, which follows those of runs that did not publish."""
        manifest = read_manifest(folder).model_copy(update={"number": self.next_number})
        write_manifest(folder, manifest)
        folder = folder.rename(folder.with_name(generation_name(manifest.number)))
        write_atomically(self.folder / CURRENT, folder.name + "\n")
        return folder

    def _show(self, pull: Pull) -> None:
        self._progress("Copying the last generation", pull.bytes_received, pull.bytes_missing)
