"""The manifest of a shard: its files. A generation's root manifest has the checksum of each.

To open some shards of a generation, a process reads the root and the manifests of these shards.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import xxhash
from thinrow.store.layout import shard_manifest_name, shard_name
from thinrow.store.small_files import read_small, unreadable, write_beside
from thinrow.store.stored_files import Record, StoredFile

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "SHARD_MANIFEST_BYTES_MAX",
    "ShardManifest",
    "encode_shard_manifest",
    "parse_shard_manifest",
    "read_shard_manifest",
    "write_shard_manifest",
]

SHARD_MANIFEST_BYTES_MAX = 4 << 20
"""Limit on a shard's manifest, which has some hundred bytes for each file."""


class ShardManifest(Record):
    """The files of one shard."""

    name: str
    files: list[StoredFile]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def has_tables(self) -> bool:
        """True if the shard has pairs of keys and values."""
        return any(file.name.endswith(".sst") for file in self.files)


def encode_shard_manifest(manifest: ShardManifest) -> tuple[str, str]:
    """Returns the text of a shard's manifest, and the XXH3 (64 bits, hexadecimal) of it."""
    body = manifest.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(body, indent=1) + "\n"
    return text, xxhash.xxh3_64_hexdigest(text.encode())


def parse_shard_manifest(text: str, number: int, xxh3: str) -> ShardManifest:
    """Reads and checks the text of a shard's manifest.

    Args:
        text: The text.
        number: Number of the shard.
        xxh3: Checksum of the text, as the root manifest has it.

    Raises:
        ValueError: It is altered, or is the manifest of another shard.
    """
    if xxhash.xxh3_64_hexdigest(text.encode()) != xxh3:
        raise ValueError("its checksum does not fit")
    manifest = ShardManifest.model_validate_json(text)
    if manifest.name != shard_name(number):
        raise ValueError(f"it is that of {manifest.name}")
    return manifest


def write_shard_manifest(folder: Path, number: int, manifest: ShardManifest) -> str:
    """Writes a shard's manifest into the folder of its generation.

    Its entry in the folder is on disk once the root manifest is written.

    Returns:
        Its checksum, for the root manifest.
    """
    text, xxh3 = encode_shard_manifest(manifest)
    path = folder / shard_manifest_name(number)
    write_beside(path, text).replace(path)
    return xxh3


def read_shard_manifest(folder: Path, number: int, xxh3: str) -> ShardManifest:
    """Reads and checks a shard's manifest.

    Raises:
        StoreCorruptError: It is missing or altered.
        StoreError: It cannot be read for now.
    """
    path = folder / shard_manifest_name(number)
    try:
        return parse_shard_manifest(read_small(path, SHARD_MANIFEST_BYTES_MAX), number, xxh3)
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
