"""Generation folders of a store: which exist, which serve, and which a command may remove.

A run removes only what it can prove a run of ThinRow made (marks.py). Everything else stays, and a
run that it stands in the way of is refused.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.core.files.io_errors import access_failure
from thinrow.core.files.permissions import file_mode, make_folder
from thinrow.errors import StoreCorruptError, StoreError, UsageError
from thinrow.store.completeness import check_files
from thinrow.store.current import CURRENT_BYTES_MAX, current_folder
from thinrow.store.layout import (
    CURRENT,
    HIGHEST,
    LOCK,
    MANIFEST,
    NEW,
    UNPUBLISHED,
    generation_name,
    generation_number,
)
from thinrow.store.manifest import Manifest, read_manifest
from thinrow.store.marks import (
    has_manifest,
    is_marked,
    is_scratch,
    lock_file,
    remove_generation,
    remove_marked,
    remove_old_removal,
    remove_scratch,
)
from thinrow.store.shard import fsync
from thinrow.store.small_files import read_small, write_atomically, write_beside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "FOREIGN_ALLOWED",
    "StoredGeneration",
    "check_nothing_newer",
    "check_removable",
    "generation_folders",
    "highest_number",
    "locked_store",
    "make_store",
    "problem_of",
    "prune",
    "publish",
    "publish_built",
    "remove_leftovers",
    "stored_generations",
    "withdrawn_folders",
    "withdrawn_name",
]

FOREIGN_ALLOWED = frozenset({"lost+found"})
"""Folders that file systems make by themselves; so do names that begin with a dot."""
_WITHDRAWN = r"withdrawn-(\d{6,})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGeneration:
    """One generation folder of a store."""

    number: int
    folder: Path
    is_current: bool
    is_withdrawn: bool
    manifest: Manifest | None
    """None if the folder is not a complete generation."""
    problem: str | None
    """The reason why it is incomplete; None if it is complete."""


def make_store(store: Path) -> None:
    """Creates the store's folder, or checks that an existing one is a store or empty.

    Raises:
        UsageError: The folder holds other files and no store.
        OSError: It cannot be made or read.
    """
    if not store.is_dir():
        make_folder(store)
        return
    known = {CURRENT, HIGHEST, LOCK}
    names = sorted(path.name for path in store.iterdir())
    is_store = CURRENT in names or HIGHEST in names
    if is_store or any(generation_number(name) is not None for name in names):
        return
    foreign = [
        name
        for name in names
        if name.removesuffix(NEW) not in known
        and name not in FOREIGN_ALLOWED
        and not name.startswith(".")
        and not is_scratch(store / name)  # left by a first run that was killed
    ]
    if foreign:
        raise UsageError(
            f"{store} is not a store and holds other files, such as {foreign[0]}; give --store a "
            f"new or an empty folder."
        )


@contextmanager
def locked_store(store: Path) -> Iterator[None]:
    """Keeps other commands from changing the store.

    Raises:
        StoreLockedError: Another command is changing it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(store / LOCK, flags, file_mode())
    try:
        lock_file(file, store)
        yield
    finally:
        os.close(file)


# Numbers


def generation_folders(store: Path) -> dict[int, Path]:
    """Returns all folders named like a generation, by number, whatever they hold."""
    found = {generation_number(path.name): path for path in store.iterdir()}
    return {number: found[number] for number in sorted(n for n in found if n is not None)}


def withdrawn_name(number: int) -> str:
    """Returns the name of a generation that was rolled back and kept."""
    return f"withdrawn-{number:06d}"


def withdrawn_folders(store: Path) -> dict[int, Path]:
    """Returns the generations that were rolled back and kept, by number."""
    found = {}
    for path in sorted(store.iterdir()):
        match = re.fullmatch(_WITHDRAWN, path.name)
        if match:
            found[int(match[1])] = path
    return found


def _current_number(store: Path) -> int:
    """Returns the number that CURRENT names; 0 without CURRENT."""
    folder = current_folder(store)
    return 0 if folder is None else generation_number(folder.name) or 0


def _published_number(store: Path) -> int:
    """Returns the highest number that is known to have been published; 0 for none."""
    path = store / HIGHEST
    try:
        name = read_small(path, CURRENT_BYTES_MAX).strip()
    except FileNotFoundError:
        return _current_number(store)
    except (OSError, ValueError) as error:
        if (reason := access_failure(error)) is not None:
            raise StoreError(f"Cannot read {path}: {reason}.") from error
        raise _unreadable(path) from error
    number = generation_number(name)
    if number is None:
        raise _unreadable(path)
    return max(number, _current_number(store))


def _unreadable(path: Path) -> StoreCorruptError:
    return StoreCorruptError(
        f"{path} is damaged (it names no generation); write the name of the newest generation ever "
        f"published into it, such as {generation_name(7)}."
    )


def highest_number(store: Path) -> int:
    """Returns the highest generation number ever used here; the next generation's is higher.

    A store copied without HIGHEST is measured by its folders.
    """
    folders = [
        number
        for number, folder in generation_folders(store).items()
        if not (folder / UNPUBLISHED).exists()
    ]
    return max(_published_number(store), *folders, *withdrawn_folders(store), 0)


