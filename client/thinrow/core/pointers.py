"""Thin rows in memory: pointers and mutable events, and the projection of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from thinrow.core.convert import counted, exact, mask
from thinrow.core.ids import given_users, shown_ids
from thinrow.core.runs import offsets_of, ranges
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import UnionType

    from numpy.typing import ArrayLike, NDArray
    from thinrow.core.ids import IdKind

__all__ = ["MutableColumn", "MutableEvents", "Pointers", "Projection", "ThinRows"]


@dataclass(frozen=True, slots=True)
class Projection:
    """The part of each history that a model uses.

    Without feature groups and traits it has every trait and `event_ts`. Besides the schema's traits
    there are `event_ts`, `event_id` and `visible_ts`.
    """

    sequence_length: int = 0
    """Most events per example, counted over immutable ++ mutable. 0 for no limit."""

    feature_groups: tuple[str, ...] = ()
    """Groups whose traits it has, besides `traits`."""

    traits: tuple[str, ...] = ()
    """Names of its traits."""

    truncation: Literal["newest", "head"] = "newest"
    """The events that stay if there are more; "head" only suits models trained that way."""

    as_served: bool = False
    """True refuses traits with values that were filled after the events were served."""

    def __post_init__(self) -> None:
        if self.sequence_length < 0:
            raise UsageError(
                f"sequence_length is {self.sequence_length}, but must be 0 (no limit) or more."
            )
        for name in ("traits", "feature_groups"):
            if isinstance(getattr(self, name), str):
                raise UsageError(
                    f"{name} is the text {getattr(self, name)!r}, but must be a tuple of names, "
                    f"such as ({getattr(self, name)!r},)."
                )
        if self.truncation not in ("newest", "head"):
            raise UsageError(f"truncation is {self.truncation!r}, but must be 'newest' or 'head'.")


class Pointers:
    """Names past states of histories: a struct of arrays, element i belongs to example i.

    Every array has shape (examples,) and is int64, digests uint64; times are ms. Arrays of another
    dtype are converted if no value changes, times of datetime64 to ms.

    Args:
        user_ids: The users: integers, or texts or UUIDs where the store's users are such. Of
            integers that exceed int64, `user_ids` then has the same bits; of texts, a number for
            each within these pointers, and `user_texts` has the texts.
        end_ts: Watermark of the generation that served the request, exclusive.
        start_ts: First visible_ts named, inclusive. Default 0.
        max_lengths: Most immutable events named, the newest; 0, the default, for no limit.
        digests: Digest of the history up to end_ts; 0, the default, for not recorded.
        request_ts: Time of the request; events that arrived then or later are not returned.
            Default end_ts.

    Raises:
        InputError: Arrays differ in length or hold other values.
    """

    __slots__ = (
        "digests",
        "end_ts",
        "max_lengths",
        "request_ts",
        "start_ts",
        "user_id_kind",
        "user_ids",
        "user_texts",
    )

    user_ids: NDArray[np.int64]
    user_id_kind: IdKind
    """``uint64`` if one of the integers given exceeds int64, ``string`` for texts; else int64."""
    user_texts: NDArray[np.object_] | None
    start_ts: NDArray[np.int64]
    end_ts: NDArray[np.int64]
    max_lengths: NDArray[np.int64]
    digests: NDArray[np.uint64]
    request_ts: NDArray[np.int64]

    def __init__(
        self,
        *,
        user_ids: ArrayLike,
        end_ts: ArrayLike,
        start_ts: ArrayLike | None = None,
        max_lengths: ArrayLike | None = None,
        digests: ArrayLike | None = None,
        request_ts: ArrayLike | None = None,
    ) -> None:
        users = given_users("user_ids", user_ids, integers)
        self.user_ids, self.user_id_kind, self.user_texts = users
        examples = len(self.user_ids)
        self.end_ts = integers("end_ts", end_ts, examples)
        self.start_ts = integers("start_ts", or_zeros(start_ts, examples), examples)
        self.max_lengths = integers("max_lengths", or_zeros(max_lengths, examples), examples)
        self.digests = words("digests", or_zeros(digests, examples), examples)
        self.request_ts = (
            self.end_ts.copy()
            if request_ts is None
            else integers("request_ts", request_ts, examples)
        )

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, examples: slice | NDArray[np.int64]) -> Pointers:
        selected = object.__new__(Pointers)
        for name in self.__slots__:  # checked once, when they were made
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                value = np.ascontiguousarray(value[examples])
            setattr(selected, name, value)
        return selected

    def user(self, example: int) -> int | str:
        """Returns the user of an example, as people know the id."""
        if self.user_texts is not None:
            return str(self.user_texts[example])
        return int(shown_ids(self.user_ids, self.user_id_kind)[example])

    def __repr__(self) -> str:
        return f"Pointers({len(self)} examples)"


@dataclass(frozen=True, slots=True, eq=False)
class MutableColumn:
    """One trait of mutable events.

    Attributes:
        values: Shape (events,), or (events, size) for a vector; text as an object array of str. Of
            lists the elements of all events, shape (elements,).
        present: bool, shape (events,), False where the event lacks the trait. None: all have it.
        offsets: Of lists: int64, shape (events + 1,), ascending from 0; event i has the elements
            [offsets[i], offsets[i + 1]), none where it lacks the trait.
    """

    values: NDArray[Any]
    present: NDArray[np.bool_] | None = None
    offsets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Returns the number of events."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def __getitem__(self, events: slice | NDArray[np.int64]) -> MutableColumn:
        """Returns the values of some events: a slice without a step, or their places."""
        present = None if self.present is None else self.present[events]
        if self.offsets is None:
            return MutableColumn(self.values[events], present)
        if isinstance(events, slice):
            start, stop, _ = events.indices(len(self))
            offsets = self.offsets[start : max(start, stop) + 1]
            first = offsets[0]
            return MutableColumn(self.values[first : offsets[-1]], present, offsets - first)
        starts = self.offsets[:-1][events]
        lengths = self.offsets[1:][events] - starts
        return MutableColumn(self.values[ranges(starts, lengths)], present, offsets_of(lengths))

    def to_list(self) -> list[Any]:
        """Returns Python values, None where absent."""
        values: list[Any] = self.values.tolist()
        if self.offsets is not None:
            values = [values[start:stop] for start, stop in pairwise(self.offsets.tolist())]
        if self.present is None:
            return values
        pairs = zip(values, self.present.tolist(), strict=True)
        return [value if there else None for value, there in pairs]


@dataclass(frozen=True, slots=True, eq=False)
class MutableEvents:
    """The mutable snapshots of some examples: events too new for the generation, oldest first.

    Attributes:
        offsets: int64, shape (examples + 1,); example i has the events
            [offsets[i], offsets[i + 1]).
        arrival_ts: int64, shape (events,), ms.
        columns: Traits by name, also `event_ts` and `event_id`; others are absent everywhere.

    Raises:
        InputError: Shapes do not fit.
    """

    offsets: NDArray[np.int64]
    arrival_ts: NDArray[np.int64]
    columns: dict[str, MutableColumn]
    _extremes: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        offsets = integers("offsets", self.offsets)
        arrival_ts = integers("arrival_ts", self.arrival_ts)
        events = len(arrival_ts)
        if not is_ascending(offsets, events):
            raise InputError(
                f"The mutable offsets must ascend from 0 to {events}, the events there."
            )
        columns = dict(self.columns)
        for name, column in self.columns.items():
            if type(column.values) is not np.ndarray:
                raise InputError(
                    f"The mutable column {name!r} must be a plain numpy array, but is a "
                    f"{type(column.values).__name__}; give absent values as `present`."
                )
            lists = column.offsets
            if lists is not None:
                lists = integers(f"the offsets of the mutable column {name!r}", lists)
                if not is_ascending(lists, len(column.values)):
                    raise InputError(
                        f"The offsets of the mutable column {name!r} must ascend from 0 to "
                        f"{len(column.values)}, the elements there."
                    )
            if len(column) != events:
                raise InputError(f"The mutable column {name!r} must have {events} values.")
            present = column.present
            if present is not None:
                try:
                    present = mask(present, events)
                except (TypeError, ValueError) as error:
                    raise InputError(
                        f"The mutable column {name!r} does not fit: {error}."
                    ) from error
                if lists is not None and np.diff(lists)[~present].any():
                    raise InputError(
                        f"The mutable column {name!r} has elements of an event without a list."
                    )
            columns[name] = MutableColumn(column.values, present, lists)
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "arrival_ts", arrival_ts)

    def __len__(self) -> int:
        """Returns the number of examples, not of events."""
        return len(self.offsets) - 1

    def __getitem__(self, examples: slice | NDArray[np.int64]) -> MutableEvents:
        if isinstance(examples, slice):
            examples = slice(*bounds(examples, len(self)))
        return self.select(self.starts[examples], self.lengths[examples])

    @property
    def pool(self) -> MutableEvents:
        """The events of which these are some; themselves unless they were selected."""
        return self

    @property
    def starts(self) -> NDArray[np.int64]:
        """Shape (examples,): place of each example's first event in the pool."""
        return self.offsets[:-1]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Shape (examples,): events of each example."""
        return np.diff(self.offsets)

    def compact(self) -> MutableEvents:
        """Returns the same events without others in the pool."""
        return self

    def extremes(self, name: str) -> tuple[int, int]:
        """Returns the least and the greatest integer of a column that has some; found once."""
        if name not in self._extremes:
            values = self.arrival_ts if name == "visible_ts" else self.columns[name].values
            self._extremes[name] = int(values.min()), int(values.max())
        return self._extremes[name]

    def select(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> MutableEvents:
        """Selects a run of the pool's events for each of some examples; copies none yet."""
        return SelectedEvents(self.pool, starts, lengths)


