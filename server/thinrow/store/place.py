"""Places of stores: a local folder, or the URL of an object store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SCHEMES", "check_folder", "check_place", "is_url"]

SCHEMES = ("s3", "gs", "az", "file")
"""Schemes of the URLs of stores."""


def is_url(store: str | Path) -> bool:
    """Returns True if a store is named by a URL, and not by the path of a folder."""
    return isinstance(store, str) and "://" in store


def check_place(store: str | Path, mirror: Path | None) -> None:
    """Checks that a mirror is named for a store at a URL only.

    Raises:
        UsageError: The store is a local folder, of which no mirror is kept.
    """
    if mirror is not None and not is_url(store):
        raise UsageError(f"mirror is for stores at a URL; leave it out with the folder {store}.")


def check_folder(store: Path) -> None:
    """Checks that a store that is read where it lies is a folder.

    Raises:
        UsageError: It is a URL, which as a path has lost one of its slashes.
    """
    if re.match(rf"({'|'.join(SCHEMES)}):/", str(store)):
        raise UsageError(
            f"{store} is a URL; give the folder of a mirror, which thinrow serve --mirror keeps "
            f"like the store."
        )
