"""The generations of a remote store, as `thinrow store list` shows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.errors import StoreCorruptError
from thinrow.remote.current import recovered_current
from thinrow.remote.generation_objects import listed_roots, read_generation
from thinrow.store.generations import StoredGeneration
from thinrow.store.layout import generation_name

if TYPE_CHECKING:
    from thinrow.remote.object_store import ObjectStore

__all__ = ["remote_generations"]

_NEVER_PUBLISHED = (
    "no run published it: one is about to, or was overtaken or killed; thinrow store gc removes it"
)


def remote_generations(store: ObjectStore) -> list[StoredGeneration]:
    """Returns all generations by number, with what is wrong with each; reads root manifests only.

    Raises:
        StoreMissingError: Nothing was published.
        StoreUnavailableError: The object store does not answer.
    """
    current = recovered_current(store)
    record, is_known = current.record, current.is_intact
    found = []
    for number in sorted({*listed_roots(store), *record.history, *record.withdrawn}):
        manifest = problem = None
        try:
            xxh3 = record.manifest_xxh3 if number == record.number else None
            generation = read_generation(store, number, xxh3, choose=lambda _: ())
            if generation is None:
                problem = "its root manifest is gone"
            elif number in record.history or number in record.withdrawn:
                manifest = generation.manifest
            else:
                problem = _NEVER_PUBLISHED
        except StoreCorruptError as error:
            problem = str(error).rstrip(".")
        found.append(
            StoredGeneration(
                number=number,
                folder=Path(generation_name(number)),
                is_current=is_known and number == record.number,
                is_withdrawn=number in record.withdrawn,
                manifest=manifest,
                problem=problem,
            )
        )
    return found
