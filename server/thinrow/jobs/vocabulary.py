"""Export of the codes that a store has given to the values of a trait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from thinrow.errors import UsageError
from thinrow.store.generation import Generation
from thinrow.store.layout import NEW
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from pathlib import Path

    from thinrow.store.vocabulary import Vocabulary

__all__ = ["export_vocabulary"]


def export_vocabulary(store: Path, trait: str, path: Path) -> Vocabulary:
    """Writes the values of a trait and their codes, columns ``value`` and ``code``, as Parquet.

    Raises:
        UsageError: The trait has no vocabulary.
        StoreError: The store cannot be read, or the file cannot be written.
    """
    with Generation.open_current(store) as generation:
        found = generation.schema.by_name.get(trait)
        if found is None or found.coded is None:
            names = ", ".join(each.name for each in generation.schema.coded_traits) or "none"
            raise UsageError(
                f"{trait!r} is no trait with a vocabulary; {store} has these: {names}."
            )
        vocabulary = generation.vocabulary(found)
    new = path.with_name(path.name + NEW)
    try:
        pq.write_table(vocabulary.table, new, compression="zstd")
        new.replace(path)
    except OSError as error:
        raise storage_error(error, path) from error
    return vocabulary
