"""The reading of a batch in plain numpy: what the native code is held equal to.

Slower, and simpler to follow than native/plan.cpp and native/answer.cpp: the same steps as
arithmetic on whole arrays. test_twin.py compares the two on random worlds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from support.numpy_stripes import StripeSet, by_width
from thinrow.access.projection import wire_type
from thinrow.core.runs import offsets_of, ranges
from thinrow.core.status import Status
from thinrow.core.traits import length_bytes
from thinrow.errors import StoreCorruptError
from thinrow.schema import EVENT_GROUP, EVENT_TS, VISIBLE_TS, TraitType
from thinrow.store.digest import digest_fields
from thinrow.store.directory import NEVER_TS
from thinrow.store.hashing import close_digest, event_digests
from thinrow.store.history import PointerBatch, Selection, Truncation, bisect_left
from thinrow.store.keys import pack_keys
from thinrow.store.narrow import narrow
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from thinrow.access.projection import ResolvedProjection
    from thinrow.schema import Trait
    from thinrow.store.generation import Generation
    from thinrow.store.stripe import TraitValues

UNLIMITED = np.iinfo(np.int64).max // 4
"""Stands for a length without limit; leaves room to add and subtract ordinals."""


def values_of(generation: Generation, keys: list[bytes]) -> list[bytes | None]:
    return generation.values(b"".join(keys))


def _statuses_without_reading(
    watermarks: NDArray[np.int64], pointers: PointerBatch
) -> NDArray[np.uint8]:
    statuses = np.full(len(pointers), Status.OK, dtype=np.uint8)
    empty = pointers.start_ts == pointers.end_ts
    place = np.searchsorted(watermarks, pointers.end_ts, side="left")
    past = place == len(watermarks)
    statuses[~empty & past] = Status.NOT_READY
    # Events before end_ts arrived before the watermark that closes end_ts's generation; only when
    # the request came no earlier is it certain that nothing in the answer is from its future.
    closed_ts = watermarks[np.where(past, -1, place)]
    from_future = ~empty & ~past & (closed_ts > pointers.request_ts)
    statuses[
        (pointers.start_ts > pointers.end_ts)
        | (pointers.max_lengths < 0)
        | (pointers.mutable_lengths < 0)
        | (pointers.end_ts > pointers.request_ts)
        | from_future
    ] = Status.INVALID
    return statuses


class NumpyPlan:
    """A batch between its two reads."""

    def __init__(
        self,
        generation: Generation,
        pointers: PointerBatch,
        truncation: Truncation,
        groups: Iterable[int],
        *,
        record_digests: bool = False,
    ) -> None:
        """Reads the directories and chooses the stripes that the batch needs.

        Args:
            generation: where to read.
            pointers: what to read, of whom.
            truncation: how much of each.
            groups: numbers of the stored groups whose stripes are wanted.
            record_digests: shows every example's digest, not only those to be checked.

        Raises:
            StoreCorruptError: a directory contradicts itself, or a file failed its checksum.
        """
        self.generation = generation
        self.pointers = pointers
        self.truncation = truncation
        self.statuses = _statuses_without_reading(generation.watermarks, pointers)
        # An empty window has no events to read, but its user may have been erased.
        live = self.statuses == Status.OK
        self.user_ids, user_of_live = np.unique(pointers.user_ids[live], return_inverse=True)
        self.user = np.zeros(len(pointers), dtype=np.int64)
        self.user[live] = user_of_live
        self.directories = directories = generation.directories(self.user_ids)
        erased = live.copy()
        erased[live] = pointers.end_ts[live] < directories.erased_ts[user_of_live]
        self.statuses[erased] = Status.ERASED

        # Every stripe of every user gets a place on one line: searches become one searchsorted.
        stripe_counts = np.diff(directories.starts)
        self.stripe_user = np.repeat(np.arange(len(self.user_ids)), stripe_counts)
        self.user_places = offsets_of(directories.event_counts)
        self.stripe_places = directories.stripe_ordinals + self.user_places[:-1][self.stripe_user]
        self.stripe_ends = directories.stripe_ends

        # From here on arrays are of the examples that have a window to look for.
        self.live = np.flatnonzero(live & ~erased & (pointers.start_ts < pointers.end_ts))
        self._bound_windows()
        self.stripes_wanted = self._choose_stripes(frozenset(groups), record_digests)

    def _bound_windows(self) -> None:
        pointers, directories, user = self.pointers, self.directories, self.user[self.live]
        starts = pointers.start_ts[self.live]
        self.start_ts = np.where(starts == 0, NEVER_TS, starts)
        self.end_ts = pointers.end_ts[self.live]
        max_lengths = pointers.max_lengths[self.live]
        self.named = np.where(max_lengths > 0, max_lengths, UNLIMITED)
        self.wanted = self.named
        length = self.truncation.sequence_length
        if length > 0 and not self.truncation.head:
            room = np.maximum(0, length - pointers.mutable_lengths[self.live])
            self.wanted = np.minimum(self.named, room)
        low, high = directories.starts[user], directories.starts[user + 1]
        # The newest stripe of each window and the one in which it starts; -1 where the window
        # ends, or starts, before every event that is left.
        newest = bisect_left(directories.stripe_ts, low, high, self.end_ts) - 1
        oldest = bisect_left(directories.stripe_ts, low, high, self.start_ts) - 1
        self.newest = np.where(newest < low, -1, newest)
        self.oldest = np.where(oldest < low, -1, oldest)
        # The window's end is somewhere in `newest`: at least after its first event.
        self.end_at_least = _picked(directories.stripe_ordinals, self.newest) + 1
        short = _picked(self.stripe_ends, self.oldest) <= self.end_at_least - self.wanted
        self.oldest[(self.newest < 0) | short] = -1

    def _choose_stripes(
        self, groups: frozenset[int], record_digests: bool
    ) -> dict[int, NDArray[np.int64]]:
        directories, user = self.directories, self.user[self.live]
        stripes = len(directories.stripe_ts)
        has = self.newest >= 0
        least = np.maximum(self.end_at_least - self.wanted, directories.first_ordinals[user])
        least = np.maximum(least, _picked(directories.stripe_ordinals, self.oldest))
        reads = has & (self.wanted > 0)
        first = self._stripe_at(user[reads], least[reads])
        last = self.newest[reads]
        if self.truncation.head and self.truncation.sequence_length:
            # Without a limit of its own the pointer's first event is at most one stripe on.
            begins = np.where(
                self.oldest >= 0,
                _picked(self.stripe_ends, self.oldest),
                directories.first_ordinals[user],
            )
            # The sum of a beginning and a length near 2^63 would wrap round.
            room = self.end_at_least[reads] - begins[reads]
            reach = begins[reads] + np.minimum(self.truncation.sequence_length, room) - 1
            enough = np.where(
                self.named[reads] == UNLIMITED, self._stripe_at(user[reads], reach), last
            )
            last = np.maximum(first, np.minimum(last, enough))
        marks = np.zeros(stripes + 1, dtype=np.int64)
        np.add.at(marks, first, 1)
        np.add.at(marks, last + 1, -1)
        needed = np.cumsum(marks[:-1]) > 0

        cuts = np.zeros(stripes, dtype=np.bool_)
        cuts[self.newest[has]] = True
        cuts[self.oldest[self.oldest >= 0]] = True
        self.cuts = np.flatnonzero(cuts)
        self.checked = has & (record_digests | (self.pointers.digests[self.live] != 0))
        partly = np.zeros(stripes, dtype=np.bool_)
        partly[self.newest[self.checked]] = True
        key_groups = {
            self.generation.schema.group_of[trait.name]
            for trait in self.generation.schema.key_traits
        }
        chosen = dict.fromkeys(groups, needed)
        for group in key_groups:
            chosen[group] = chosen.get(group, False) | partly
        chosen[EVENT_GROUP] = chosen.get(EVENT_GROUP, False) | cuts
        return {group: np.flatnonzero(mask) for group, mask in sorted(chosen.items())}

    def _stripe_at(self, user: NDArray[np.int64], ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        places = self.user_places[user] + ordinals
        return np.searchsorted(self.stripe_places, places, side="right") - 1

    def read(self) -> dict[int, StripeSet]:
        """Reads the chosen stripes: by group, in the order of ``stripes_wanted``."""
        directories, owners = self.directories, self.user_ids[self.stripe_user]
        within = np.arange(len(self.stripe_user)) - directories.starts[:-1][self.stripe_user]
        numbers = directories.first_stripe[self.stripe_user] + within
        sets = {}
        for group, chosen in self.stripes_wanted.items():
            values = values_of(self.generation, pack_keys(owners[chosen], group, numbers[chosen]))
            sets[group] = StripeSet([value for value in values if value is not None])
        return sets

    def resolve(self, stripes: Mapping[int, StripeSet]) -> Selection:
        """Finds where each window starts and ends, checks it, and truncates it."""
        directories, user = self.directories, self.user[self.live]
        first_left = directories.first_ordinals[user]
        visible, visible_starts = self._visible_ts(stripes[EVENT_GROUP])

        has = np.flatnonzero(self.newest >= 0)
        ends = self._cut(visible, visible_starts, self.newest[has], self.end_ts[has])
        end = first_left.copy()
        end[has] = ends + directories.stripe_ordinals[self.newest[has]]
        late = np.flatnonzero(self.oldest >= 0)
        begins = self._cut(visible, visible_starts, self.oldest[late], self.start_ts[late])
        begin = first_left.copy()
        begin[late] = begins + directories.stripe_ordinals[self.oldest[late]]
        # The guard against the future: it looks at the events themselves, not at how they were
        # found.
        newest_at = visible_starts[np.searchsorted(self.cuts, self.newest[has])] + ends - 1
        if (visible[newest_at] >= self.end_ts[has]).any():
            raise StoreCorruptError("an event is not where its directory says")

        available_counts = np.maximum(0, end - begin)
        dropped_ts = directories.dropped_ts[user]
        lost = (
            (dropped_ts != NEVER_TS)
            & (dropped_ts >= self.start_ts)
            & (available_counts < self.wanted)
        )
        counts = np.minimum(available_counts, self.wanted)
        first = end - counts
        length = self.truncation.sequence_length
        if self.truncation.head and length > 0:
            counts = np.minimum(counts, length)

        digests = self._digests(stripes, end)
        recorded = self.pointers.digests[self.live]
        differs = (recorded != 0) & (digests != 0) & (digests != recorded)
        statuses = self.statuses.copy()
        statuses[self.live[differs]] = Status.DIGEST_MISMATCH
        statuses[self.live[lost]] = Status.EXPIRED
        ok = statuses[self.live] == Status.OK
        return Selection(
            statuses=statuses,
            first=self._spread(np.where(ok, first, 0)),
            counts=self._spread(np.where(ok, counts, 0)),
            available_counts=self._spread(available_counts),
            digests=self._spread(digests.view(np.int64)).view(np.uint64),
        )

    def _spread(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Spreads values of some examples to all examples; 0 for the others."""
        spread = np.zeros(len(self.pointers), dtype=np.int64)
        spread[self.live] = values
        return spread

    def _visible_ts(self, events: StripeSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """visible_ts of every event in the stripes where windows are cut, checked."""
        rows = np.searchsorted(self.stripes_wanted[EVENT_GROUP], self.cuts)
        counts = events.event_counts[rows]
        decoded = events.words(VISIBLE_TS, rows, np.zeros_like(rows), counts)
        visible = decoded.words.view(np.int64)
        starts = offsets_of(counts)
        ascends = np.ones(len(visible), dtype=np.bool_)
        ascends[1:] = visible[1:] >= visible[:-1]
        ascends[starts[:-1]] = visible[starts[:-1]] == self.directories.stripe_ts[self.cuts]
        if not ascends.all():
            raise StoreCorruptError("a stripe's times differ from its directory's")
        return visible, starts

    def _cut(
        self,
        visible: NDArray[np.int64],
        starts: NDArray[np.int64],
        stripes: NDArray[np.int64],
        targets: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Number of events of each stripe before its target."""
        index = np.searchsorted(self.cuts, stripes)
        return bisect_left(visible, starts[index], starts[index + 1], targets) - starts[index]

    def _digests(
        self, stripes: Mapping[int, StripeSet], end: NDArray[np.int64]
    ) -> NDArray[np.uint64]:
        """Digests of the histories up to ``end``, where they are to be checked; else 0."""
        directories, user = self.directories, self.user[self.live]
        # Up to the end of a stripe the directories know the sum; inside one it is counted out.
        following = np.where(self.newest >= 0, self.newest + 1, directories.starts[user])
        in_stripes = following < directories.starts[user + 1]
        sums = np.where(
            in_stripes,
            _picked(directories.stripe_sums, np.where(in_stripes, following, -1)),
            directories.digest_sums[user],
        )
        inside = self.checked & (end < _picked(self.stripe_ends, self.newest))
        if inside.any():
            newest = self.newest[inside]
            counts = end[inside] - directories.stripe_ordinals[newest]
            sums[inside] = self._sums_within(stripes, newest, counts)
        known = self.checked | ((self.newest < 0) & (directories.dropped_ts[user] < self.end_ts))
        return np.where(known, close_digest(sums, end), np.uint64(0))

    def _sums_within(
        self,
        stripes: Mapping[int, StripeSet],
        newest: NDArray[np.int64],
        counts: NDArray[np.int64],
    ) -> NDArray[np.uint64]:
        """Digest sums after that many events of each of the stripes."""
        schema = self.generation.schema
        cut, place = np.unique(newest, return_inverse=True)
        longest = np.zeros(len(cut), dtype=np.int64)
        np.maximum.at(longest, place, counts)

        def decoded(trait: Trait) -> TraitValues:
            group = schema.group_of[trait.name]
            rows = np.searchsorted(self.stripes_wanted[group], cut)
            return stripes[group].words(trait, rows, np.zeros_like(rows), longest)

        fields = digest_fields(
            decoded(VISIBLE_TS),
            decoded(EVENT_TS),
            decoded(schema.event_id),
            [decoded(trait) for trait in schema.key_traits],
        )
        terms = event_digests(ranges(self.directories.stripe_ordinals[cut], longest), fields)
        total = np.zeros(len(terms) + 1, dtype=np.uint64)
        np.cumsum(terms, out=total[1:])
        first = offsets_of(longest)[place]
        sums: NDArray[np.uint64] = self.directories.stripe_sums[newest] + total[first + counts]
        return sums - total[first]


def _picked(values: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
    """``values[places]``, and 0 where a place is -1."""
    if not len(values):
        return np.zeros(len(places), dtype=values.dtype)
    return np.where(places >= 0, values[places], values.dtype.type(0))


@dataclass(frozen=True, slots=True)
class Run:
    """The events of an answer, cut into blocks of consecutive events of one stripe."""

    view_starts: NDArray[np.int64]
    """Position of each example's first event in the run, shape (examples,)."""
    stripes: NDArray[np.int64]
    """The plan's stripe that each block comes from, shape (blocks,)."""
    first: NDArray[np.int64]
    """First event of each block in its stripe."""
    counts: NDArray[np.int64]
    """Events of each block."""


def lay_out(plan: NumpyPlan, selection: Selection) -> Run:
    """Joins what examples share: overlapping slices of a history become one segment."""
    view_starts = np.zeros(len(selection.counts), dtype=np.int64)
    examples = np.flatnonzero(selection.counts)
    if not examples.size:
        nothing = np.empty(0, dtype=np.int64)
        return Run(view_starts, nothing, nothing, nothing)
    begin = plan.user_places[plan.user[examples]] + selection.first[examples]
    end = begin + selection.counts[examples]
    order = np.argsort(begin, kind="stable")
    reach = np.maximum.accumulate(end[order])
    opens = np.append(True, begin[order][1:] > reach[:-1])
    segment = np.empty(len(order), dtype=np.int64)
    segment[order] = np.cumsum(opens) - 1
    # Segments stand in the order in which examples first look at them: where nothing is shared
    # the run is then the batch itself, and the client has nothing to gather.
    _, seen_first = np.unique(segment, return_index=True)
    rank = np.argsort(seen_first, kind="stable")
    segment = np.argsort(rank, kind="stable")[segment]
    segment_begin = begin[order][opens][rank]
    segment_end = reach[np.append(np.flatnonzero(opens)[1:], len(order)) - 1][rank]
    run_starts = offsets_of(segment_end - segment_begin)
    view_starts[examples] = begin - segment_begin[segment] + run_starts[segment]

    first_stripe = np.searchsorted(plan.stripe_places, segment_begin, side="right") - 1
    last_stripe = np.searchsorted(plan.stripe_places, segment_end - 1, side="right") - 1
    block_counts = last_stripe - first_stripe + 1
    stripes = ranges(first_stripe, block_counts)
    places = plan.stripe_places[stripes]
    lengths = plan.stripe_ends[stripes] - plan.directories.stripe_ordinals[stripes]
    first = np.maximum(np.repeat(segment_begin, block_counts) - places, 0)
    last = np.minimum(np.repeat(segment_end, block_counts) - places, lengths)
    return Run(view_starts, stripes, first, last - first)


def assemble(
    plan: NumpyPlan,
    selection: Selection,
    stripes: Mapping[int, StripeSet],
    projection: ResolvedProjection,
) -> wire.MaterializeResponse:
    """Builds the answer."""
    run = lay_out(plan, selection)
    head = projection.truncation.head
    response = wire.MaterializeResponse(
        generation=plan.generation.number,
        watermark_ts=plan.generation.watermark_ts,
        statuses=selection.statuses.tolist(),
        view_starts=run.view_starts.tolist(),
        view_lengths=selection.counts.tolist(),
        block_lengths=run.counts.tolist(),
        sequence_length=projection.truncation.sequence_length,
        truncation=wire.TRUNCATION_HEAD if head else wire.TRUNCATION_NEWEST,
    )
    for trait in projection.traits:
        group = plan.generation.schema.group_of[trait.name]
        rows = np.searchsorted(plan.stripes_wanted[group], run.stripes)
        _add_column(response, stripes[group], trait, rows, run)
    return response


def _add_column(
    response: wire.MaterializeResponse,
    stripes: StripeSet,
    trait: Trait,
    rows: NDArray[np.int64],
    run: Run,
) -> None:
    column = response.columns.add(
        trait=trait.name,
        type=wire_type(trait),
        vector_size=0 if trait.length_max else trait.size,
        list_length_max=trait.length_max,
        nullable=trait.nullable,
    )
    where = (rows, run.first, run.counts)
    if trait.type in (TraitType.CATEGORICAL, TraitType.STRING):
        values = stripes.words(trait, *where)
        present, lengths = values.present, values.lengths
        counts = value_counts(run, present if lengths is None else lengths)
        blocks, buffer = narrow(values.words, counts)
        if values.texts is not None:
            column.strings.extend(values.texts.to_pylist())
    else:
        slices = stripes.slices(trait, *where)
        present, blocks, buffer = slices.present, slices.blocks, stripes.buffer
        lengths = slices.lengths
    if lengths is not None:
        column.list_lengths = lengths.astype(f"<u{length_bytes(trait.length_max)}").tobytes()
    column.bases.extend(blocks.bases.tolist())
    column.widths = blocks.widths.tobytes()
    column.data = by_width(buffer, blocks)
    if trait.nullable:
        if present is None:
            present = np.ones(int(run.counts.sum()), dtype=np.bool_)
        column.present = np.packbits(present, bitorder="little").tobytes()
    elif isinstance(trait.default, str):
        column.default_string = trait.default
    elif trait.default is not None:
        column.default_word = trait.default_word


def value_counts(run: Run, counts: NDArray[Any] | None) -> NDArray[np.int64]:
    """Values of each block, from those of each event; None: each has one."""
    if counts is None:
        return run.counts
    before = offsets_of(counts.view(np.int8) if counts.dtype == np.bool_ else counts)
    return np.diff(before[offsets_of(run.counts)])
