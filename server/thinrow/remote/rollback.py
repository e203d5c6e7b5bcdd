"""Rollback of a remote store: CURRENT names an older generation, and nothing is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinrow.errors import StoreMissingError
from thinrow.remote.current import now_ts, recovered_current, swap_current
from thinrow.remote.generation_objects import read_generation, require_generation
from thinrow.remote.verification import missing_objects
from thinrow.store.rollback import RollbackReport, has_erased

if TYPE_CHECKING:
    from thinrow.remote.current import CurrentRecord
    from thinrow.remote.object_store import ObjectStore
    from thinrow.store.manifest import Manifest, StoredVocabulary

__all__ = ["roll_back"]


def roll_back(store: ObjectStore, number: int) -> RollbackReport:
    """Makes an older generation serve again; the newer ones are set aside until gc removes them.

    Args:
        store: The store.
        number: The generation to serve. One that an earlier rollback set aside is taken back; the
            one that serves replaces a damaged CURRENT.

    Raises:
        StoreMissingError: The store has no such generation.
        StoreCorruptError: The generation is not complete, or the manifest of one that is to be set
            aside is lost or damaged.
        StoreLockedError: Another command changed the store.
    """
    current = recovered_current(store)
    record = current.record
    generation = None
    if number in (*record.history, *record.withdrawn):
        xxh3 = record.manifest_xxh3 if number == record.number else None
        generation = read_generation(store, number, xxh3)
    if generation is None:
        known = ", ".join(map(str, sorted({*record.history, *record.withdrawn})))
        raise StoreMissingError(
            f"{store.url} has no generation {number} that served before; `thinrow store list` "
            f"shows those it has: {known}."
        )
    for problem in missing_objects(store, [file for _, file in generation.files]):
        raise problem
    after = [each for each in record.history if each > number]
    # Were one lost, codes in use since could be given out again.
    manifests = [require_generation(store, each, choose=lambda _: ()).manifest for each in after]
    changed = record.changed(
        history=[*(each for each in record.history if each < number), number],
        withdrawn=sorted({*record.withdrawn, *after} - {number}),
        manifest_xxh3=generation.xxh3,
        changed_ts=now_ts(),
        vocabularies=_longest(record, manifests),
    )
    swap_current(store, current, changed)
    return RollbackReport(
        watermark_ts=generation.manifest.watermark_ts,
        withdrawn=after,
        erasing=[one.number for one in manifests if has_erased(one)],
    )


def _longest(record: CurrentRecord, manifests: list[Manifest]) -> list[StoredVocabulary]:
    """Returns the longest of the vocabularies that are kept and those of generations set aside."""
    found: dict[str, StoredVocabulary] = {}
    for one in (*record.vocabularies, *(one for each in manifests for one in each.vocabularies)):
        if one.file.name not in found or one.values > found[one.file.name].values:
            found[one.file.name] = one
    return list(found.values())
