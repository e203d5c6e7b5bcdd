"""Names of the files and folders of a store."""

from __future__ import annotations

import re

__all__ = [
    "CURRENT",
    "HIGHEST",
    "LOCK",
    "MANIFEST",
    "NEW",
    "ROOTS",
    "UNPUBLISHED",
    "VOCABULARIES",
    "generation_name",
    "generation_number",
    "is_shard_name",
    "shard_manifest_name",
    "shard_manifest_number",
    "shard_name",
]

MANIFEST = "manifest.json"
"""Root manifest of a generation, written last: a folder without it is not a generation."""
CURRENT = "CURRENT"
"""Names the serving generation; replaced atomically."""
ROOTS = "generations"
"""Folder of manifests in an object store, which no local store has."""
HIGHEST = "HIGHEST"
"""Names the newest generation that was ever published; numbers continue after it."""
LOCK = "LOCK"
"""Locked while a command changes the store."""
UNPUBLISHED = "UNPUBLISHED"
"""Marks a folder that no reader uses: what a run builds, or what it removes."""
VOCABULARIES = "vocabularies"
"""Folder of a generation with its vocabularies, and of a store with those that it keeps."""
NEW = ".new"
"""Suffix of a small file that is being replaced."""


def generation_name(number: int) -> str:
    """The folder's name of a generation."""
    return f"generation-{number:06d}"


def generation_number(name: str) -> int | None:
    """The inverse; None where the name is not a generation's."""
    match = re.fullmatch(r"generation-(\d{6,})", name)
    return int(match[1]) if match else None


def shard_name(number: int) -> str:
    """Returns the folder's name of a shard."""
    return f"shard-{number:04d}"


def is_shard_name(name: str) -> bool:
    """Returns True if a folder is named like a shard."""
    return re.fullmatch(r"shard-\d{4,}", name) is not None


def shard_manifest_name(number: int) -> str:
    """Returns the file's name of a shard's manifest, which lies beside the shard's folder."""
    return f"{shard_name(number)}.json"


def shard_manifest_number(name: str) -> int | None:
    """Returns the number of the shard whose manifest has this name; None for another file."""
    match = re.fullmatch(r"shard-(\d{4,5})\.json", name)
    return int(match[1]) if match else None
