"""Folders of Parquet files that tasks write, and that appear once all of them are there.

Each attempt of a task writes a file of its own into a scratch place. The driver names those whose
results reached it, so that what other attempts wrote is never seen.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from thinrow.core.files.paths import located
from thinrow.core.files.permissions import make_folder
from thinrow.engines.spark.tasks import attempt_name
from thinrow.errors import EngineError, ThinRowError, UsageError
from thinrow.remote.generation_objects import REQUESTS_AT_ONCE
from thinrow.remote.object_store import ObjectStore
from thinrow.remote.threads import map_in_threads
from thinrow.store.place import is_url
from thinrow.store.scratch import scratch_beside
from thinrow.store.shard import fsync, storage_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["OutputFolder", "output_folder", "write_text"]

SUCCESS = "_SUCCESS"
"""Last object of a folder in an object store, as other writers of folders have it."""
_WHOLE = "whole"
_CLAIM = "_thinrow-publishing"
"""Object of the run that copies its files into place; a URL has no rename of folders."""
CLAIM_BYTES_MAX = 1024
_SCRATCH = "_thinrow"
"""Begins the name of a scratch folder in an object store; readers of folders leave it out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """A folder to be written; Spark carries it to tasks."""

    place: str
    """Path or URL."""
    scratch: str
    """Path of a folder, or the beginning of keys below the URL."""

    def put(self, path: Path) -> str:
        """Moves a file of this attempt of a task into the scratch place.

        Returns:
            Its name there.

        Raises:
            EngineError: The folder is not on this machine.
            StoreError: It cannot be written.
        """
        name = f"{attempt_name()}-{uuid4().hex}.parquet"
        if is_url(self.place):
            ObjectStore(self.place).upload(f"{self.scratch}/{name}", path)
            return name
        folder = Path(self.scratch)
        if not folder.is_dir():
            raise EngineError(
                f"An executor finds no folder {folder.parent}; name a URL, or a folder that all "
                f"executors share."
            )
        try:
            shutil.move(path, folder / name)
            fsync(folder / name)
        except OSError as error:
            raise storage_error(error, folder) from error
        return name

    def publish(self, names: Sequence[str], targets: Sequence[str] = ()) -> None:
        """Lets the folder appear.

        Args:
            names: What `put` returned, in the order that the files get.
            targets: Names of the files in the folder, which may lie in folders of it; numbered
                ones if there are none.

        Raises:
            StoreError: It cannot be written, or there is something else by now.
        """
        digits = max(5, len(str(len(names))))
        targets = targets or [f"part-{place:0{digits}d}.parquet" for place in range(len(names))]
        if is_url(self.place):
            store = ObjectStore(self.place)
            self._claim(store)
            pairs = [(f"{self.scratch}/{n}", to) for n, to in zip(names, targets, strict=True)]
            list(map_in_threads(lambda pair: store.copy(*pair), pairs, REQUESTS_AT_ONCE))
            store.write(SUCCESS, b"")
            store.delete([_CLAIM])
            return
        scratch = Path(self.scratch)
        whole = scratch / _WHOLE
        try:
            make_folder(whole)
            for name, target in zip(names, targets, strict=True):
                make_folder((whole / target).parent)
                (scratch / name).rename(whole / target)
            for folder in {(whole / target).parent for target in targets} | {whole}:
                fsync(folder)
            whole.rename(self.place)
            fsync(Path(self.place).parent)
        except OSError as error:
            raise storage_error(error, Path(self.place)) from error

    def _claim(self, store: ObjectStore) -> None:
        """Refuses to mix files with those of another run. Raises UsageError."""
        ours = self.scratch.encode()
        if store.find(SUCCESS) is not None:
            raise _in_use(self.place)
        if not store.create(_CLAIM, ours):
            found = store.read(_CLAIM, CLAIM_BYTES_MAX)
            if found is None or found.data != ours:  # else a retry found what it had written
                raise _in_use(self.place)


@contextmanager
def output_folder(place: str | Path) -> Iterator[OutputFolder]:
    """Yields a folder to be written, and removes what is left in its scratch place at the end.

    Args:
        place: Path or URL of a folder that does not exist yet, or is empty.

    Raises:
        UsageError: There is something already.
        StoreError: It cannot be written, or the object store does not answer.
    """
    if is_url(place) and not str(place).startswith("file://"):
        store = ObjectStore(str(place))
        if next(store.listed(), None) is not None:
            raise _in_use(place)
        scratch = f"{_SCRATCH}-{uuid4().hex}"
        try:
            yield OutputFolder(place=store.url, scratch=scratch)
        finally:
            with suppress(ThinRowError):  # the failure before is the one to report
                store.delete([found.key for found in store.listed(scratch)])
        return
    path = Path(located(str(place))[0]).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise _in_use(place)
    try:
        with scratch_beside(path) as folder:
            yield OutputFolder(place=str(path), scratch=str(folder))
    except OSError as error:
        raise storage_error(error, path) from error


def _in_use(place: str | Path) -> UsageError:
    return UsageError(
        f"There is something at {place} already; name a new folder, or remove what is there."
    )


def write_text(place: str | Path, text: str) -> None:
    """Writes a small file at a path, or a small object at a URL.

    Raises:
        StoreError: It cannot be written.
    """
    if is_url(place) and not str(place).startswith("file://"):
        folder, _, name = str(place).rpartition("/")
        ObjectStore(folder).write(name, text.encode())
        return
    path = Path(located(str(place))[0])
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise storage_error(error, path) from error
