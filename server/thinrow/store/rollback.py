"""Rollback: an older generation of a store serves again, and the newer ones leave its history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import xxhash
from thinrow.errors import StoreCorruptError, StoreMissingError, UsageError
from thinrow.store.current import current_folder
from thinrow.store.generations import (
    generation_folders,
    locked_store,
    problem_of,
    publish,
    remove_leftovers,
    withdrawn_folders,
    withdrawn_name,
)
from thinrow.store.layout import CURRENT, generation_name
from thinrow.store.manifest import read_manifest
from thinrow.store.marks import remove_generation
from thinrow.store.shard import fsync, storage_error
from thinrow.store.vocabulary import keep_vocabularies

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.store.manifest import Manifest

__all__ = ["Newer", "RollbackReport", "has_erased", "rollback"]

Newer = Literal["keep", "remove"]
_NO_USERS_XXH3 = xxhash.xxh3_64_hexdigest(np.empty(0, np.int64).tobytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReport:
    """Result of a rollback."""

    watermark_ts: int
    """Watermark of the generation that serves now."""
    withdrawn: list[int] = field(default_factory=list)
    """Generations that were set aside."""
    removed: list[int] = field(default_factory=list)
    erasing: list[int] = field(default_factory=list)
    """Withdrawn or removed generations that had erased users, who are in the store again."""


def rollback(store: Path, number: int, newer: Newer) -> RollbackReport:
    """Publishes an older generation again; killed at any point it can be run again.

    Args:
        store: Folder of the store.
        number: The generation to serve. One that an earlier rollback kept is taken back.
        newer: Whether newer generations are kept under another name, or removed.

    Raises:
        StoreMissingError: The store has no such generation.
        UsageError: The generation is not complete, or a newer folder cannot be set aside.
        StoreLockedError: A compaction is running on this store.
    """
    if not store.is_dir():
        raise StoreMissingError(f"{store} does not exist; give the folder of a store as --store.")
    try:
        _find(store, number)  # before a lock is made in a folder that is no store
        with locked_store(store):
            _move_damaged_current(store)
            remove_leftovers(store)
            return _rolled_back(store, _find(store, number), newer)
    except OSError as error:
        raise storage_error(error, store) from error


def _find(store: Path, number: int) -> Path:
    folders = {**withdrawn_folders(store), **generation_folders(store)}
    if number not in folders:
        known = ", ".join(map(str, sorted(folders))) or "none"
        raise StoreMissingError(
            f"{store} has no generation {number}; `thinrow store list` shows those it has: {known}."
        )
    return folders[number]


def _move_damaged_current(store: Path) -> None:
    try:
        current_folder(store)
    except StoreCorruptError:
        (store / CURRENT).rename(store / f"{CURRENT}.damaged")


def _rolled_back(store: Path, folder: Path, newer: Newer) -> RollbackReport:
    problem = problem_of(folder)
    if problem is not None:
        raise UsageError(f"{folder.name} cannot serve: {problem}.")
    manifest = read_manifest(folder)
    number = manifest.number
    after = {n: path for n, path in generation_folders(store).items() if n > number}
    erasing = [
        n
        for n, path in after.items()
        if problem_of(path) is None and has_erased(read_manifest(path))
    ]
    if folder.name == withdrawn_name(number):
        folder = folder.rename(store / generation_name(number))
    for path in after.values():
        if problem_of(path) is None:
            newest = read_manifest(path).vocabularies
            keep_vocabularies(store, path, [one.file for one in newest])
    # Also records the highest number used so far, which no later generation takes again.
    publish(store, folder)
    for n, path in after.items():
        if newer == "remove":
            remove_generation(path)
        else:
            _set_aside(path, store / withdrawn_name(n))
    fsync(store)
    return RollbackReport(
        watermark_ts=manifest.watermark_ts,
        withdrawn=list(after) if newer == "keep" else [],
        removed=list(after) if newer == "remove" else [],
        erasing=erasing,
    )


def has_erased(manifest: Manifest) -> bool:
    """Returns True if the run that built a generation erased users."""
    return not manifest.is_fill and manifest.run.erase_xxh3 != _NO_USERS_XXH3


def _set_aside(folder: Path, aside: Path) -> None:
    if aside.exists():
        raise UsageError(f"{aside} exists; move it away, and run the rollback again.")
    folder.rename(aside)
