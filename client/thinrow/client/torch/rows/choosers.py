"""Choices of rows: what filters, splits and downsampling keep, by the values of a few columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from thinrow.client.torch.rows.groups import all_columns, joint_columns
from thinrow.client.torch.rows.order import mixed
from thinrow.core.files.arrow import plain_schema
from thinrow.core.files.row_filter import RowFilter
from thinrow.core.files.rows import complete
from thinrow.core.files.user_columns import user_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.client.torch.rows.groups import RowGroups
    from thinrow.core.files.row_filter import Condition

__all__ = ["Downsampled", "KeptRows", "NewestRequests", "TimeRanges", "UserShares", "unit_interval"]

FRACTION_BITS = 53
"""Bits of a hash that a float holds exactly."""
DOWNSAMPLING = 1
"""Salt of downsampling: a row's number may equal its user's id, whose hash divides users."""
MERGED_ROWS = 1 << 20
"""Rows whose users and times are merged at once."""


class KeptRows:
    """The rows for which a condition is true: a Chooser of one selection."""

    def __init__(self, groups: RowGroups, condition: Condition) -> None:
        # Only the columns that the condition reads must have one type in all files.
        columns = RowFilter(condition, plain_schema(all_columns(groups))).columns
        self.schema = joint_columns(groups, columns or ["user_id"])
        self._filter = RowFilter(condition, self.schema)

    def choose(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns 0 for rows to keep, -1 for others; see Chooser."""
        del numbers
        return np.where(self._filter.mask(batch), 0, -1)

    def possible(self, groups: RowGroups, part: int) -> set[int]:
        """Returns the row groups that statistics do not rule out; see Chooser."""
        return self._filter.possible(groups.known(part, self.schema), self.schema)


class EveryGroup:
    """A choice that takes rows of every group."""

    def __init__(self, groups: RowGroups, *columns: str) -> None:
        self.schema = joint_columns(groups, columns)

    def possible(self, groups: RowGroups, part: int) -> set[int]:
        """Returns all groups of a part; see Chooser."""
        return set(range(int(np.sum(groups.parts == part))))


class Downsampled(EveryGroup):
    """All rows where a condition is not true, and a share of the others: one selection."""

    def __init__(self, groups: RowGroups, condition: Condition, keep: float, seed: int) -> None:
        self._matching = KeptRows(groups, condition)
        self.schema = self._matching.schema
        self._keep, self._seed = keep, seed

    def choose(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns 0 for rows to keep, -1 for others; see Chooser."""
        is_chosen = unit_interval(numbers, self._seed, DOWNSAMPLING) < self._keep
        return np.where(is_chosen | (self._matching.choose(batch, numbers) < 0), 0, -1)


class TimeRanges(EveryGroup):
    """Selections by `request_ts`: before the first of some times, between them, and from the last.

    Args:
        groups: Rows.
        times_ts: Ascending times.
    """

    def __init__(self, groups: RowGroups, times_ts: Sequence[int]) -> None:
        super().__init__(groups, "request_ts")
        self._times = np.array(times_ts, np.int64)

    def choose(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the range of each row; see Chooser."""
        del numbers
        return np.searchsorted(self._times, integers(batch, "request_ts"), side="right")


class UserShares(EveryGroup):
    """Selections of users, by the hash of their ids.

    Args:
        groups: Rows.
        ends: Ascending ends of the shares within [0, 1), without the last one's.
        seed: Seed of the hash.
    """

    def __init__(self, groups: RowGroups, ends: Sequence[float], seed: int) -> None:
        super().__init__(groups, "user_id")
        self._ends, self._seed = np.array(ends, np.float64), seed

    def choose(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the share of each row's user; see Chooser."""
        del numbers
        places = unit_interval(user_words(batch["user_id"]), self._seed)
        return np.searchsorted(self._ends, places, side="right")


class NewestRequests(EveryGroup):
    """Selections by recency: 2 for each user's newest `request_ts`, 1 for the one before, 0 else.

    Memory holds two times per user.

    Args:
        groups: Rows.
        rows: The rows among which to look: some at a time, and their file.
    """

    def __init__(self, groups: RowGroups, rows: Iterable[tuple[pa.RecordBatch, str]]) -> None:
        super().__init__(groups, "user_id", "request_ts")
        users, times = two_newest(rows)
        is_newest = np.append(users[1:] != users[:-1], True)[: len(users)]
        self._users, self._newest = users[is_newest], times[is_newest]
        has_second = np.append(False, ~is_newest)[: len(users)][is_newest]
        self._second = self._newest.copy()
        self._second[has_second] = times[~is_newest]

    def choose(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the selection of each row; see Chooser."""
        del numbers
        if not len(self._users):
            return np.zeros(len(batch), np.int64)
        users, times = user_words(batch["user_id"]), integers(batch, "request_ts")
        # Users who are not there have no rows to choose from.
        places = np.minimum(np.searchsorted(self._users, users), len(self._users) - 1)
        is_second = times == self._second[places]
        return np.where(times == self._newest[places], 2, np.where(is_second, 1, 0))


def two_newest(
    rows: Iterable[tuple[pa.RecordBatch, str]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns each user's two newest times, or the one there is: users, and times, ascending."""
    held = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    count = 0
    for batch, path in rows:
        held.append(
            (
                user_words(batch["user_id"], path),
                complete(path, "request_ts", batch["request_ts"]).astype(np.int64),
            )
        )
        count += len(batch)
        if count >= MERGED_ROWS:
            held, count = [merged(held)], 0
    return merged(held)


def merged(
    held: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorts users and times, and keeps each user's two newest."""
    users, times = (np.concatenate(each) for each in zip(*held, strict=True))
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    is_new = np.ones(len(users), np.bool_)
    is_new[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    users, times = users[is_new], times[is_new]
    is_kept = np.ones(len(users), np.bool_)
    is_kept[:-2] = users[:-2] != users[2:]
    return users[is_kept], times[is_kept]


def integers(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """Returns a column's integers, 0 for nulls, which are errors where their rows are read."""
    values: NDArray[np.int64] = batch[name].fill_null(0).to_numpy().astype(np.int64)
    return values


def unit_interval(values: NDArray[np.int64], *salts: int) -> NDArray[np.float64]:
    """Maps integers to [0, 1) by hashes that any language can compute; the guide has the rule."""
    high = mixed(values, *salts) >> np.uint64(64 - FRACTION_BITS)
    return high.astype(np.float64) / (1 << FRACTION_BITS)
