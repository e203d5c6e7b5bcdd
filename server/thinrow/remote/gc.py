"""Garbage collection: the only deletion of objects, each after a grace period.

What can still be reached stays: the serving generation, those kept beside it, what they share, and
objects of runs that may be going on. CURRENT is replaced before anything is deleted, so that no
rollback can choose a generation whose objects go.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinrow.remote.current import now_ts, require_current, swap_current
from thinrow.remote.generation_objects import (
    RUNS,
    key_of,
    listed_roots,
    read_generation,
    root_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.remote.current import Current, CurrentRecord
    from thinrow.remote.object_store import ListedObject, ObjectStore

__all__ = ["CLOCK", "GcReport", "collect_garbage"]

CLOCK = "GC"
"""Object that a run writes to learn the object store's time, to which objects' times compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """Result of a run."""

    generations: list[int] = field(default_factory=list)
    """Generations removed."""
    object_count: int = 0
    """Objects removed, manifests included."""
    byte_count: int = 0
    generations_kept_by_grace: list[int] = field(default_factory=list)
    """Generations that a later run with the same options removes."""
    kept_by_grace: int = 0
    """Objects that nothing needs, and whose grace period has not ended."""
    has_versions: bool = False
    """True if the bucket keeps versions of what was deleted."""


def collect_garbage(
    store: ObjectStore,
    *,
    keep: int | None,
    withdrawn: bool,
    grace_ms: int,
    is_trial: bool = False,
    others: Callable[[ObjectStore, int], list[ListedObject]] = lambda *_: [],
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> GcReport:
    """Removes generations and objects that nothing needs any more.

    Args:
        store: The store.
        keep: Number of generations to keep, the newest; None for all.
        withdrawn: Removes generations that a rollback set aside, too.
        grace_ms: Time for which an object stays after it was written, or its generation replaced.
        is_trial: Reports only.
        others: Returns objects of other kinds that nothing needs, of those that were written up to
            a time, ms.
        progress: Receives stage, done and total.

    Raises:
        StoreMissingError: The store holds no generation.
        StoreCorruptError: A manifest that is needed is damaged; nothing was removed.
        StoreLockedError: Another command changed the store; nothing was removed.
    """
    current = require_current(store)
    ends_ts = _time_ts(store, is_trial=is_trial) - grace_ms
    roots = listed_roots(store)
    doomed = _doomed(current.record, roots, keep, ends_ts, withdrawn=withdrawn)
    wanted = _doomed(current.record, roots, keep, now_ts() + grace_ms, withdrawn=withdrawn)
    published = {*current.record.history, *current.record.withdrawn}
    needed = _needed(store, current, sorted(roots.keys() - doomed), progress)
    listed = [one for one in store.listed(RUNS) if one.key not in needed]
    # Each upload prolongs the life of a run's earlier ones.
    active = {_run_of(one) for one in listed if one.modified_ts > ends_ts}
    old = [one for one in listed if _run_of(one) not in active]
    kept_by_grace = len(listed) - len(old)
    old += others(store, ends_ts)
    if not is_trial and (doomed or old):
        record = current.record.changed(
            history=[number for number in current.record.history if number not in doomed],
            withdrawn=[number for number in current.record.withdrawn if number not in doomed],
            highest=max(current.record.highest, *doomed, 0),
        )
        swap_current(store, current, record)
        store.delete([root_key(number) for number in sorted(doomed)])
        store.delete([one.key for one in old])
    return GcReport(
        generations=sorted(doomed),
        object_count=len(old) + len(doomed),
        byte_count=sum(one.bytes for one in [*old, *(roots[number] for number in doomed)]),
        generations_kept_by_grace=sorted((wanted - doomed) & published),
        kept_by_grace=kept_by_grace,
        has_versions=store.has_versions(root_key(current.record.number)),
    )


def _run_of(listed: ListedObject) -> str:
    return listed.key.split("/")[1]


def _time_ts(store: ObjectStore, *, is_trial: bool) -> int:
    """Returns the object store's time, ms; in a trial, this machine's."""
    if is_trial:
        return now_ts()
    store.write(CLOCK, json.dumps({"started_ts": now_ts()}).encode())
    found = store.find(CLOCK)
    return now_ts() if found is None else found.modified_ts


def _doomed(
    record: CurrentRecord,
    roots: dict[int, ListedObject],
    keep: int | None,
    ends_ts: int,
    *,
    withdrawn: bool,
) -> set[int]:
    """Returns the generations to remove, long enough after they were replaced or set aside.

    One that was never published counts from the time of its manifest.
    """
    candidates = set(record.history[:-keep]) if keep is not None else set()
    if withdrawn:
        candidates |= set(record.withdrawn)
    doomed = set()
    for number in roots:
        is_published = number in record.history or number in record.withdrawn
        if is_published and number not in candidates:
            continue
        # A generation is replaced or set aside at the latest when its successor is published.
        later = [
            roots[each].modified_ts for each in record.history if each > number and each in roots
        ]
        since_ts = roots[number].modified_ts
        if is_published:
            since_ts = max(since_ts, min(later, default=record.changed_ts))
        if since_ts <= ends_ts:
            doomed.add(number)
    return doomed


def _needed(
    store: ObjectStore,
    current: Current,
    numbers: list[int],
    progress: Callable[[str, int, int], None],
) -> set[str]:
    """Returns the keys that the kept generations and vocabularies name.

    Raises:
        StoreCorruptError: A manifest is damaged, or the serving generation has none.
    """
    needed = {key_of(one.file) for one in current.record.vocabularies}
    for count, number in enumerate(numbers):
        progress("Reading manifests", count, len(numbers))
        is_serving = number == current.record.number
        xxh3 = current.record.manifest_xxh3 if is_serving else None
        generation = read_generation(store, number, xxh3)
        if generation is not None:
            needed |= generation.keys
    if current.record.number not in numbers:
        raise store.damaged(root_key(current.record.number), "it is gone")
    return needed
