"""Cleaning up a store in a local folder: what killed runs left, and old generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.store.current import require_current_folder
from thinrow.store.generations import (
    check_removable,
    generation_folders,
    locked_store,
    prune,
    remove_leftovers,
    withdrawn_folders,
)
from thinrow.store.marks import remove_generation
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["clean_up"]


def clean_up(store: Path, keep: int | None, *, withdrawn: bool) -> list[int]:
    """Removes what killed runs left, and generations that are no longer wanted.

    Args:
        store: Folder of the store.
        keep: Number of generations to keep, the newest up to the serving one; None for all.
        withdrawn: Removes generations that a rollback set aside, too.

    Returns:
        The numbers of the generations removed.

    Raises:
        StoreMissingError: The store holds no generation.
        StoreLockedError: Another command is changing it.
        UsageError: Nothing shows that ThinRow made one of its folders.
    """
    require_current_folder(store)
    try:
        with locked_store(store):
            remove_leftovers(store)
            check_removable(store)
            before = {**withdrawn_folders(store), **generation_folders(store)}
            if keep is not None:
                prune(store, keep, withdrawn=False)
            if withdrawn:
                for folder in withdrawn_folders(store).values():
                    remove_generation(folder)
            return [number for number, folder in sorted(before.items()) if not folder.exists()]
    except OSError as error:
        raise storage_error(error, store) from error
