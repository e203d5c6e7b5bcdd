"""The layout of fat rows: the order in which their lists stand, and padding around them.

Slim and verify compare events by their place in a list, so lists that are padded, or stand newest
first, would give other sequences than serving saw. A layout that users name is converted exactly;
one that they do not name is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from thinrow.core.runs import offsets_of, ranges
from thinrow.errors import InputError
from thinrow.jobs.blank import blank_values, equal_values
from thinrow.jobs.config import FatLayoutConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from thinrow.core.files.paths import AnyFile

__all__ = [
    "EPOCH_DAY_MS",
    "EVENT_TS",
    "YEAR_1990_MS",
    "YEAR_2100_MS",
    "FatLayout",
    "LayoutTally",
    "Lists",
]

EVENT_TS = "event_ts"
EPOCH_DAY_MS = 86_400_000
YEAR_1990_MS = 631_152_000_000
YEAR_2100_MS = 4_102_444_800_000
"""Beside requests since 1990, events of the epoch's first day and before, or since 2100, are the
fillers of a padded list rather than events."""


@dataclass(frozen=True, slots=True)
class Lists:
    """The list columns of some fat rows, flat and of one length for each row."""

    columns: dict[str, pa.Array]
    """Columns by name; each of shape (events,), row after row."""
    lengths: NDArray[np.int64]
    """Events of each row; shape (rows,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FatLayout(FatLayoutConfig):
    """Reads the lists of fat rows that have one order and padding."""

    @staticmethod
    def of(config: FatLayoutConfig) -> FatLayout:
        """Returns the layout that a configuration describes."""
        return FatLayout(**asdict(config))

    @property
    def _value(self) -> tuple[str, str]:
        column, equals, value = self.padding_value.rpartition("=")
        return (column, value) if equals else (EVENT_TS, value)

    @property
    def _pads(self) -> bool:
        return self.padding in ("left", "right")

    def lists(
        self,
        path: AnyFile,
        columns: Mapping[str, pa.Array],
        user_ids: NDArray[Any],
        request_ts: NDArray[np.int64],
    ) -> Lists:
        """Flattens list columns, without padding and oldest first; null lists are empty.

        Raises:
            InputError: The lists of a row differ in length beyond their padding, or hold nulls
                for times.
        """
        lists = self._converted(path, columns, user_ids, request_ts)
        times = lists.columns.get(EVENT_TS)
        if times is not None and times.null_count and self.padding != "none":
            is_null = times.is_null().to_numpy(zero_copy_only=False)
            begins = offsets_of(lists.lengths)[:-1]
            right = _runs(is_null, begins, lists.lengths, left=False)
            at_right = bool(((right > 0) & (right < lists.lengths)).any())
            side = "right" if at_right != (self.order == "newest-first") else "left"
            raise InputError(
                f"{path}: event_ts has {times.null_count} nulls, and every event needs a time; if "
                f"lists are padded with them, give --padding {side} --padding-value null."
            )
        return lists

    def _converted(
        self,
        path: AnyFile,
        columns: Mapping[str, pa.Array],
        user_ids: NDArray[Any],
        request_ts: NDArray[np.int64],
    ) -> Lists:
        counts = {name: _lengths(column) for name, column in columns.items()}
        flat = {name: column.flatten() for name, column in columns.items()}
        lengths = np.minimum.reduce(list(counts.values()))
        if not self._pads:
            _require_equal(path, counts, user_ids, request_ts)
            if self.order != "newest-first":
                return Lists(flat, lengths)
        begins = {name: offsets_of(count)[:-1] for name, count in counts.items()}
        if self._pads:
            for name, count in counts.items():
                excess = count - lengths
                extra = begins[name] + (0 if self.padding == "left" else lengths)
                self._check_excess(path, name, flat[name], ranges(extra, excess))
                if self.padding == "left":
                    begins[name] = begins[name] + excess
            padded = self._padded(path, flat, begins, lengths)
            lengths = lengths - padded
            if self.padding == "left":
                begins = {name: begin + padded for name, begin in begins.items()}
        taken = {}
        for name, values in flat.items():
            places = ranges(begins[name], lengths)
            if self.order == "newest-first":
                # Each row's places in reverse: its first and last add up to the same.
                places = np.repeat(2 * begins[name] + lengths - 1, lengths) - places
            taken[name] = values.take(pa.array(places))
        return Lists(taken, lengths)

    def _check_excess(
        self, path: AnyFile, name: str, values: pa.Array, places: NDArray[np.int64]
    ) -> None:
        """Checks that elements beyond the shortest list of their row are padding."""
        if not places.size:
            return
        extra = values.take(pa.array(places))
        column, value = self._value
        is_padding = blank_values(extra)
        if column in (name, EVENT_TS):
            is_padding |= equal_values(extra, value, strict=False)
        if not is_padding.all():
            shown = extra[int(np.flatnonzero(~is_padding)[0])]
            raise InputError(
                f"{path}: {name} is longer than the other lists of a row by {shown} at the "
                f"{self.padding}, which is no padding; give the --padding and --padding-value "
                f"that it has, or write lists of one length."
            )

    def _padded(
        self,
        path: AnyFile,
        flat: Mapping[str, pa.Array],
        begins: Mapping[str, NDArray[np.int64]],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Counts the events of padding at each row's side; shape (rows,)."""
        column, value = self._value
        if column not in flat:
            raise InputError(
                f"{path} has no list {column}, which --padding-value names; it has "
                f"{', '.join(flat)}."
            )
        is_padding = equal_values(flat[column], value, strict=True)
        return _runs(is_padding, begins[column], lengths, left=self.padding == "left")


@dataclass(slots=True)
class LayoutTally:
    """Counts what shows the layout of the rows read so far, and refuses what was not named."""

    layout: FatLayout
    ascending: int = 0
    """Rows whose times ascend somewhere and never descend; rows of equal times count nowhere."""
    descending: int = 0
    mixed: int = 0
    example: tuple[str, int] | None = None
    """User and request_ts of the first row that descends."""
    padded: dict[str, tuple[int, str, int, str]] = field(default_factory=dict)
    """Rows with fillers for times by side ("" for rows of nothing else), with the user, request_ts
    and value of the first of them."""
    empty_ended: dict[str, int] = field(default_factory=lambda: {"left": 0, "right": 0})
    """Rows by side that begin or end with events of which no trait has a value."""
    empty_inside: int = 0
    """Such events between others."""
    empty_longest: int = 0
    empty_lengths: set[int] = field(default_factory=set)
    """Lengths of the rows that have such events, two of them at most."""
    longest: int = 0

    def add(
        self,
        lists: Lists,
        event_ts: NDArray[np.int64],
        user_ids: NDArray[Any],
        request_ts: NDArray[np.int64],
    ) -> None:
        """Counts some rows; event_ts: ms, shape (events,)."""
        self._add_order(lists.lengths, event_ts, user_ids, request_ts)
        if self.layout.padding != "none":
            self._add_padding(lists, event_ts, user_ids, request_ts)

    def add_tally(self, other: LayoutTally) -> None:
        """Takes in what was counted of rows that follow these."""
        self.ascending += other.ascending
        self.descending += other.descending
        self.mixed += other.mixed
        self.example = self.example or other.example
        for side, found in other.padded.items():
            known = self.padded.get(side)
            self.padded[side] = found if known is None else (known[0] + found[0], *known[1:])
        for side, rows in other.empty_ended.items():
            self.empty_ended[side] += rows
        self.empty_inside += other.empty_inside
        self.empty_longest = max(self.empty_longest, other.empty_longest)
        self.empty_lengths |= other.empty_lengths
        self.longest = max(self.longest, other.longest)

    def _add_order(
        self,
        lengths: NDArray[np.int64],
        event_ts: NDArray[np.int64],
        user_ids: NDArray[Any],
        request_ts: NDArray[np.int64],
    ) -> None:
        rows = len(lengths)
        row_of = np.repeat(np.arange(rows), lengths)
        same = row_of[1:] == row_of[:-1]
        up = np.bincount(row_of[1:][same & (event_ts[1:] > event_ts[:-1])], minlength=rows) > 0
        down = np.bincount(row_of[1:][same & (event_ts[1:] < event_ts[:-1])], minlength=rows) > 0
        self.ascending += int((up & ~down).sum())
        self.descending += int((down & ~up).sum())
        self.mixed += int((up & down).sum())
        if self.example is None and down.any():
            row = int(np.flatnonzero(down)[0])
            self.example = str(user_ids[row]), int(request_ts[row])

    def _add_padding(
        self,
        lists: Lists,
        event_ts: NDArray[np.int64],
        user_ids: NDArray[Any],
        request_ts: NDArray[np.int64],
    ) -> None:
        lengths = lists.lengths
        self.longest = max(self.longest, int(lengths.max(initial=0)))
        begins = offsets_of(lengths)[:-1]
        filled = np.flatnonzero(lengths > 0)
        edges = np.unique(np.append(begins[filled], begins[filled] + lengths[filled] - 1))
        is_plausible = np.repeat(
            (request_ts >= YEAR_1990_MS) & (request_ts < YEAR_2100_MS), lengths
        )
        is_filler = is_plausible & ((event_ts < EPOCH_DAY_MS) | (event_ts >= YEAR_2100_MS))
        if is_filler[edges].any():
            left = _runs(is_filler, begins, lengths, left=True)
            right = _runs(is_filler, begins, lengths, left=False)
            whole = (left == lengths) & (lengths > 0)
            # Rows of nothing else do not show their side.
            sides = {"left": (left > 0) & ~whole, "right": (right > 0) & ~whole, "": whole}
            for side, shows in sides.items():
                if shows.any():
                    row = int(np.flatnonzero(shows)[0])
                    place = begins[row] + (lengths[row] - 1 if side == "right" else 0)
                    value = _shown(lists.columns[EVENT_TS][int(place)])
                    known = self.padded.get(side)
                    user_id, ts = str(user_ids[row]), int(request_ts[row])
                    rows, user_id, ts, value = known or (0, user_id, ts, value)
                    self.padded[side] = rows + int(shows.sum()), user_id, ts, value
        traits = [
            values for name, values in lists.columns.items() if name not in (EVENT_TS, "event_id")
        ]
        if not _all_blank(traits, edges).any():
            return
        is_empty = _all_blank(traits, None)
        left = _runs(is_empty, begins, lengths, left=True)
        right = _runs(is_empty, begins, lengths, left=False)
        whole = left == lengths
        for side, run in (("left", left), ("right", right)):
            self.empty_ended[side] += int(((run > 0) & ~whole).sum())
        self.empty_longest = max(self.empty_longest, int(left.max()), int(right.max()))
        ended = np.where(whole, left, left + right)
        self.empty_inside += int(is_empty.sum() - ended.sum())
        self.empty_lengths |= set(np.unique(lengths[ended > 0])[:2].tolist())

    def check_times(self, path: AnyFile) -> None:
        """Raises InputError if lists begin or end with fillers for times."""
        for side in ("left", "right", ""):
            if side not in self.padded:
                continue
            rows, user_id, request_ts, value = self.padded[side]
            named = self._side(side)
            raise InputError(
                f"{path}: lists look padded at the {named}: event_ts is {value} there in {rows} "
                f"rows, such as that of user {user_id} at {request_ts}; give --padding {named} "
                f"--padding-value {value}, or --padding none if these are events."
            )

    def check_padding(self, path: AnyFile) -> None:
        """Raises InputError if only traits look padded; needs all rows of a file, or many."""
        sides = [side for side, rows in self.empty_ended.items() if rows]
        rows = sum(self.empty_ended.values())
        if (
            len(sides) == 1
            and not self.empty_inside
            and self.empty_lengths == {self.longest}
            and (rows > 1 or self.empty_longest > 1)
        ):
            named = self._side(sides[0])
            raise InputError(
                f"{path}: lists look padded at the {named}: {rows} rows, all of {self.longest} "
                f"events, have events there without a value of any trait; give --padding {named} "
                f"--padding-value COLUMN=VALUE with a trait and the value it is padded with, or "
                f"--padding none if these are events."
            )

    def check_order(self, path: AnyFile) -> None:
        """Raises InputError if times descend and the order named has none that do."""
        if self.layout.order == "arrival" or self.example is None:
            return
        self.check_direction(path)
        user_id, request_ts = self.example
        named = self.layout.order
        raise InputError(
            f"{path}: lists are not {named.replace('-', ' ')}, such as that of user {user_id} at "
            f"{request_ts} ({self._counted()}); sort each row by event_ts, or give --order arrival "
            f"if its events stand in the order in which they arrived."
        )

    def check_direction(self, path: AnyFile) -> None:
        """Raises InputError if lists stand in the reverse of the order named, as far as seen."""
        if self.layout.order == "arrival" or not self.descending or self.ascending or self.mixed:
            return
        is_default = self.layout.order == "oldest-first"
        seen, option = ("newest", "newest-first") if is_default else ("oldest", "oldest-first")
        raise InputError(
            f"{path}: lists stand {seen} first ({self.descending} rows do, and none the other way "
            f"round); give --order {option}, or --order arrival if events stand in the order in "
            f"which they arrived."
        )

    def _counted(self) -> str:
        up, down = self.ascending, self.descending
        if self.layout.order == "newest-first":
            up, down = down, up
        return f"{up} rows ascend, {down} descend, {self.mixed} do both"

    def _side(self, side: str) -> str:
        """The side of lists as they are in the file."""
        side = side or "left"
        if self.layout.order != "newest-first":
            return side
        return "right" if side == "left" else "left"


def _require_equal(
    path: AnyFile,
    counts: Mapping[str, NDArray[np.int64]],
    user_ids: NDArray[Any],
    request_ts: NDArray[np.int64],
) -> None:
    """Raises InputError if the lists of a row differ in length."""
    first = next(iter(counts))
    for name, count in counts.items():
        differing = np.flatnonzero(count != counts[first])
        if differing.size:
            row = int(differing[0])
            raise InputError(
                f"{path}: {name} has {count[row]} events and {first} has {counts[first][row]}, "
                f"for user {user_ids[row]} at {request_ts[row]}; all lists of a row must be of "
                f"one length, and if some are padded, give --padding left or right."
            )


def _lengths(column: pa.Array) -> NDArray[np.int64]:
    counts = pc.fill_null(pc.list_value_length(column), 0)
    lengths: NDArray[np.int64] = counts.to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _runs(
    chosen: NDArray[np.bool_],
    begins: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    left: bool,
) -> NDArray[np.int64]:
    """Counts the chosen events from each row's side up to the first other; shape (rows,)."""
    others = np.flatnonzero(~chosen)
    if left:
        after = np.append(others, len(chosen))[np.searchsorted(others, begins)]
        return np.asarray(np.minimum(after - begins, lengths))
    ends = begins + lengths
    before = np.append(-1, others)[np.searchsorted(others, ends)]
    return np.asarray(np.minimum(ends - 1 - before, lengths))


def _all_blank(traits: list[pa.Array], places: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """The events of which no trait has a value, among all or those at some places."""
    chosen = None if places is None else pa.array(places)
    masks = [blank_values(values if chosen is None else values.take(chosen)) for values in traits]
    if not masks:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(np.logical_and.reduce(masks))


def _shown(value: pa.Scalar) -> str:
    """A time as --padding-value takes it."""
    return "null" if not value.is_valid else str(value.cast(pa.int64()).as_py())
