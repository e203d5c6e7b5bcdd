"""Objects of one generation: their keys, and its manifest.

    CURRENT                                  what serves (current.py)
    generations/generation-000007.json       manifest, created once: the claim of the number
    runs/RUN/shard-0003/UUID-000009.sst      a file, which later generations may share

A key below runs/ has the id of the run that wrote it and a UUID, so that no two attempts write the
same key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import xxhash
from thinrow.errors import StoreCorruptError
from thinrow.store.layout import (
    MANIFEST,
    ROOTS,
    VOCABULARIES,
    generation_name,
)
from thinrow.store.manifest import MANIFEST_BYTES_MAX, parse_manifest
from thinrow.store.small_files import reason_of, write_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.manifest import Manifest
    from thinrow.store.stored_files import StoredFile

__all__ = [
    "REQUESTS_AT_ONCE",
    "RUNS",
    "RemoteGeneration",
    "file_key",
    "read_generation",
    "root_key",
]

RUNS = "runs"
REQUESTS_AT_ONCE = 16
"""Small objects that are read or written at once."""
_KEY = re.compile(r"runs/[\w-]+(/[\w-][\w.-]*)+")


def root_key(number: int) -> str:
    """Returns the key of a generation's root manifest."""
    return f"{ROOTS}/{generation_name(number)}.json"


def file_key(run_id: str, folder: str, name: str) -> str:
    """Returns a new key for a file of a generation's folder."""
    readable = re.sub(r"[^\w.-]", "_", name)
    return f"{RUNS}/{run_id}/{folder}/{uuid4().hex}-{readable}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteGeneration:
    """A generation of an object store."""

    manifest: Manifest
    body: bytes
    """The manifest as it is stored."""
    numbers: list[int]
    """Shards that are wanted, ascending."""

    @property
    def xxh3(self) -> str:
        """XXH3 (64 bits) of the manifest as it is stored, hexadecimal."""
        return xxhash.xxh3_64_hexdigest(self.body)

    @property
    def files(self) -> list[tuple[str, StoredFile]]:
        """Every file of these shards and of vocabularies, with its path in a folder."""
        shards = [self.manifest.shards[number] for number in self.numbers]
        found = [(f"{shard.name}/{file.name}", file) for shard in shards for file in shard.files]
        vocabularies = [one.file for one in self.manifest.vocabularies]
        return found + [(f"{VOCABULARIES}/{file.name}", file) for file in vocabularies]

    @property
    def keys(self) -> set[str]:
        """Keys of all objects but the manifest."""
        return {key_of(file) for _, file in self.files}

    def write_manifests(self, folder: Path) -> None:
        """Writes the manifest as a generation's folder has it."""
        path = folder / MANIFEST
        write_beside(path, self.body.decode()).replace(path)


def key_of(file: StoredFile) -> str:
    """Returns the key of a file's object.

    Raises:
        StoreCorruptError: The manifest gives none, or none that ThinRow would write.
    """
    if file.object is None or not _KEY.fullmatch(file.object):
        raise StoreCorruptError(f"A manifest gives {file.name} the object {file.object!r}.")
    return file.object


def read_generation(
    store: ObjectStore,
    number: int,
    xxh3: str | None = None,
    choose: Callable[[int], Collection[int]] = range,
) -> RemoteGeneration | None:
    """Reads the manifests of a generation.

    Args:
        store: The store.
        number: Number of the generation.
        xxh3: Checksum of the root manifest, as CURRENT has it; None where it is not known.
        choose: Receives the count of shards; returns the numbers of those that are wanted.

    Returns:
        The generation; None if it has no root manifest.

    Raises:
        StoreCorruptError: A manifest is missing or altered.
    """
    key = root_key(number)
    content = store.read(key, MANIFEST_BYTES_MAX)
    if content is None:
        return None
    try:
        if xxh3 is not None and xxhash.xxh3_64_hexdigest(content.data) != xxh3:
            raise ValueError("it is another one than CURRENT names")
        manifest = parse_manifest(content.data.decode(), f"{store.url}/{key}")
        if manifest.number != number:
            raise ValueError(f"it is that of generation {manifest.number}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise store.damaged(key, reason_of(error)) from error
    return RemoteGeneration(
        manifest=manifest, body=content.data, numbers=sorted(choose(manifest.shard_count))
    )
