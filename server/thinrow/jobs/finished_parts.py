"""A folder of finished parts: a run that was killed goes on from there."""

from __future__ import annotations

import fcntl
import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["IDENTITY", "Scratch", "locked_folder"]

IDENTITY = "run.json"
_NEW = ".new"


class Scratch:
    """The parts of one run. Another run's, or another version's, are thrown away."""

    def __init__(self, folder: Path, identity: dict[str, object]) -> None:
        self.folder = folder
        wanted = json.dumps(identity)
        path = folder / IDENTITY
        self.is_resumed = True
        """A run of the same identity was here, and its parts are kept."""
        if path.exists() and path.read_text(encoding="utf-8") == wanted:
            return
        self.is_resumed = False
        for item in folder.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
        path.write_text(wanted, encoding="utf-8")

    def part(self, name: str, write: Callable[[Path], None]) -> Path:
        """The folder of a part; ``write`` fills it, where a run before did not."""
        folder = self.folder / name
        if not folder.exists():
            new = self.folder / (name + _NEW)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            write(new)
            new.rename(folder)
        return folder


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other runs out of it. Raises UsageError where one is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "LOCK").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"Another run is writing to {folder}; wait until it ends.") from error
        yield
