"""From pointers to the events they name: which stripes to read, and where in them to cut.

The work on a batch is two batched reads with arithmetic on whole arrays between them::

    plan = HistoryPlan(generation, pointers, ...)   # reads directories, chooses stripes
    stripes = plan.read()                           # reads the stripes
    selection = plan.resolve(stripes)               # cuts, checks, gives each its status

An ordinal is an event's place in its user's whole history, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.errors import StoreCorruptError
from thinrow.schema import BUILT_IN, EVENT_GROUP, EVENT_ID, EVENT_TS, VISIBLE_TS
from thinrow.store.digest import digest_fields
from thinrow.store.directory import NEVER_TS
from thinrow.store.hashing import close_digest, event_digests
from thinrow.store.narrow import ranges, starts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from thinrow.schema import Trait
    from thinrow.store.generation import Generation
    from thinrow.store.stripe import StripeSet, TraitValues

UNLIMITED = np.iinfo(np.int64).max // 4
"""Stands for a length without limit; leaves room to add and subtract ordinals."""


class Status(IntEnum):
    """What became of an example; the numbers are those of ``thinrow.v1.Status``."""

    OK = 1
    NOT_READY = 2
    EXPIRED = 3
    DIGEST_MISMATCH = 4
    ERASED = 5
    INVALID = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointers:
    """A batch of pointers with what their examples add; int64 arrays of shape (examples,)."""

    user_ids: NDArray[np.int64]
    start_ts: NDArray[np.int64]
    end_ts: NDArray[np.int64]
    max_lengths: NDArray[np.int64]
    digests: NDArray[np.uint64]
    """uint64; 0 where none was recorded."""
    request_ts: NDArray[np.int64]
    mutable_lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """How much of each history is wanted."""

    sequence_length: int
    """Most events of immutable ++ mutable; 0 for no limit."""
    head: bool = False
    """Keeps the oldest instead of the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a batch of pointers names, after truncation."""

    statuses: NDArray[np.uint8]
    """One Status per example."""
    user: NDArray[np.int64]
    """Index of each example's user in the plan's directories; 0 where it has no events."""
    first: NDArray[np.int64]
    """Ordinal of each example's first event."""
    counts: NDArray[np.int64]
    """Events of each example; 0 where the status is not OK."""
    left: NDArray[np.int64]
    """Events in each pointer's window that the store still has; where the window is longer than
    what is wanted of it, at least that many."""
    digests: NDArray[np.uint64]
    """Digest of each history up to end_ts; 0 where it was not asked for or cannot be known."""


