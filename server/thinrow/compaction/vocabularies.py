"""Vocabularies of the next generation: those of the store, and the values that a run brings.

The values of a compaction are those of its events that arrived before its watermark, and not before
the last one unless late events are accepted; those of users whom it erases are left out. The values
of a fill are those of its rows. New ones get codes in ascending order: texts as their UTF-8 bytes
are, integers as numbers. Which events of a file stand first, and the number of shards, thus have no
influence on a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
from thinrow.core.codes import UNKNOWN_CODE
from thinrow.core.files.arrow import one_array
from thinrow.core.files.permissions import make_folder
from thinrow.errors import InputError, StoreCorruptError
from thinrow.store.layout import VOCABULARIES
from thinrow.store.manifest import StoredVocabulary
from thinrow.store.shard import fsync, link_or_copy
from thinrow.store.vocabulary import Vocabulary, kept_vocabulary, vocabulary_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from thinrow.schema import Schema, Trait
    from thinrow.store.generation import Generation

__all__ = [
    "PENDING_MAX",
    "NewValues",
    "RunValues",
    "VocabularyGrowth",
    "coded",
    "growths",
    "known_vocabularies",
    "write_vocabularies",
]

PENDING_MAX = 1 << 20
"""Limit on the values of a trait that wait for their duplicates to be dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyGrowth:
    """The vocabulary of one trait after a run."""

    trait: str
    values: int
    added: int
    """Values that the run brought, or that generations which were rolled back had."""
    values_max: int
    """Limit of the schema."""
    codes_end: int
    """All codes are below: the number of rows of an embedding."""


class NewValues:
    """Collects values of traits, and numbers those that their vocabularies do not have yet.

    Args:
        traits: Traits with a vocabulary.
        known: The vocabularies so far, by trait.
    """

    def __init__(self, traits: Sequence[Trait], known: Mapping[str, Vocabulary]) -> None:
        self._traits, self._known = traits, known
        self._new: dict[str, list[pl.Series]] = {trait.name: [] for trait in traits}

    def add(self, table: pa.Table) -> None:
        """Collects the values of a table, which has a column for each trait.

        Raises:
            InputError: A vocabulary has more values than the schema allows.
        """
        for trait in self._traits:
            values = one_array(table.column(trait.name)).unique().drop_null()
            values = values.filter(pa.array(self._known[trait.name].places(values) < 0))
            if not len(values):
                continue
            parts = self._new[trait.name]
            parts.append(pl.Series(pl.from_arrow(values)))
            if sum(map(len, parts)) > PENDING_MAX:
                self._new[trait.name] = [self._distinct(trait)]

    def found(self) -> dict[str, pa.Array]:
        """Returns the values that are not known yet, each once, by trait."""
        return {
            trait.name: self._distinct(trait).to_arrow().cast(self._known[trait.name].values.type)
            for trait in self._traits
            if self._new[trait.name]
        }

    def add_found(self, trait: str, values: pa.Array) -> None:
        """Collects values that other tasks found."""
        values = values.filter(pa.array(self._known[trait].places(values) < 0))
        if len(values):
            self._new[trait].append(pl.Series(pl.from_arrow(values)))

    def vocabularies(self) -> dict[str, Vocabulary]:
        """Returns the vocabularies with the values collected, by trait.

        Raises:
            InputError: One has more values than the schema allows.
        """
        found = {}
        for trait in self._traits:
            known = self._known[trait.name]
            new = self._distinct(trait).sort()
            found[trait.name] = known
            if len(new):
                found[trait.name] = known.extended(new.to_arrow().cast(known.values.type))
        return found

    def _distinct(self, trait: Trait) -> pl.Series:
        """Returns the new values of a trait, each once."""
        known, parts = self._known[trait.name], self._new[trait.name]
        new = pl.concat(parts).unique() if parts else pl.Series([])
        if len(known) + len(new) > trait.values_max:
            raise InputError(
                f"The vocabulary of {trait.name} would have {len(known) + len(new):,} values or "
                f"more, and the schema says values_max = {trait.values_max}; give it a larger "
                f"values_max, or a new trait codes = {{ buckets = N }}."
            )
        return new


