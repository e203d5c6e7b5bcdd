"""Records of a generation's files, and the checks of files against them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import xxhash
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from thinrow.store.small_files import damaged, unreadable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "OBJECT_CHARACTERS_MAX",
    "Count",
    "Record",
    "StoredFile",
    "Time",
    "Xxh64",
    "Xxh128",
    "check_file",
    "file_summary",
]

OBJECT_CHARACTERS_MAX = 1024
"""Limit on the name of an object, as object stores have it."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Time = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Xxh64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""XXH3 (64 bits), hexadecimal."""
Xxh128 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""XXH3 (128 bits), hexadecimal."""
_FileName = Annotated[str, StringConstraints(pattern=r"^[^./\x00][^/\x00]*$", max_length=255)]
_ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=OBJECT_CHARACTERS_MAX)]


class Record(BaseModel):
    """A part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(Record):
    """One file of a generation."""

    name: _FileName
    bytes: Count
    xxh3: Xxh64
    """XXH3 (64 bits) of the content."""
    object: _ObjectName | None = None
    """Name of the object that holds the content in an object store, below the store's URL; None
    where the file lies in the generation's own folder. Generations share objects by it."""

    def has_content_of(self, other: StoredFile) -> bool:
        """Returns True if both have the same content, wherever it lies."""
        return (self.bytes, self.xxh3) == (other.bytes, other.xxh3)


def file_summary(path: Path) -> StoredFile:
    """Measures a file."""
    hasher = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return StoredFile(name=path.name, bytes=path.stat().st_size, xxh3=hasher.hexdigest())


def check_file(path: Path, expected: StoredFile, *, content: bool) -> None:
    """Checks that a file is there and of the right size; with `content`, also its checksum.

    Raises:
        StoreCorruptError: Names the file.
        StoreError: It cannot be read for now.
    """
    try:
        if path.stat().st_size != expected.bytes:
            raise damaged(path, "its size differs")
        if content and not file_summary(path).has_content_of(expected):
            raise damaged(path, "its checksum differs")
    except OSError as error:
        raise unreadable(path, error) from error
