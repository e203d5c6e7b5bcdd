"""Some users' fat rows, stitched: one history each, and what of it every row shows.

A history is what the newest rows have. An event stands where the last row that has it has it,
behind what only older rows have. What an earlier row had, and a later one lacks where it should
stand, is no part of the history: a disagreement, carried by the rows that had it.

Then each row is compared with the history, event by event: as far as its oldest events are
consecutive events of it, up to some watermark before the request, they are named by a pointer.
The rest is carried along, as it is. So every row comes out as it was, whatever the rows
disagree about; what depends on luck is only how much is carried.

Names of arrays: *flat* ones have an entry for each event of each row, *row* ones for each row, by
user and time; *event* ones for each key, *place* ones for each event of the histories, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from thinrow.compaction.trait_values import digest_fields_of
from thinrow.core.runs import offsets_of, ranges
from thinrow.events.canonical import FINER_NS
from thinrow.events.order import ordered
from thinrow.events.time_columns import TimeSpan
from thinrow.jobs.disagreements import find_disagreements
from thinrow.jobs.facts import HIGHEST_TS, Facts
from thinrow.store.hashing import close_digest, event_digests
from thinrow.store.history import bisect_left

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.ids import IdKind
    from thinrow.schema import Schema
    from thinrow.store.times import Cadence

__all__ = [
    "FIRST_ID",
    "LOWEST_TS",
    "FatRows",
    "Stitched",
]

FIRST_ID = -(1 << 62)
"""Ids of events that have none begin here: far from those that people give."""


def _as_kind(numbers: pl.Expr, kind: IdKind) -> pl.Expr:
    """Converts ids from FIRST_ID on to ids of a kind that are in the same order."""
    if kind == "int64":
        return numbers
    places = numbers - FIRST_ID
    if kind == "uint64":
        return places.cast(pl.UInt64) + pl.lit(3 << 62, pl.UInt64)
    digits = places.cast(pl.String).str.zfill(12)
    first = "ffffffff-ffff-ffff-ffff-" if kind == "uuid" else "thinrow slim "
    return pl.concat_str(pl.lit(first), digits)


LOWEST_TS = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True, kw_only=True)
class FatRows:
    """Fat rows of some users, all that there are of them."""

    user_ids: NDArray[np.int64]
    request_ts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    keys: NDArray[np.uint64]
    """Keys of every event, row after row."""
    events: pl.DataFrame
    """Each key once, with the event in canonical form."""
    ids_given: bool
    """True if the rows have each event's id, or that it has none."""

    def sorted(self) -> tuple[FatRows, NDArray[np.int64]]:
        """Rows by user and time, and the earlier position of each."""
        order = np.lexsort([self.request_ts, self.user_ids])
        lengths = self.lengths[order]
        starts = offsets_of(self.lengths)[:-1]
        rows = FatRows(
            user_ids=self.user_ids[order],
            request_ts=self.request_ts[order],
            lengths=lengths,
            keys=self.keys[ranges(starts[order], lengths)],
            events=self.events,
            ids_given=self.ids_given,
        )
        return rows, order