def publish(store: Path, folder: Path) -> None:
    """Makes a complete generation the serving one."""
    fsync(folder)
    fsync(store)
    highest = max(highest_number(store), generation_number(folder.name) or 0)
    # Written first: a full disk fails the run before anything is published.
    prepared = write_beside(store / HIGHEST, generation_name(highest) + "\n")
    try:
        write_atomically(store / CURRENT, folder.name + "\n")
        prepared.replace(store / HIGHEST)
    except OSError:
        prepared.unlink(missing_ok=True)
        raise
    (folder / UNPUBLISHED).unlink(missing_ok=True)
    fsync(store)


# Completeness


def problem_of(folder: Path) -> str | None:
    """Returns why a folder is not a complete generation; None if it is one."""
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest)
    except StoreError as error:
        return str(error).rstrip(".")
    if folder.name not in (generation_name(manifest.number), withdrawn_name(manifest.number)):
        return f"its manifest is that of {generation_name(manifest.number)}"
    return None


def stored_generations(store: Path) -> list[StoredGeneration]:
    """Returns every generation folder of a store, in ascending order. Changes nothing.

    Raises:
        StoreError: The store or CURRENT cannot be read.
    """
    try:
        current = _current_number(store)
    except StoreCorruptError:
        current = 0
    places = [(number, False, path) for number, path in generation_folders(store).items()]
    places += [(number, True, path) for number, path in withdrawn_folders(store).items()]
    found = []
    for number, is_withdrawn, folder in sorted(places):
        if (folder / UNPUBLISHED).exists() and number != current:
            continue
        problem = problem_of(folder)
        found.append(
            StoredGeneration(
                number=number,
                folder=folder,
                is_current=not is_withdrawn and number == current,
                is_withdrawn=is_withdrawn,
                manifest=read_manifest(folder) if problem is None else None,
                problem=problem,
            )
        )
    return found


def check_nothing_newer(store: Path) -> None:
    """Checks that CURRENT names the newest generation of the store.

    Raises:
        StoreError: A newer one lies there, or there are generations and no CURRENT.
    """
    current = _current_number(store)
    newer = [number for number in generation_folders(store) if number > current]
    highest = highest_number(store)
    command = f"thinrow store rollback --store {store} --to"
    if not current and highest:
        raise StoreError(
            f"{store} has had generations up to {highest}, and no CURRENT says which one serves; "
            f"{_way_without_current(store, command)}."
        )
    if not newer:
        return
    folder = generation_folders(store)[newer[-1]]
    problem = problem_of(folder)
    if problem is not None:
        raise StoreError(
            f"{folder} is newer than CURRENT's {generation_name(current)} and not complete "
            f"({problem}); let its copy end, or set it aside with `{command} {current} --newer "
            f"keep`."
        )
    raise StoreError(
        f"{folder} is complete and newer than CURRENT's {generation_name(current)}; to go on from "
        f"it run `{command} {newer[-1]} --newer keep`, or set it aside with `{command} {current} "
        f"--newer keep`."
    )


def _way_without_current(store: Path, command: str) -> str:
    complete = [n for n, path in generation_folders(store).items() if problem_of(path) is None]
    if not complete:
        return "none of them is complete here: copy the store again, or build it in a new folder"
    return (
        f"go on from the newest complete one with `{command} {complete[-1]} --newer keep`, or from "
        f"another that `thinrow store list --store {store}` shows"
    )


# Building and removing


def publish_built(building: Path, number: int) -> None:
    """Makes what a run built in its scratch folder the serving generation of that number."""
    store = building.parent
    folder = building.rename(store / generation_name(number))
    try:
        publish(store, folder)
    except BaseException:
        if _current_number(store) != number:
            folder.rename(building)
        raise


def remove_leftovers(store: Path) -> None:
    """Removes what killed runs left.

    Raises:
        StoreLockedError: The run that made it still goes on.
        UsageError: A folder has a name that compaction uses, and nothing shows that a run of
            ThinRow made it.
    """
    published = _published_number(store)
    remove_scratch(store)
    for number, folder in generation_folders(store).items():
        if not is_marked(folder):
            continue
        if number > published:
            remove_marked(folder)
        elif has_manifest(folder):
            (folder / UNPUBLISHED).unlink()  # killed right after it was published
    for path in list(store.iterdir()):
        remove_old_removal(path)
        if path.name in (CURRENT + NEW, HIGHEST + NEW):
            path.unlink()
        elif _is_half_removed(path):
            remove_marked(path)


def _is_half_removed(folder: Path) -> bool:
    """Returns whether a killed run had begun to remove this generation."""
    is_named = generation_number(folder.name) or re.fullmatch(_WITHDRAWN, folder.name)
    return bool(is_named) and is_marked(folder) and not (folder / MANIFEST).exists()


def check_removable(store: Path) -> None:
    """Checks, before a run, that it can prove of every old generation that ThinRow made it.

    Raises:
        UsageError: Names the first that it cannot.
    """
    for folder in (*generation_folders(store).values(), *withdrawn_folders(store).values()):
        if not has_manifest(folder):
            raise UsageError(
                f"{folder} is not a folder with a manifest, so nothing shows that compact made it; "
                f"move it away or remove it, or leave --keep out."
            )


def prune(store: Path, keep: int, *, withdrawn: bool) -> None:
    """Removes old generations but the newest `keep`; with `withdrawn`, also those rolled back.

    Servers that have a removed generation open read on until they close it.
    """
    current = _current_number(store)
    old = [folder for number, folder in generation_folders(store).items() if number <= current]
    doomed = old[:-keep]
    if withdrawn:
        doomed += withdrawn_folders(store).values()
    for folder in doomed:
        remove_generation(folder)