class SelectedEvents(MutableEvents):
    """Mutable events that lie among others, and are copied from these once they are read.

    A row's events so stay where they were decoded, however rows are shuffled, cut and truncated.
    """

    __slots__ = ("lengths", "pool", "starts")

    pool: MutableEvents
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __init__(
        self, pool: MutableEvents, starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        for name, value in (("pool", pool), ("starts", starts), ("lengths", lengths)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.starts)

    def __repr__(self) -> str:
        return f"MutableEvents({len(self)} examples, {self.lengths.sum()} events)"

    def compact(self) -> MutableEvents:
        """Returns the same events without others in the pool."""
        return MutableEvents(self.offsets, self.arrival_ts, self.columns)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Fills the fields of MutableEvents, of which the first is read."""
        if name not in ("offsets", "arrival_ts", "columns"):
            raise AttributeError(name)
        events = ranges(self.starts, self.lengths)
        columns = {name: column[events] for name, column in self.pool.columns.items()}
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "arrival_ts", self.pool.arrival_ts[events])
        object.__setattr__(self, "columns", columns)
        return object.__getattribute__(self, name)


@dataclass(frozen=True, slots=True, eq=False)
class ThinRows:
    """Pointers, and the mutable snapshots beside them.

    Raises:
        InputError: They are not of one length.
    """

    pointers: Pointers
    mutable: MutableEvents | None = None

    def __post_init__(self) -> None:
        if self.mutable is not None and len(self.mutable) != len(self.pointers):
            raise InputError(
                f"There are {len(self.pointers)} pointers, but mutable events of "
                f"{len(self.mutable)} examples."
            )

    def __len__(self) -> int:
        return len(self.pointers)

    def __getitem__(self, examples: slice | NDArray[np.int64]) -> ThinRows:
        if isinstance(examples, np.ndarray):
            mutable = None if self.mutable is None else self.mutable[examples]
            return ThinRows(self.pointers[examples], mutable)
        start, stop = bounds(examples, len(self))
        mutable = None if self.mutable is None else self.mutable[start:stop]
        return ThinRows(self.pointers[start:stop], mutable)


def bounds(examples: slice, length: int) -> tuple[int, int]:
    """Returns the bounds of a slice without a step; start <= stop."""
    start, stop, step = examples.indices(length)
    if step != 1:
        raise InputError("Thin rows are sliced without a step.")
    return start, max(start, stop)


def is_ascending(offsets: NDArray[np.int64], end: int) -> bool:
    """Returns True if offsets ascend from 0 to `end`."""
    ends = len(offsets) and offsets[0] == 0 and offsets[-1] == end
    return bool(ends and (np.diff(offsets) >= 0).all())


def or_zeros(values: ArrayLike | None, length: int) -> ArrayLike:
    """Returns zeros in place of an array that was not given."""
    return np.zeros(length, np.int64) if values is None else values


def integers(
    name: str, values: ArrayLike, length: int | None = None, unit: str | None = "ms"
) -> NDArray[np.int64]:
    """Returns an int64 array of shape (length,), or raises InputError, which names it.

    Times become counts of the unit; without one they are refused.
    """
    if getattr(values, "dtype", None) == np.bool_:
        raise InputError(f"{name} must be a flat array of int64, but is a mask of bools.")
    if getattr(getattr(values, "dtype", None), "kind", "") == "m":
        raise InputError(f"{name} must be a flat array of int64, but has durations.")
    if isinstance(values, list | tuple):
        # An array may be of floats because its library has no integers with gaps; a list may not.
        _refuse(name, values, float)
    try:
        given = counted(values, unit)
        # Of other libraries' arrays, too, which are lists here.
        _refuse(name, given if isinstance(given, list) else (), bool | np.bool_)
        array = np.ascontiguousarray(exact(given, np.dtype(np.int64)))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be a flat array of int64, but {error}.") from error
    if array.ndim != 1:
        raise InputError(f"{name} must be a flat array of int64, but has the shape {array.shape}.")
    if length is not None and len(array) != length:
        raise InputError(f"{name} has {len(array)} elements for {length} examples.")
    return array


def _refuse(name: str, values: Sequence[object], kinds: type | UnionType) -> None:
    """Raises InputError for values of some types, and names the first."""
    wrong = next((value for value in values if isinstance(value, kinds)), None)
    if wrong is not None:
        raise InputError(f"{name} must be a flat array of int64, but has {wrong!r}.")


def words(name: str, values: ArrayLike, length: int) -> NDArray[np.uint64]:
    """Returns a uint64 array of shape (length,), or raises InputError, which names it.

    Tables without unsigned integers carry such words as int64, which keep their bits.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "i":
        return integers(name, values, length).view(np.uint64)
    try:
        array = exact(values, np.dtype(np.uint64))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be a flat array of uint64, but {error}.") from error
    return integers(name, array.view(np.int64), length).view(np.uint64)
