"""Checks that a generation's folder has all files that its manifest lists, and no other shard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.errors import StoreCorruptError
from thinrow.store.layout import VOCABULARIES, is_shard_name, shard_manifest_number
from thinrow.store.manifest import shard_manifest
from thinrow.store.small_files import unreadable
from thinrow.store.stored_files import check_file

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from thinrow.store.manifest import Manifest
    from thinrow.store.shard_manifest import ShardManifest

__all__ = ["check_files", "stored_shards"]


def check_files(
    folder: Path, manifest: Manifest, numbers: Collection[int] | None = None
) -> dict[int, ShardManifest]:
    """Checks that every file of a generation is there and of the right size.

    Small files are read and checked whole; of the large ones RocksDB checks each block when it
    reads it. Of shards that are not in `numbers`, nothing is read.

    Args:
        folder: Folder of the generation.
        manifest: The generation's manifest.
        numbers: Shards that should be there; None for all.

    Returns:
        The manifests of these shards, by number.

    Raises:
        StoreCorruptError: names the first file or folder at fault.
    """
    found = {}
    _check_no_more_shards(folder, manifest)
    for number, shard in enumerate(manifest.shards):
        if numbers is not None and number not in numbers:
            continue
        if not (folder / shard.name).exists():
            raise StoreCorruptError(
                f"{folder / shard.name} is missing, with the histories of {shard.users} users; "
                f"copy the generation again, whole, restore it from a replica or build it again."
            )
        found[number] = shard_manifest(folder, manifest, number)
        for file in found[number].files:
            path = folder / shard.name / file.name
            check_file(path, file, content=not file.name.endswith(".sst"))
    for vocabulary in manifest.vocabularies:
        path = folder / VOCABULARIES / vocabulary.file.name
        check_file(path, vocabulary.file, content=False)
    return found


def stored_shards(folder: Path) -> set[int]:
    """Returns the numbers of the shards in a generation's folder that a mirror keeps.

    A mirror writes the manifest of a shard once it has all of the shard's files.

    Raises:
        StoreError: The folder cannot be read.
    """
    try:
        found = {shard_manifest_number(path.name) for path in folder.iterdir()}
    except OSError as error:
        raise unreadable(folder, error) from error
    return {number for number in found if number is not None}


def _check_no_more_shards(folder: Path, manifest: Manifest) -> None:
    """Checks that the folder has no shard that the manifest lacks, and whose users it would hide.

    Raises:
        StoreCorruptError: Names the shard's folder.
    """
    known = {shard.name for shard in manifest.shards}
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    for name in names:
        if is_shard_name(name) and name not in known:
            raise StoreCorruptError(
                f"{folder / name} is no shard of this generation, whose manifest lists "
                f"{len(known)}; the folder mixes two copies, or its manifest is that of another "
                f"store: restore it from a replica or build the generation again."
            )
