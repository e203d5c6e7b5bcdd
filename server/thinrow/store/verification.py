"""Verification of a store: every file that a generation names is there and unaltered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinrow.errors import StoreError
from thinrow.store.current import require_current_folder
from thinrow.store.generations import stored_generations
from thinrow.store.layout import VOCABULARIES
from thinrow.store.manifest import shard_manifest
from thinrow.store.stored_files import check_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from thinrow.store.manifest import Manifest
    from thinrow.store.stored_files import StoredFile

__all__ = ["Verification", "verify_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Result of a verification."""

    generations: list[int]
    """Numbers of the generations that were checked."""
    file_count: int
    """Files checked, each once however many generations share it."""
    byte_count: int
    problems: list[str] = field(default_factory=list)
    """A sentence for each file at fault."""


def verify_store(
    store: Path,
    *,
    sizes_only: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Verification:
    """Checks all generations of a store in a local folder.

    Args:
        store: Folder of the store.
        sizes_only: Compares sizes, and reads small files only.
        progress: Receives stage, bytes read and bytes in all.

    Raises:
        StoreMissingError: The store holds no generation.
    """
    require_current_folder(store)
    found = stored_generations(store)
    problems = [
        f"{one.folder.name} is not complete: {one.problem}." for one in found if one.problem
    ]
    # Generations share files by hard links.
    files: dict[tuple[int, int], tuple[Path, StoredFile]] = {}
    for one in found:
        if one.manifest is None:
            continue
        for path, file in _files(one.folder, one.manifest):
            status = path.stat()
            files[status.st_dev, status.st_ino] = path, file
    byte_count = sum(file.bytes for _, file in files.values())
    done = 0
    for path, file in () if sizes_only else files.values():
        try:
            check_file(path, file, content=True)
        except StoreError as error:
            problems.append(str(error))
        done += file.bytes
        progress("Reading files", done, byte_count)
    return Verification(
        generations=[one.number for one in found],
        file_count=len(files),
        byte_count=byte_count,
        problems=problems,
    )


def _files(folder: Path, manifest: Manifest) -> list[tuple[Path, StoredFile]]:
    """Returns every file of a generation, with its path."""
    found = [
        (folder / summary.name / file.name, file)
        for number, summary in enumerate(manifest.shards)
        for file in shard_manifest(folder, manifest, number).files
    ]
    vocabularies = [one.file for one in manifest.vocabularies]
    return found + [(folder / VOCABULARIES / file.name, file) for file in vocabularies]
