"""Order of raw events: duplicates, visible times and ties (docs/concepts/semantics.md).

Frames hold events in canonical form (events.py); ``visible_ts`` is added on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from thinrow.core.runs import offsets_of
from thinrow.errors import UsageError
from thinrow.events.canonical import FINER_NS
from thinrow.schema import TraitType
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from thinrow.schema import Schema, Trait
    from thinrow.store.times import Cadence

__all__ = [
    "CUTS_MAX",
    "Cuts",
    "order_by",
    "ordered",
    "placed",
    "planned_cuts",
    "tied_events",
    "with_late_accepted",
    "without_duplicates",
]

CUTS_MAX = 1_000_000
"""Generations that one run may cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """The generations that one run adds."""

    previous_ts: int | None
    """The last watermark before this run, ms; None for a first build."""
    watermarks: NDArray[np.int64]
    """New watermarks, ms, ascending; the last is the generation to publish."""

    @property
    def watermark_ts(self) -> int:
        """Last watermark of the generations to be built."""
        return int(self.watermarks[-1])


def planned_cuts(
    previous_ts: int | None,
    start_ts: int | None,
    watermark_ts: int,
    cadence: Cadence | None,
    cuts_ts: Sequence[int] = (),
) -> Cuts:
    """Cuts at every point of the cadence's grid or at ``cuts_ts``, and at ``watermark_ts`` at the
    end.

    A first build starts with the first point after ``start_ts``, where its arrivals begin (and
    after 1970, since 0 stands for no lookback in pointers).

    Raises:
        UsageError: There would be more than CUTS_MAX.
    """
    floor_cut = -1 if previous_ts is None else previous_ts
    watermarks = [*(cut_ts for cut_ts in cuts_ts if cut_ts > floor_cut), watermark_ts]
    if len(watermarks) > CUTS_MAX:
        raise UsageError(f"cuts_ts has {len(cuts_ts)} moments; at most {CUTS_MAX} are supported.")
    floor_ts = start_ts if previous_ts is None else previous_ts
    if cadence is not None and floor_ts is not None and floor_ts < watermark_ts:
        first = cadence.at_or_before(max(floor_ts, 0)) + cadence.length_ms
        count = -((first - watermark_ts) // cadence.length_ms) + 1
        if count > CUTS_MAX:  # before they fill the memory
            raise UsageError(
                f"--cadence would cut {count} generations from {readable_time(first)} to "
                f"{readable_time(watermark_ts)}; at most {CUTS_MAX} are supported, so use a longer "
                f"cadence, and check that the times and --watermark are in milliseconds."
            )
        watermarks = [*range(first, watermark_ts, cadence.length_ms), watermark_ts]
    return Cuts(previous_ts=previous_ts, watermarks=np.array(watermarks, dtype=np.int64))


def with_late_accepted(events: pl.DataFrame, previous_ts: int) -> pl.DataFrame:
    """Events that came too late for the last generation, as if they arrived at its watermark."""
    return events.with_columns(pl.col("arrival_ts").clip(lower_bound=previous_ts))


def without_duplicates(events: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Keeps the first arrival of events with the same user and id."""
    with_id = events.select("user_id", "event_id").filter(pl.col("event_id").is_not_null())
    if with_id.n_unique() == len(with_id):
        return events
    events = events.with_row_index("row")
    repeated = events.filter(
        pl.col("event_id").is_not_null() & pl.struct("user_id", "event_id").is_duplicated()
    )
    keys = ["arrival_ts", "event_ts", FINER_NS]
    repeated = repeated[order_by(repeated, keys, schema.traits)]
    later = repeated.filter(~pl.struct("user_id", "event_id").is_first_distinct())
    return events.join(later.select("row"), on="row", how="anti").drop("row")


def placed(events: pl.DataFrame, cuts: Cuts) -> pl.DataFrame:
    """Adds ``visible_ts``: ``event_ts`` clamped into the generation that first holds the event.

    Every ``arrival_ts`` must lie in ``[previous_ts, watermark_ts)``.
    """
    generation = np.searchsorted(cuts.watermarks, events["arrival_ts"].to_numpy(), side="right")
    lowest = np.iinfo(np.int64).min if cuts.previous_ts is None else cuts.previous_ts
    lower = np.concatenate([[lowest], cuts.watermarks[:-1]])
    visible = np.clip(
        events["event_ts"].to_numpy(), lower[generation], cuts.watermarks[generation] - 1
    )
    return events.with_columns(pl.Series("visible_ts", visible, dtype=pl.Int64))


def ordered(events: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """Order by user (as unsigned numbers, as keys sort), then in the order of a history."""
    users = events["user_id"].to_numpy().view(np.uint64)
    visible_ts = events["visible_ts"].to_numpy()
    order = np.lexsort((visible_ts, users))
    users, visible_ts = users[order], visible_ts[order]
    like_previous = np.zeros(len(order), dtype=bool)
    like_previous[1:] = (users[1:] == users[:-1]) & (visible_ts[1:] == visible_ts[:-1])
    # The rest decides only among the few events that agree in these.
    places = np.flatnonzero(like_previous | np.append(like_previous[1:], False))
    if len(places):
        run = np.cumsum(~like_previous)[places]
        tied = order[places]
        others = (schema.event_id, *schema.traits)
        order[places] = tied[order_by(events[tied], ["event_ts", FINER_NS], others, first=[run])]
    # Rows of many pieces are gathered slowly.
    return events.rechunk()[order]


def tied_events(events: pl.DataFrame) -> int:
    """Counts events of an ordered frame whose place only their traits decide."""
    same = np.ones(max(len(events) - 1, 0), dtype=bool)
    for name in ("user_id", "visible_ts", "event_ts", FINER_NS, "event_id"):
        column = events[name]
        same &= column[1:].eq_missing(column[:-1]).to_numpy()
    return int((np.append(same, False) | np.append(False, same))[: len(events)].sum())


def order_by(
    events: pl.DataFrame,
    columns: Sequence[str],
    traits: Sequence[Trait],
    first: Sequence[NDArray[Any]] = (),
) -> NDArray[np.int64]:
    """Row numbers that sort ``events`` by ``first``, int64 columns (null first), then traits."""
    keys = [*first]
    for name in columns:
        keys += _number_keys(events[name])
    for trait in traits:
        keys += _trait_keys(events[trait.name], trait)
    return np.lexsort(keys[::-1]) if keys else np.arange(len(events))


def _number_keys(column: pl.Series) -> list[NDArray[Any]]:
    present = column.is_not_null().to_numpy()
    return [present, column.fill_null(0).to_numpy()]


def _trait_keys(column: pl.Series, trait: Trait) -> list[NDArray[Any]]:
    if trait.length_max:
        return [column.is_not_null().to_numpy(), _list_ranks(column, trait)]
    if trait.type is TraitType.STRING:
        # Python compares bytes as UTF-8 sorts; ranks make them numbers.
        encoded = [b"" if text is None else text.encode() for text in column.to_list()]
        rank = {text: place for place, text in enumerate(sorted(set(encoded)))}
        return [column.is_not_null().to_numpy(), np.array([rank[text] for text in encoded])]
    if trait.size > 1:
        present = column.is_not_null().to_numpy()
        rows = np.zeros((len(column), trait.size), dtype=trait.type.word_dtype)
        rows[present] = column.drop_nulls().to_numpy().reshape(-1, trait.size)
        return [present, *(_total_order(rows) if trait.type.is_float else rows).T]
    present, words = _number_keys(column)
    return [present, _total_order(words) if trait.type.is_float else words]


def _list_ranks(column: pl.Series, trait: Trait) -> NDArray[np.int64]:
    """Ranks of lists, which are in order as their elements are, and then by length; 0 for null."""
    lengths = column.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    elements = column.filter(pl.Series(lengths > 0)).explode()
    # Elements are never null, so that the key that says so is left out.
    _, keys = _trait_keys(elements, replace(trait, length_max=0))
    ranks, starts = keys.tolist(), offsets_of(lengths).tolist()
    lists = [tuple(ranks[first:last]) for first, last in pairwise(starts)]
    place = {elements: number for number, elements in enumerate(sorted(set(lists)))}
    return np.array([place[elements] for elements in lists], np.int64)


def _total_order(bits: NDArray[Any]) -> NDArray[Any]:
    """Integers that sort as the floats of these bits do by IEEE 754 totalOrder."""
    sign = bits.dtype.type(1) << bits.dtype.type(8 * bits.dtype.itemsize - 1)
    return np.where(bits & sign, ~bits, bits | sign)