class Stitched:
    """Result: histories, and of each row a pointer and what it carries."""

    def __init__(
        self,
        rows: FatRows,
        schema: Schema,
        cadence: Cadence,
        last_request_ts: int,
        first_generation: int,
    ) -> None:
        """Stitches rows that are sorted by user and time.

        last_request_ts: no pointer ends later.
        first_generation: number of the earliest generation of all users, whose lower end is open
        and which takes what seems to have arrived before; -1 where it is not known yet.
        """
        self.rows, self.schema, self.cadence = rows, schema, cadence
        self.last_request_ts = last_request_ts
        self.starts = offsets_of(rows.lengths)
        self.row_of = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
        codes = pl.DataFrame({"key": rows.keys}).join(
            rows.events.select("key").with_row_index("code"),
            on="key",
            how="left",
            maintain_order="left",
        )
        self.event = codes["code"].to_numpy()
        self._find_first_and_last()
        self._find_vanished()
        self._order(first_generation)
        self._cut()

    def _find_first_and_last(self) -> None:
        """First and last place of each event; flat indexes, shape (events,)."""
        flat = np.arange(len(self.event))
        self.first = np.zeros(len(self.rows.events), dtype=np.int64)
        self.last = np.zeros_like(self.first)
        self.first[self.event[::-1]] = flat[::-1]
        self.last[self.event] = flat

    def _find_vanished(self) -> None:
        """Events that a later row lacks, though it has older ones that stand before them.

        ``follower`` is the flat index of the first such older event in the last row of each event.
        """
        row = self.row_of[self.last]
        lives_on = np.append(
            np.flatnonzero(self.last[self.event] >= self.starts[1:][self.row_of]), HIGHEST_TS
        )
        self.older = lives_on[np.searchsorted(lives_on, self.starts[row])]
        self.vanished = self.older < self.last

    def _order(self, first_generation: int) -> None:
        """The histories: their events in order, their generations, arrivals and ids."""
        rows = self.rows
        codes = np.flatnonzero(~self.vanished)
        codes = codes[np.argsort(self.last[codes])]
        frame = rows.events[codes].with_columns(code=pl.Series(codes))
        if rows.ids_given:  # an id counts once; the last word stays
            frame = frame.with_row_index("at")
            kept = frame.filter(
                pl.col("event_id").is_null() | pl.struct("user_id", "event_id").is_last_distinct()
            )
            frame = kept.drop("at")
            codes = frame["code"].to_numpy()
            superseded = ~self.vanished
            superseded[codes] = False
            self.vanished |= superseded
        user, event_ts = frame["user_id"].to_numpy(), frame["event_ts"].to_numpy()
        seen_ts = rows.request_ts[self.row_of[self.first[codes]]]
        lower_ts = np.maximum(event_ts, self._lacked_until(codes))
        newer = user[1:] == user[:-1]
        # A history's times descend only where one generation ends and the next begins.
        descents = np.cumsum(np.append(0, newer & (event_ts[1:] < event_ts[:-1])))[: len(user)]
        latest = self.cadence.number(seen_ts - 1)
        bounds = pl.DataFrame(
            {
                "user": user,
                "latest": latest - descents,
                "wanted": self.cadence.number(lower_ts) - descents,
            }
        )
        steps = bounds.select(
            pl.min_horizontal("wanted", pl.col("latest").cum_min(reverse=True).over("user"))
            .cum_max()
            .over("user")
        ).to_series()
        generation = np.maximum(steps.to_numpy() + descents, max(first_generation, 0))
        start_ts = np.where(generation > 0, self.cadence.start_of(generation), LOWEST_TS)
        end_ts = np.minimum(self.cadence.start_of(generation + 1), seen_ts)
        arrival_ts = np.maximum(np.minimum(lower_ts, end_ts - 1), start_ts)
        self.lowest_generation = int(generation.min(initial=HIGHEST_TS))
        earliest_ts = TimeSpan.of(arrival_ts).earliest_plausible_ts
        self.first_generation = HIGHEST_TS
        if earliest_ts is not None:
            self.first_generation = int(self.cadence.number(earliest_ts))
        below = (event_ts < start_ts) & (generation > 0)
        self.lowest_below = int(generation[below].min(initial=HIGHEST_TS))
        clamped = np.minimum(event_ts, self.cadence.start_of(generation + 1) - 1)
        visible_ts = np.where(
            generation == first_generation, clamped, np.maximum(clamped, start_ts)
        )
        self.late = arrival_ts > event_ts
        self.late_in_place = arrival_ts < lower_ts
        self.late_in_place &= event_ts < seen_ts
        frame = frame.with_columns(
            arrival_ts=pl.Series(arrival_ts),
            visible_ts=pl.Series(visible_ts),
            generation=pl.Series(generation),
            seen_ts=pl.Series(seen_ts),
        )
        if not rows.ids_given:
            # Equal times: only an id says which comes first. Others need none.
            ties = pl.struct("user_id", "event_ts").is_duplicated()
            ids = pl.int_range(pl.len()) + FIRST_ID
            frame = frame.with_columns(
                pl.when(ties)
                .then(_as_kind(ids.over("user_id"), self.schema.event_ids))
                .alias("event_id"),
                pl.lit(0, pl.Int32).alias(FINER_NS),
            )
        self.history = ordered(frame, self.schema)
        self.place = np.full(len(rows.events), -1, dtype=np.int64)
        self.place[self.history["code"].to_numpy()] = np.arange(len(self.history))
        self.flat_place = self.place[self.event]

    def _lacked_until(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Time at which a row last lacked each event of the histories at its place."""
        rows = self.rows
        count = len(rows.lengths)
        begins = np.ones(count, dtype=np.bool_)
        begins[1:] = (rows.user_ids[1:] != rows.user_ids[:-1]) | (
            rows.request_ts[1:] != rows.request_ts[:-1]
        )
        moment = np.maximum.accumulate(np.where(begins, np.arange(count), 0))
        before = (moment - 1)[self.row_of[self.first[codes]]]
        same = (before >= 0) & (
            rows.user_ids[before] == rows.user_ids[self.row_of[self.first[codes]]]
        )
        place = np.full(len(rows.events), HIGHEST_TS)
        place[codes] = np.arange(len(codes))
        oldest = np.full(count, -1, dtype=np.int64)
        filled = rows.lengths > 0
        oldest[filled] = place[self.event[self.starts[:-1][filled]]]
        lacked = same & (oldest[before] < np.arange(len(codes)))
        return np.where(lacked, rows.request_ts[before], LOWEST_TS)

    def _cut(self) -> None:
        """Part of each row that a pointer names, from which generation; row arrays."""
        rows, starts = self.rows, self.starts
        generation = self.history["generation"].to_numpy()
        self.low, self.high = self._bounds()
        breaks = np.ones(len(self.event), dtype=np.bool_)
        breaks[1:] = self.flat_place[1:] != self.flat_place[:-1] + 1
        filled = rows.lengths > 0
        breaks[starts[:-1][filled]] = False
        where = np.append(np.flatnonzero(breaks), len(breaks))
        run_end = np.minimum(where[np.searchsorted(where, starts[:-1])], starts[1:])
        oldest = np.full(len(filled), -1, dtype=np.int64)
        oldest[filled] = self.flat_place[starts[:-1][filled]]
        self.oldest = oldest
        run = np.where(oldest >= 0, run_end - starts[:-1], 0)
        # A pointer can end only where a generation does.
        places = np.arange(len(generation))
        ends = np.ones(len(generation), dtype=np.bool_)
        owners = self.history["user_id"].to_numpy()
        ends[1:] = (owners[1:] != owners[:-1]) | (generation[1:] != generation[:-1])
        begun = np.append(np.maximum.accumulate(np.where(ends, places, 0)), 0)
        published = self.cadence.number(np.minimum(rows.request_ts, self.last_request_ts))

        def name() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            """Possible ends of pointers into the published generations, and their watermarks."""
            self.known = bisect_left(generation, self.low, self.high, published)
            reached = np.minimum(np.where(run > 0, oldest + run, self.low), self.known)
            end = np.where(reached < self.high, begun[reached], reached)
            self.named = np.where(run > 0, np.maximum(end - oldest, 0), 0)
            next_generation = np.append(generation, HIGHEST_TS)[end]
            newest = np.where(end < self.high, np.minimum(next_generation, published), published)
            return end, self.cadence.start_of(newest)

        end, end_ts = name()
        # A row cut to few events may show none that a generation has, though the user has some.
        self.all_newer = (self.known == self.low) | (oldest >= self.known)
        # What a row carries beside its pointer arrived in [end_ts, request_ts): never empty, then.
        published -= (end_ts == rows.request_ts) & (self.named > 0) & (self.named < rows.lengths)
        end, end_ts = name()
        pointing = self.named > 0
        whole = np.minimum(rows.request_ts, 0)
        self.end_ts = np.where(pointing, end_ts, whole)
        self.start_ts = np.where(pointing, 0, whole)
        self.end = np.where(pointing, end, self.low)

    def _bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Range of each row's user in the histories."""
        owners = self.history["user_id"].to_numpy().view(np.uint64)
        users = self.rows.user_ids.view(np.uint64)
        low = np.searchsorted(owners, users, side="left")
        return low, np.searchsorted(owners, users, side="right")

    @cached_property
    def digests(self) -> NDArray[np.uint64]:
        """Length of each row's pointer; 0 if it names nothing."""
        history = self.history
        owners = history["user_id"].to_numpy()
        first = np.searchsorted(owners.view(np.uint64), owners.view(np.uint64), side="left")
        fields = digest_fields_of(history, self.schema.event_id, self.schema.key_traits)
        terms = event_digests(np.arange(len(history)) - first, fields)
        sums = np.zeros(len(history) + 1, dtype=np.uint64)
        np.cumsum(terms, out=sums[1:])
        closed = close_digest(sums[self.end] - sums[self.low], self.end - self.low)
        return np.where(self.named > 0, closed, np.uint64(0))

    def carried(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], pl.DataFrame]:
        """Events that some rows carry: the number of each, and the events, with ``arrival_ts``."""
        counts = (self.rows.lengths - self.named)[chosen]
        flat = ranges((self.starts[:-1] + self.named)[chosen], counts)
        event, row = self.event[flat], np.repeat(chosen, counts)
        placed = self.history.select("arrival_ts", "event_id")
        stored = pl.concat(
            [
                placed,
                placed.clear(1),
            ]
        )[np.where(self.place[event] < 0, len(self.history), self.place[event])]
        frame = self.rows.events[event]
        floor_ts = np.where(self.named[row] > 0, self.end_ts[row], LOWEST_TS)
        arrival_ts = stored["arrival_ts"].fill_null(frame["event_ts"]).to_numpy()
        arrival_ts = np.clip(arrival_ts, floor_ts, self.rows.request_ts[row] - 1)
        frame = frame.with_columns(
            arrival_ts=pl.Series(arrival_ts),
            event_id=stored["event_id"].fill_null(frame["event_id"]),
        )
        return counts, frame

    def facts(self) -> Facts:
        """Report on these rows."""
        rows = self.rows
        whole = (self.named == 0) & (rows.lengths > 0)
        disagreeing, counts, examples = find_disagreements(self)
        return Facts(
            rows=len(rows.lengths),
            fat_events=len(self.event),
            events=len(self.history),
            carried_events=int((rows.lengths - self.named).sum()),
            rows_carried_whole=int((whole & ~self.all_newer).sum()),
            rows_all_newer=int((whole & self.all_newer).sum()),
            late=int(self.late.sum()),
            late_in_place=int(self.late_in_place.sum()),
            rows_disagreeing=int(disagreeing.sum()),
            disagreements=counts,
            examples=examples,
            first_generation=self.first_generation,
            lowest_generation=self.lowest_generation,
            earliest_below=self.lowest_below,
        )
