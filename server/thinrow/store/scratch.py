"""Scratch folders beside an output file; the next run beside it removes what killed runs left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.core.files.permissions import file_mode, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["scratch_beside"]

_MARK = "THINROW_SCRATCH"
"""Shows that a run of ThinRow made the folder; locked while that run goes on."""
_NEW = ".new"
"""Ends the mark's name until it is locked, so that no other run takes the folder for a leftover."""


@contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """Creates a private folder beside an output, and removes it and those of killed runs.

    Raises:
        OSError: The folder cannot be made.
    """
    make_folder(output.parent)
    _remove_leftovers(output.parent)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    new = folder / (_MARK + _NEW)
    mark = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, file_mode())
    try:
        fcntl.flock(mark, fcntl.LOCK_EX)
        new.rename(folder / _MARK)
        yield folder
    finally:
        with suppress(OSError):
            _remove(folder)
        os.close(mark)


def _remove_leftovers(parent: Path) -> None:
    """Removes what killed runs left, whatever their output: it may hold users erased since."""
    for folder in list(parent.iterdir()):
        if not folder.name.startswith(".") or folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(FileNotFoundError, BlockingIOError):  # not ours, or in use
            mark = os.open(folder / _MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(mark)


def _remove(folder: Path) -> None:
    """Removes a scratch folder, its mark last."""
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _MARK:
            path.unlink()
    (folder / _MARK).unlink()
    folder.rmdir()