class RunValues:
    """Collects the values of a compaction, and numbers those that the store does not have yet.

    Args:
        schema: The next generation's schema.
        known: Vocabularies that the store has had, by trait.
        since_ts: Arrivals before are late, and skipped; None where none are.
        watermark_ts: Arrivals from here on are left for later.
        erased: Users whom the run erases.
    """

    def __init__(
        self,
        schema: Schema,
        known: Mapping[str, Vocabulary],
        *,
        since_ts: int | None,
        watermark_ts: int,
        erased: NDArray[np.int64],
    ) -> None:
        self._names = [trait.name for trait in schema.coded_traits]
        self._since_ts, self._watermark_ts, self._erased = since_ts, watermark_ts, erased
        self.values = NewValues(schema.coded_traits, known)
        """The values so far."""

    def add(self, events: pa.Table) -> None:
        """Collects the values of some events in canonical form.

        Raises:
            InputError: A vocabulary has more values than the schema allows.
        """
        if not self._names:
            return
        arrival_ts = events.column("arrival_ts").to_numpy()
        counts = arrival_ts < self._watermark_ts
        if self._since_ts is not None:
            counts &= arrival_ts >= self._since_ts
        if len(self._erased):
            counts &= ~np.isin(events.column("user_id").to_numpy(), self._erased)
        if not counts.all():
            events = events.select(self._names).filter(pa.array(counts))
        self.values.add(events)


def known_vocabularies(
    store: Path, schema: Schema, previous: Generation | None
) -> dict[str, Vocabulary]:
    """Returns the longest vocabulary that a generation of the store has had, by trait.

    Raises:
        StoreCorruptError: A vocabulary is damaged, or the previous generation's is no part of it.
        InputError: One has more values than the schema allows.
    """
    found = {trait.name: _known(store, trait, previous) for trait in schema.coded_traits}
    for trait in schema.coded_traits:
        if len(found[trait.name]) > trait.values_max:
            raise InputError(
                f"The vocabulary of {trait.name} has {len(found[trait.name]):,} values, and the "
                f"schema says values_max = {trait.values_max}; give it a larger values_max."
            )
    return found


def _known(store: Path, trait: Trait, previous: Generation | None) -> Vocabulary:
    kept = kept_vocabulary(store, trait)
    if previous is None:
        return kept
    before = previous.schema.by_name.get(trait.name)
    if before is None or before.number != trait.number:
        return kept
    last = previous.vocabulary(before)
    shorter, longer = sorted((kept, last), key=len)
    if not longer.starts_with(shorter):
        raise StoreCorruptError(
            f"{store / VOCABULARIES / vocabulary_name(trait)} is of another store; restore it from "
            f"a replica."
        )
    return longer


def write_vocabularies(
    building: Path,
    schema: Schema,
    vocabularies: Mapping[str, Vocabulary],
    previous: Generation | None,
) -> list[StoredVocabulary]:
    """Writes the vocabularies of a generation; those without new values are shared."""
    if not vocabularies:
        return []
    folder = building / VOCABULARIES
    make_folder(folder)
    before = {one.trait: one for one in previous.manifest.vocabularies} if previous else {}
    stored = []
    for trait in schema.coded_traits:
        vocabulary, path = vocabularies[trait.name], folder / vocabulary_name(trait)
        same = before.get(trait.number)
        if same is not None and previous is not None and same.values == len(vocabulary):
            link_or_copy(previous.folder / VOCABULARIES / same.file.name, path)
            file = same.file
        else:
            file = vocabulary.write(path)
        stored.append(StoredVocabulary(trait=trait.number, values=len(vocabulary), file=file))
    fsync(folder)
    return stored


def growths(
    schema: Schema, vocabularies: Mapping[str, Vocabulary], previous: Generation | None
) -> list[VocabularyGrowth]:
    """Returns how the vocabularies of a store grew."""
    before = {one.trait: one.values for one in previous.manifest.vocabularies} if previous else {}
    return [
        VocabularyGrowth(
            trait=trait.name,
            values=len(vocabularies[trait.name]),
            added=len(vocabularies[trait.name]) - before.get(trait.number, 0),
            values_max=trait.values_max,
            codes_end=vocabularies[trait.name].codes_end,
        )
        for trait in schema.coded_traits
    ]


def coded(
    events: pl.DataFrame, traits: Sequence[Trait], vocabularies: Mapping[str, Vocabulary]
) -> pl.DataFrame:
    """Returns events with codes where traits have a vocabulary, which must have every value."""
    columns = []
    for trait in traits:
        vocabulary = vocabularies[trait.name]
        values = events[trait.name].to_arrow().cast(vocabulary.values.type)
        codes = vocabulary.codes(values)
        assert not (codes == UNKNOWN_CODE).any(), trait.name
        columns.append(pl.Series(trait.name, codes, dtype=pl.Int32))
    return events.with_columns(columns)
