"""Permissions of the files and folders that ThinRow creates: private to its user by default.

Stores, tiers, rows, journals and scratch files hold personal data. ``THINROW_UMASK`` (octal, such
as ``027``) lets a group read them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["VARIABLE", "file_mode", "make_folder", "private_umask"]

VARIABLE = "THINROW_UMASK"
_UMASK_MAX = 0o077
"""The owner keeps all rights: ThinRow reads its own files again."""


def private_umask() -> int:
    """Returns the permission bits that new files and folders lack.

    Raises:
        UsageError: ``THINROW_UMASK`` is not an octal number up to 077.
    """
    text = os.environ.get(VARIABLE, "077")
    try:
        umask = int(text, 8)
    except ValueError:
        umask = -1
    if not 0 <= umask <= _UMASK_MAX:
        raise UsageError(f"{VARIABLE} is {text!r}; give an octal number up to 077, such as 027.")
    return umask


def file_mode() -> int:
    """Returns the mode of a new file."""
    return 0o666 & ~private_umask()


def make_folder(path: Path) -> None:
    """Creates a folder and its missing parents; an existing folder keeps its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o777 & ~private_umask(), exist_ok=True)
