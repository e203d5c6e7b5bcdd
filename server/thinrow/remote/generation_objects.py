"""Objects of one generation: their keys, and its manifests.

    CURRENT                                  what serves (current.py)
    generations/generation-000007.json       root manifest, created once: the claim of the number
    runs/RUN/manifests/shard-0003.json       manifest of a shard
    runs/RUN/shard-0003/UUID-000009.sst      a file, which later generations may share

A key below runs/ has the id of the run that wrote it, and that of a file a UUID, so that no two
attempts write the same key. The root manifest has the id of the run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import xxhash
from thinrow.errors import StoreCorruptError
from thinrow.remote.threads import map_in_threads
from thinrow.store.layout import (
    MANIFEST,
    ROOTS,
    VOCABULARIES,
    generation_name,
    generation_number,
    shard_manifest_name,
)
from thinrow.store.manifest import MANIFEST_BYTES_MAX, check_shard, parse_manifest
from thinrow.store.shard_manifest import SHARD_MANIFEST_BYTES_MAX, parse_shard_manifest
from thinrow.store.small_files import reason_of, write_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path
    from uuid import UUID

    from thinrow.remote.object_store import ListedObject, ObjectStore
    from thinrow.store.manifest import Manifest, ShardSummary
    from thinrow.store.shard_manifest import ShardManifest
    from thinrow.store.stored_files import StoredFile

__all__ = [
    "REQUESTS_AT_ONCE",
    "RUNS",
    "RemoteGeneration",
    "file_key",
    "listed_roots",
    "read_generation",
    "read_shard",
    "require_generation",
    "root_key",
    "shard_manifest_key",
]

RUNS = "runs"
REQUESTS_AT_ONCE = 16
"""Small objects that are read or written at once."""
_KEY = re.compile(r"runs/[\w-]+(/[\w-][\w.-]*)+")


def root_key(number: int) -> str:
    """Returns the key of a generation's root manifest."""
    return f"{ROOTS}/{generation_name(number)}.json"


def listed_roots(store: ObjectStore) -> dict[int, ListedObject]:
    """Returns the root manifests that a store has, by the number of the generation."""
    names = ((one.key.rpartition("/")[2].removesuffix(".json"), one) for one in store.listed(ROOTS))
    found = ((generation_number(name), one) for name, one in names)
    return {number: one for number, one in found if number is not None}


def shard_manifest_key(run_id: UUID | None, number: int) -> str:
    """Returns the key of the manifest of a shard."""
    assert run_id is not None
    return f"{RUNS}/{run_id.hex}/manifests/{shard_manifest_name(number)}"


def file_key(run_id: str, folder: str, name: str) -> str:
    """Returns a new key for a file of a generation's folder."""
    readable = re.sub(r"[^\w.-]", "_", name)
    return f"{RUNS}/{run_id}/{folder}/{uuid4().hex}-{readable}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteGeneration:
    """A generation of an object store."""

    manifest: Manifest
    body: bytes
    """The root manifest as it is stored."""
    shards: dict[int, ShardManifest]
    """Manifests of the shards that are wanted, by number, ascending."""
    texts: dict[int, str]
    """The same as they are stored."""

    @property
    def numbers(self) -> list[int]:
        """Shards that are wanted, ascending."""
        return list(self.shards)

    @property
    def xxh3(self) -> str:
        """XXH3 (64 bits) of the root manifest as it is stored, hexadecimal."""
        return xxhash.xxh3_64_hexdigest(self.body)

    @property
    def files(self) -> list[tuple[str, StoredFile]]:
        """Every file of these shards and of vocabularies, with its path in a folder."""
        shards = self.shards.values()
        found = [(f"{shard.name}/{file.name}", file) for shard in shards for file in shard.files]
        vocabularies = [one.file for one in self.manifest.vocabularies]
        return found + [(f"{VOCABULARIES}/{file.name}", file) for file in vocabularies]

    @property
    def keys(self) -> set[str]:
        """Keys of all objects but the root manifest."""
        manifests = {shard_manifest_key(self.manifest.run_id, number) for number in self.texts}
        return manifests | {key_of(file) for _, file in self.files}

    def is_complete_in(self, folder: Path) -> bool:
        """Returns True if a generation's folder has all files and manifests of these shards."""
        names = [place for place, _ in self.files]
        names += map(shard_manifest_name, self.texts)
        return all((folder / name).is_file() for name in names)

    def write_manifests(self, folder: Path) -> None:
        """Writes the manifests as a generation's folder has them, the root last."""
        self.write_shard_manifests(folder)
        path = folder / MANIFEST
        write_beside(path, self.body.decode()).replace(path)

    def write_shard_manifests(self, folder: Path) -> None:
        """Writes the manifests of these shards, as a generation's folder has them."""
        for number, text in self.texts.items():
            path = folder / shard_manifest_name(number)
            write_beside(path, text).replace(path)


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
        text = content.data.decode()
    except ValueError as error:
        raise store.damaged(key, reason_of(error)) from error
    manifest = parse_manifest(text, f"{store.url}/{key}")
    if manifest.number != number:
        raise store.damaged(key, f"it is that of generation {manifest.number}")
    if manifest.single:
        raise store.damaged(key, f"format {manifest.format} is not one of object stores")
    numbers = sorted(choose(manifest.shard_count))
    texts, shards = {}, {}
    found = map_in_threads(
        lambda shard: read_shard(store, manifest.run_id, shard, manifest.shards[shard]),
        numbers,
        REQUESTS_AT_ONCE,
    )
    for shard, (text, parsed) in zip(numbers, found, strict=True):
        texts[shard], shards[shard] = text, parsed
    return RemoteGeneration(manifest=manifest, body=content.data, shards=shards, texts=texts)


def require_generation(
    store: ObjectStore,
    number: int,
    xxh3: str | None = None,
    choose: Callable[[int], Collection[int]] = range,
) -> RemoteGeneration:
    """Reads the manifests of a generation that the store must have; see `read_generation`.

    Raises:
        StoreCorruptError: A manifest, the root one among them, is missing or altered.
    """
    found = read_generation(store, number, xxh3, choose)
    if found is None:
        raise store.damaged(root_key(number), "it is gone")
    return found


def read_shard(
    store: ObjectStore, run_id: UUID | None, number: int, summary: ShardSummary
) -> tuple[str, ShardManifest]:
    """Reads the manifest of a shard.

    Args:
        store: The store.
        run_id: Identity of the run that wrote the generation.
        number: Number of the shard.
        summary: What the root manifest has of it.

    Returns:
        The manifest as it is stored, and parsed.

    Raises:
        StoreCorruptError: It is missing or altered.
    """
    key = shard_manifest_key(run_id, number)
    content = store.read(key, SHARD_MANIFEST_BYTES_MAX)
    if content is None:
        raise store.damaged(key, "it is gone")
    assert summary.manifest_xxh3 is not None
    try:
        text = content.data.decode()
        parsed = parse_shard_manifest(text, number, summary.manifest_xxh3)
        check_shard(summary, parsed)
    except (ValueError, RecursionError) as error:
        raise store.damaged(key, reason_of(error)) from error
    return text, parsed