def bisect_left(
    values: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    targets: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each target the leftmost place in the sorted ``values[first:last]`` to insert it."""
    low, high = first.copy(), last.copy()
    while (searching := low < high).any():
        middle = (low + high) >> 1
        less = searching & (values[np.where(searching, middle, 0)] < targets)
        low = np.where(less, middle + 1, low)
        high = np.where(searching & ~less, middle, high)
    return low


def _statuses_without_reading(
    watermarks: NDArray[np.int64], pointers: Pointers
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


class HistoryPlan:
    """A batch between its two reads."""

    def __init__(
        self,
        generation: Generation,
        pointers: Pointers,
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
            record_digests: tells every example's digest, not only those to be checked.

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
        try:
            self.directories = directories = generation.directories(self.user_ids)
        except StoreCorruptError as error:
            raise generation.corrupt(error) from error
        erased = live.copy()
        erased[live] = pointers.end_ts[live] < directories.erased_ts[user_of_live]
        self.statuses[erased] = Status.ERASED

        # Every stripe of every user gets a place on one line: searches become one searchsorted.
        stripe_counts = np.diff(directories.starts)
        self.stripe_user = np.repeat(np.arange(len(self.user_ids)), stripe_counts)
        self.user_places = starts_of(directories.event_counts)
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
            reach = begins[reads] + self.truncation.sequence_length
            reach = np.minimum(reach, self.end_at_least[reads]) - 1
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

    @property
    def events_at_most(self) -> int:
        """Bound on the events that an answer can hold, known before stripes are read."""
        user = self.user[self.live]
        left = np.where(
            self.newest >= 0,
            _picked(self.stripe_ends, self.newest) - self.directories.first_ordinals[user],
            0,
        )
        wanted = self.wanted
        if self.truncation.head and self.truncation.sequence_length:
            wanted = np.minimum(wanted, self.truncation.sequence_length)
        total = np.zeros(len(self.user_ids), dtype=np.int64)
        np.add.at(total, user, np.minimum(left, wanted))
        # Of one user, no more than the whole history travels.
        whole = self.directories.event_counts - self.directories.first_ordinals
        return int(np.minimum(total, whole).sum())

    @property
    def stripe_bytes_at_most(self) -> int:
        """Bound on the bytes of the stripes to read, text aside, known before they are read."""
        lengths = self.stripe_ends - self.directories.stripe_ordinals
        schema = self.generation.schema
        event_bytes = {EVENT_GROUP: 8 * len(BUILT_IN)}
        for group in schema.groups:
            event_bytes[group.number] = sum(
                trait.type.word_dtype.itemsize * trait.size for trait in group.traits
            )
        return sum(
            int(lengths[chosen].sum()) * event_bytes[group]
            for group, chosen in self.stripes_wanted.items()
        )

    def read(self) -> dict[int, StripeSet]:
        """Reads the chosen stripes: by group, in the order of ``stripes_wanted``.

        Raises:
            StoreCorruptError: a file failed its checksum, or stripes and directories disagree.
        """
        directories = self.directories
        within = np.arange(len(self.stripe_user)) - directories.starts[:-1][self.stripe_user]
        numbers = directories.first_stripe[self.stripe_user] + within
        try:
            sets = self.generation.stripes(
                self.user_ids[self.stripe_user], numbers, self.stripes_wanted
            )
            lengths = self.stripe_ends - directories.stripe_ordinals
            for group, stripes in sets.items():
                if (stripes.event_counts != lengths[self.stripes_wanted[group]]).any():
                    raise StoreCorruptError("a stripe's length differs from its directory's")
        except StoreCorruptError as error:
            raise self.generation.corrupt(error) from error
        return sets

    def resolve(self, stripes: Mapping[int, StripeSet]) -> Selection:
        """Finds where each window starts and ends, checks it, and truncates it.

        Raises:
            StoreCorruptError: stripes and directories disagree.
        """
        try:
            return self._resolve(stripes)
        except StoreCorruptError as error:
            raise self.generation.corrupt(error) from error

    def _resolve(self, stripes: Mapping[int, StripeSet]) -> Selection:
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

        left = np.maximum(0, end - begin)
        dropped_ts = directories.dropped_ts[user]
        lost = (dropped_ts != NEVER_TS) & (dropped_ts >= self.start_ts) & (left < self.wanted)
        counts = np.minimum(left, self.wanted)
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
            user=self.user,
            first=self._spread(np.where(ok, first, 0)),
            counts=self._spread(np.where(ok, counts, 0)),
            left=self._spread(left),
            digests=self._spread(digests.view(np.int64)).view(np.uint64),
        )

    def _spread(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """From the examples looked at to all examples; 0 for the others."""
        spread = np.zeros(len(self.pointers), dtype=np.int64)
        spread[self.live] = values
        return spread

    def _visible_ts(self, events: StripeSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """visible_ts of every event in the stripes where windows are cut, checked."""
        rows = np.searchsorted(self.stripes_wanted[EVENT_GROUP], self.cuts)
        counts = events.event_counts[rows]
        decoded = events.words(VISIBLE_TS, rows, np.zeros_like(rows), counts)
        visible = decoded.words.view(np.int64)
        starts = starts_of(counts)
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
        """How many events of each stripe come before its target."""
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
        """Digest sums after so many events of each of the stripes."""
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
            decoded(EVENT_ID),
            [decoded(trait) for trait in schema.key_traits],
        )
        terms = event_digests(ranges(self.directories.stripe_ordinals[cut], longest), fields)
        total = np.zeros(len(terms) + 1, dtype=np.uint64)
        np.cumsum(terms, out=total[1:])
        first = starts_of(longest)[place]
        sums: NDArray[np.uint64] = self.directories.stripe_sums[newest] + total[first + counts]
        return sums - total[first]


def _picked(values: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
    """``values[places]``, and 0 where a place is -1."""
    if not len(values):
        return np.zeros(len(places), dtype=values.dtype)
    return np.where(places >= 0, values[places], values.dtype.type(0))


def digests_at(
    generation: Generation, user_ids: NDArray[np.int64], end_ts: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Digests of the histories up to ``end_ts``; 0 where the store cannot tell any more.

    Args:
        user_ids, end_ts: int64, shape (examples,); no end may lie past the watermark.
    """
    zeros = np.zeros(len(user_ids), dtype=np.int64)
    pointers = Pointers(
        user_ids=user_ids,
        start_ts=np.full(len(user_ids), NEVER_TS),
        end_ts=end_ts,
        max_lengths=zeros,
        digests=zeros.view(np.uint64),
        request_ts=np.full(len(user_ids), np.iinfo(np.int64).max),
        mutable_lengths=zeros + 1,
    )
    only_digests = Truncation(sequence_length=1)
    plan = HistoryPlan(generation, pointers, only_digests, groups=(), record_digests=True)
    return plan.resolve(plan.read()).digests
