"""Conversion between canonical columns of events and the words of stripes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.runs import offsets_of
from thinrow.events.canonical import canonical_type
from thinrow.schema import EVENT_TS, VISIBLE_TS, TraitType
from thinrow.store.digest import digest_fields
from thinrow.store.stripe import TraitValues

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from thinrow.schema import Trait

__all__ = ["digest_fields_of", "to_series", "to_values"]


def digest_fields_of(
    events: pl.DataFrame, event_id: Trait, traits: Iterable[Trait]
) -> list[NDArray[np.uint64]]:
    """Returns the fields of events that enter the digest; ``traits`` in the digest's order."""
    return digest_fields(
        to_values(events["visible_ts"], VISIBLE_TS),
        to_values(events["event_ts"], EVENT_TS),
        to_values(events["event_id"], event_id),
        [to_values(events[trait.name], trait) for trait in traits],
    )


def to_values(column: pl.Series, trait: Trait) -> TraitValues:
    """Converts a canonical column to words."""
    present = column.is_not_null().to_numpy() if trait.nullable else None
    lengths = None
    if trait.length_max:
        lengths = column.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        # Empty lists, unlike null ones, explode to a null.
        column = column.filter(pl.Series(lengths > 0)).explode()
    elif trait.nullable:
        column = column.drop_nulls()
    if trait.type is TraitType.STRING:
        encoded = column.to_arrow().cast(pa.large_string()).dictionary_encode()
        # Sorted, so that a stripe's bytes do not depend on its neighbours.
        order = pc.sort_indices(encoded.dictionary)
        rank = np.empty(len(order), dtype=np.uint64)
        rank[order.to_numpy()] = np.arange(len(order), dtype=np.uint64)
        words = rank[encoded.indices.to_numpy()]
        return TraitValues(trait, words, present, encoded.dictionary.take(order), lengths)
    assert not column.null_count()
    numbers = column.to_numpy().reshape(-1)
    wide = numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.uint64)
    return TraitValues(trait, wide.view(np.uint64), present, lengths=lengths)


def to_series(values: TraitValues, events: int) -> pl.Series:
    """Converts words to a canonical column of ``events`` events; the inverse of `to_values`."""
    trait, kind = values.trait, canonical_type(values.trait)
    if values.texts is None:
        flat = pa.array(values.words.astype(trait.type.word_dtype))
    else:
        flat = values.texts.take(pa.array(values.words))
    items = pa.FixedSizeListArray.from_arrays(flat, trait.size) if trait.size > 1 else flat
    if values.lengths is not None:
        null = None if values.present is None else pa.array(~values.present)
        items = pa.LargeListArray.from_arrays(offsets_of(values.lengths), flat, mask=null)
    elif values.present is not None:
        place = np.cumsum(values.present) - 1
        items = items.take(pa.array(place, mask=~values.present))
    assert len(items) == events
    series = pl.from_arrow(items.cast(kind))
    assert isinstance(series, pl.Series)
    return series
