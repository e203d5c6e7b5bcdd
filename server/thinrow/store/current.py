"""The pointer to a store's current generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.core.files.io_errors import access_failure
from thinrow.errors import StoreCorruptError, StoreMissingError, UsageError
from thinrow.store.layout import (
    CURRENT,
    HIGHEST,
    LOCK,
    MANIFEST,
    ROOTS,
    UNPUBLISHED,
    generation_number,
)
from thinrow.store.small_files import read_small, reason_of, unreadable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CURRENT_BYTES_MAX", "current_folder", "require_current_folder"]

CURRENT_BYTES_MAX = 1 << 10


def _damaged_current(store: Path, reason: str) -> str:
    return (
        f"{store / CURRENT} is damaged ({reason}); restore it from a replica, or choose a "
        f"generation with `thinrow store rollback --store {store} --to NUMBER --newer keep`."
    )


def current_folder(store: Path) -> Path | None:
    """The serving generation's folder; None where nothing was published yet.

    Raises:
        StoreCorruptError: CURRENT is damaged.
        UsageError: The folder is not laid out as that of a local store.
    """
    try:
        name = read_small(store / CURRENT, CURRENT_BYTES_MAX).strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if access_failure(error) is not None:
            raise unreadable(store / CURRENT, error) from error
        raise StoreCorruptError(_damaged_current(store, reason_of(error))) from error
    if generation_number(name) is None and (store / ROOTS).is_dir():
        raise UsageError(
            f"{store} holds a store as object stores do; name it file://{store.absolute()}."
        )
    if generation_number(name) is None:
        raise StoreCorruptError(_damaged_current(store, "it names no generation"))
    return store / name


def require_current_folder(store: Path) -> Path:
    """Returns the folder of the current generation.

    Raises:
        StoreMissingError: There is no store, or nothing was published in it.
        StoreCorruptError: The folder of the current generation is gone, or CURRENT alone is.
    """
    folder = current_folder(store)
    if folder is None:
        is_lost = _has_published(store)
        folder = current_folder(store)  # which may have been published in between
        if folder is None and is_lost:
            raise StoreCorruptError(_damaged_current(store, "it is gone"))
    if folder is None:
        raise StoreMissingError(_missing(store))
    if not folder.is_dir():
        raise StoreCorruptError(_damaged_current(store, f"{folder.name} is gone"))
    return folder


def _has_published(store: Path) -> bool:
    """Returns whether a folder has a sign that a generation was published in it."""
    if not store.is_dir():
        return False
    if (store / HIGHEST).exists():
        return True
    folders = [path for path in store.iterdir() if generation_number(path.name) is not None]
    return any((path / MANIFEST).exists() and not (path / UNPUBLISHED).exists() for path in folders)


def _missing(store: Path) -> str:
    """Returns why a folder has no current generation, and what to do."""
    if not store.is_dir():
        return (
            f"There is no folder {store}; check the path, or build a store there with thinrow "
            f"compact … --store {store}."
        )
    if (store / MANIFEST).is_file():
        return f"{store} is one generation of a store; name the store's folder, {store.parent}."
    names = {path.name for path in store.iterdir()}
    if names and not names & {LOCK, HIGHEST}:
        return (
            f"{store} is a folder without a store; name the folder that was built with thinrow "
            f"compact … --store."
        )
    return (
        f"{store} holds no published generation; wait for the compaction that may be building it, "
        f"or build one with thinrow compact … --store {store}."
    )
