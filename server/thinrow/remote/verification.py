"""Verification of a remote store: every object that a generation names is there and unaltered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.errors import StoreCorruptError
from thinrow.remote.current import require_current
from thinrow.remote.generation_objects import RUNS, key_of, require_generation
from thinrow.remote.limits import COPIES_AT_ONCE
from thinrow.remote.threads import map_in_threads
from thinrow.store.verification import Verification

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.stored_files import StoredFile

__all__ = ["missing_objects", "verify_remote"]


def missing_objects(
    store: ObjectStore, files: Iterable[StoredFile], sizes: dict[str, int] | None = None
) -> Iterator[StoreCorruptError]:
    """Yields an error for each file whose object is missing or of another size.

    Args:
        store: The store.
        files: Files of a generation, or that CURRENT keeps.
        sizes: Bytes of all objects by key, if they were listed before.
    """
    if sizes is None:
        sizes = {one.key: one.bytes for one in store.listed(RUNS)}
    for file in files:
        key = key_of(file)
        if key not in sizes:
            yield store.damaged(key, "it is gone")
        elif sizes[key] != file.bytes:
            yield store.damaged(key, "its size differs")


def verify_remote(
    store: ObjectStore,
    *,
    sizes_only: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Verification:
    """Checks all generations that serve or may serve again.

    Args:
        store: The store.
        sizes_only: Compares sizes, and reads manifests only.
        progress: Receives stage, bytes read and bytes in all.

    Raises:
        StoreMissingError: The store holds no generation.
    """
    record = require_current(store).record
    problems: list[str] = []
    files: dict[str, StoredFile] = {}
    sizes = {one.key: one.bytes for one in store.listed(RUNS)}
    numbers = sorted({*record.history, *record.withdrawn})
    for number in numbers:
        xxh3 = record.manifest_xxh3 if number == record.number else None
        try:
            generation = require_generation(store, number, xxh3)
        except StoreCorruptError as error:
            problems.append(str(error))
            continue
        files |= {key_of(file): file for _, file in generation.files}
    files |= {key_of(one.file): one.file for one in record.vocabularies}
    problems += map(str, missing_objects(store, files.values(), sizes))
    byte_count = sum(file.bytes for file in files.values())
    whole = {key: file for key, file in files.items() if sizes.get(key) == file.bytes}
    done = 0

    def check(key: str) -> tuple[int, str | None]:
        try:
            store.check(key, whole[key].bytes, whole[key].xxh3)
        except StoreCorruptError as error:
            return whole[key].bytes, str(error)
        return whole[key].bytes, None

    for size, problem in map_in_threads(check, () if sizes_only else whole, COPIES_AT_ONCE):
        done += size
        progress("Reading objects", done, byte_count)
        if problem is not None:
            problems.append(problem)
    return Verification(
        generations=numbers,
        file_count=len(files),
        byte_count=byte_count,
        problems=list(dict.fromkeys(problems)),
    )
