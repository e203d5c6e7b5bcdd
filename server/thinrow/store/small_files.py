"""Small text files of a store: read up to a limit, replaced atomically, named when damaged."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from thinrow.core.files.io_errors import access_failure, first_line, is_temporary
from thinrow.core.files.permissions import file_mode
from thinrow.errors import StoreCorruptError, StoreError, StoreUnavailableError
from thinrow.store.layout import NEW
from thinrow.store.shard import fsync

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "damaged",
    "read_small",
    "reason_of",
    "unreadable",
    "write_atomically",
    "write_beside",
]


def read_small(path: Path, bytes_max: int) -> str:
    """Reads a text file that has a limit. Raises OSError, and ValueError for a larger one."""
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ValueError(f"it has more than {bytes_max:,} bytes")
    return data.decode()


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file so that readers see the old content or the new, also after a crash."""
    write_beside(path, text).replace(path)
    fsync(path.parent)


def write_beside(path: Path, text: str) -> Path:
    """Writes what is to replace a small file, on disk when this returns."""
    temporary = path.with_name(path.name + NEW)
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, file_mode()), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def unreadable(path: Path, error: Exception) -> StoreError:
    """Distinguishes a damaged file from one that this process cannot read for now."""
    if (reason := access_failure(error)) is not None:
        kind = StoreUnavailableError if is_temporary(error) else StoreError
        return kind(f"Cannot read {path}: {reason}.")
    return damaged(path, reason_of(error))


def reason_of(error: Exception) -> str:
    """Returns the reason of a failure, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def damaged(path: Path | str, reason: str) -> StoreCorruptError:
    """Returns the error that names a damaged file of a generation."""
    return StoreCorruptError(
        f"{path} is damaged ({reason}); restore it from a replica or build the generation again."
    )
