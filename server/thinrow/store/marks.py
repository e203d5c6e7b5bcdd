"""Folders that a command may remove, because it can prove that a run of ThinRow made them.

The proof is a file UNPUBLISHED inside, which compaction's scratch folder and a generation that was
never published have, and into which a generation's manifest is renamed when its removal begins.
What version 0.1 left has no mark, and is known by its files.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from thinrow.core.files.permissions import file_mode, private_umask
from thinrow.errors import StoreLockedError, UsageError
from thinrow.store.layout import MANIFEST, NEW, UNPUBLISHED
from thinrow.store.shard import fsync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "BUILDING",
    "build_folder",
    "has_manifest",
    "is_marked",
    "is_scratch",
    "lock_file",
    "remove_generation",
    "remove_marked",
    "remove_old_removal",
    "remove_scratch",
]

BUILDING = "building"
"""Compaction's scratch folder; becomes the generation."""
_UNMARKED = BUILDING + NEW
"""The scratch folder before it has its mark, and a folder about to be gone after it lost its own:
alone this one is removed without a mark, if it is empty."""
_OLD_REMOVAL = re.compile(r"removing-generation-\d{6,}")
"""Name that version 0.1 gave a generation while removing it."""
_OLD_FILES = re.compile(
    r"manifest\.json(\.new)?|UNPUBLISHED|events/\d{4}\.arrow|shard-\d{4}/(bulk-\d{6}\.sst|"
    r"\d{6}\.(sst|log|dbtmp)|CURRENT|IDENTITY|LOCK|LOG(\.old\.\d+)?|MANIFEST-\d{6}|"
    r"OPTIONS-\d{6}(\.dbtmp)?|rocksdict-config\.json)"
)
"""All that version 0.1 wrote into a generation while it built it."""


def lock_file(file: int, store: Path) -> None:
    """Locks an open file for this process, without waiting.

    Raises:
        StoreLockedError: Another command holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StoreLockedError(
            f"Another compaction is running on {store}; wait until it ends."
        ) from error


@contextmanager
def build_folder(store: Path) -> Iterator[Path]:
    """Creates the scratch folder of a run; removes it if the run fails."""
    folder = store / BUILDING
    unmarked = store / _UNMARKED
    unmarked.mkdir(mode=0o777 & ~private_umask())
    mark = os.open(unmarked / UNPUBLISHED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, file_mode())
    try:
        unmarked.rename(folder)
        lock_file(mark, store)
        yield folder
    except BaseException:
        with suppress(OSError):
            remove_marked(folder)
        raise
    finally:
        os.close(mark)


# Proofs


def is_scratch(path: Path) -> bool:
    """Returns whether this is provably a scratch folder of compaction, of any version."""
    if path.name not in (BUILDING, _UNMARKED) or path.is_symlink() or not path.is_dir():
        return False
    is_old = path.name == BUILDING and _is_old_work(path)
    return is_old or is_marked(path) or not any(path.iterdir())


def is_marked(folder: Path) -> bool:
    """Returns whether a folder has a run's mark."""
    return not folder.is_symlink() and (folder / UNPUBLISHED).is_file()


def has_manifest(folder: Path) -> bool:
    """Returns whether a folder is a generation that a run finished."""
    return not folder.is_symlink() and (folder / MANIFEST).is_file()


def _is_old_work(folder: Path) -> bool:
    """Returns whether a folder holds only what version 0.1 wrote into generations."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            return False
        if path.is_dir():
            if not re.fullmatch(r"events|shard-\d{4}", name):
                return False
        elif not path.is_file() or not _OLD_FILES.fullmatch(name):
            return False
    return True


# Removal


def remove_scratch(store: Path) -> None:
    """Removes the scratch folders that killed runs left.

    Raises:
        StoreLockedError: The run that made one still goes on.
        UsageError: One has the name of a scratch folder, and nothing shows that it is one.
    """
    for folder in (store / _UNMARKED, store / BUILDING):
        if not (folder.is_symlink() or folder.exists()):
            continue
        if not is_scratch(folder):
            raise _not_ours(folder)
        if not any(folder.iterdir()):
            folder.rmdir()
            continue
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        mark = os.open(folder / UNPUBLISHED, flags, file_mode())
        try:
            lock_file(mark, store)
            remove_marked(folder)
        finally:
            os.close(mark)


def remove_old_removal(path: Path) -> None:
    """Goes on with a removal that version 0.1 had begun, if this is one.

    Raises:
        UsageError: It has the name of one, and nothing shows that it is one.
    """
    if not _OLD_REMOVAL.fullmatch(path.name):
        return
    if path.is_symlink() or not path.is_dir() or not _is_old_work(path):
        raise _not_ours(path)
    (path / UNPUBLISHED).touch(file_mode())
    remove_marked(path)


def _not_ours(path: Path) -> UsageError:
    return UsageError(
        f"{path} is in compaction's way, and nothing shows that a run of compaction left it; "
        f"look into it, then move it away or remove it."
    )


def remove_generation(folder: Path) -> None:
    """Removes a generation; killed, the next run of compaction goes on.

    Raises:
        UsageError: Nothing shows that ThinRow made the folder.
    """
    if not has_manifest(folder):
        raise UsageError(
            f"{folder} is not a folder with a manifest, so nothing shows that compact made it; "
            f"remove it yourself."
        )
    (folder / MANIFEST).replace(folder / UNPUBLISHED)
    fsync(folder)
    remove_marked(folder)


def remove_marked(folder: Path) -> None:
    """Removes a folder with a mark, its mark last: killed, the next run goes on."""
    unmarked = folder.rename(folder.with_name(_UNMARKED))
    for path in list(unmarked.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != UNPUBLISHED:
            path.unlink()
    (unmarked / UNPUBLISHED).unlink()
    unmarked.rmdir()
    fsync(unmarked.parent)
