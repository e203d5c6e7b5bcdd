"""Splits of thin rows for training, validation and test, and downsampling.

All are the same on every machine, for any number of ranks and workers. They take and return
RowFiles, so that they combine with filters and with each other; a row keeps its number.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from thinrow.client.torch.rows.choosers import Downsampled, NewestRequests, TimeRanges, UserShares
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from thinrow.client.torch.rows.files import RowFiles
    from thinrow.core.files.row_filter import Condition

__all__ = ["by_time", "by_user", "downsample", "leave_one_out"]

SUM_ERROR_MAX = 1e-9
TIME_MAX = 1 << 63


def by_time(files: RowFiles, *times_ts: int | np.integer[Any]) -> list[RowFiles]:
    """Splits rows by `request_ts`.

    Args:
        files: The rows.
        times_ts: Ascending times in ms since the epoch, each the start of a part.

    Returns:
        One part more than times: rows before the first time, from each to the next (exclusive), and
        from the last on.

    Raises:
        UsageError: There is no time, they do not ascend, or one is no int64.
    """
    if (
        not times_ts
        or not all(
            isinstance(each, int | np.integer) and -TIME_MAX <= each < TIME_MAX for each in times_ts
        )
        or any(a >= b for a, b in itertools.pairwise(times_ts))
    ):
        raise UsageError(
            f"times_ts is {times_ts}, but must have one or more ascending times, as integers of "
            f"milliseconds since the epoch."
        )
    times = [int(each) for each in times_ts]
    return files.divide(lambda groups: TimeRanges(groups, times), len(times_ts) + 1)


def by_user(files: RowFiles, *fractions: float, seed: int = 0) -> list[RowFiles]:
    """Splits rows by their users, so that all rows of a user are in one part.

    Args:
        files: The rows.
        fractions: The share of users in each part; their sum is 1.
        seed: Seed of the hash of user ids: another one makes other parts.

    Returns:
        One part for each fraction.

    Raises:
        UsageError: A fraction is not positive, or their sum is not 1.
    """
    if not all(each > 0 for each in fractions) or abs(math.fsum(fractions) - 1) > SUM_ERROR_MAX:
        raise UsageError(f"The fractions {fractions} must be positive and have the sum 1.")
    ends = list(itertools.accumulate(fractions))[:-1]
    return files.divide(lambda groups: UserShares(groups, ends, seed), len(fractions))


def leave_one_out(files: RowFiles) -> list[RowFiles]:
    """Splits rows by their place among their user's requests.

    A request is a user and a `request_ts`; rows that share both stay together.

    Args:
        files: The rows.

    Returns:
        Three parts: for training the requests before, for validation each user's second newest, for
        test the newest one. A user with one request is in test only.

    Raises:
        InputError: A user or a time is null.
    """
    return files.divide(lambda groups: NewestRequests(groups, files.users_and_times()), 3)


def downsample(files: RowFiles, condition: Condition, *, keep: float, seed: int = 0) -> RowFiles:
    """Keeps a share of the rows for which a condition is true, and all others.

    Each row is kept or not by a hash of its number, so that the same rows are kept in every epoch.
    Weigh the kept ones by 1 / keep.

    Args:
        files: The rows.
        condition: See `RowFiles.filter`; such as `pyarrow.compute.field("label") == 0`.
        keep: Probability that a row is kept, in (0, 1].
        seed: Seed of the hash: another one keeps other rows.

    Raises:
        InputError: A file lacks a column of the condition.
        UsageError: keep is out of its range, or the condition does not fit the rows.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"keep is {keep}, but must be above 0, and at most 1.")
    [kept] = files.divide(lambda groups: Downsampled(groups, condition, keep, seed), 1)
    return kept
