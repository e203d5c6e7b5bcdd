"""A user's directory: where each stripe begins, in time and in the history, and its digest.

Layout: little-endian 64-bit words in rows of three. The first two rows are the header, then one
row per stripe: visible_ts of its first event, that event's ordinal, digest sum before it.
An ordinal is an event's place in the whole history, from 0, counting what retention dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.runs import offsets_of
from thinrow.errors import StoreCorruptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "HEADER_ROWS",
    "NEVER_TS",
    "ROW_WORDS",
    "UNKNOWN",
    "Directories",
    "encode_directories",
    "parse_directories",
]

ROW_WORDS = 3
HEADER_ROWS = 2
NEVER_TS = np.iinfo(np.int64).min
"""Stands for a time before every time."""

_FORMAT, _FIRST_STRIPE, _EVENTS, _DIGEST, _DROPPED_TS, _ERASED_TS = range(6)
_FORMAT_NUMBER = 1


@dataclass(frozen=True, slots=True)
class Directories:
    """Directories of several users, one after the other."""

    first_stripe: NDArray[np.int64]
    """Number of the first stripe left, shape (users,)."""
    event_counts: NDArray[np.int64]
    """Ordinal of the event to come next, shape (users,)."""
    digest_sums: NDArray[np.uint64]
    """Digest sum of the whole history, shape (users,)."""
    dropped_ts: NDArray[np.int64]
    """Newest visible_ts that retention dropped; NEVER_TS for none; shape (users,)."""
    erased_ts: NDArray[np.int64]
    """Watermark at which the user was erased; NEVER_TS for never; shape (users,)."""
    starts: NDArray[np.int64]
    """Position of each user's first stripe in the arrays below; shape (users + 1,)."""
    stripe_ts: NDArray[np.int64]
    """visible_ts of each stripe's first event, shape (stripes,)."""
    stripe_ordinals: NDArray[np.int64]
    """Ordinal of each stripe's first event, shape (stripes,)."""
    stripe_sums: NDArray[np.uint64]
    """Digest sum before each stripe, shape (stripes,)."""

    @property
    def first_ordinals(self) -> NDArray[np.int64]:
        """Ordinal of each user's first event left, shape (users,)."""
        has = np.diff(self.starts) > 0
        first = self.event_counts.copy()
        first[has] = self.stripe_ordinals[self.starts[:-1][has]]
        return first

    @property
    def stripe_ends(self) -> NDArray[np.int64]:
        """Ordinal after each stripe's last event, shape (stripes,)."""
        has = np.diff(self.starts) > 0
        ends = np.append(self.stripe_ordinals[1:], 0)[: len(self.stripe_ordinals)]
        ends[self.starts[1:][has] - 1] = self.event_counts[has]
        return ends


def _rows_of_unknown() -> NDArray[np.int64]:
    header = np.zeros(HEADER_ROWS * ROW_WORDS, dtype=np.int64)
    header[_FORMAT] = _FORMAT_NUMBER
    header[[_DROPPED_TS, _ERASED_TS]] = NEVER_TS
    return header


UNKNOWN = _rows_of_unknown().astype("<i8").tobytes()
"""The directory of a user without events."""


def parse_directories(values: Sequence[bytes | None]) -> Directories:
    """Reads directories; None stands for an unknown user.

    Raises:
        StoreCorruptError: one contradicts itself.
    """
    known = [UNKNOWN if value is None else value for value in values]
    lengths = np.fromiter(map(len, known), dtype=np.int64, count=len(known))
    row_bytes = 8 * ROW_WORDS
    if (lengths % row_bytes).any() or (lengths < HEADER_ROWS * row_bytes).any():
        raise StoreCorruptError("A directory has an impossible length.")
    rows = np.frombuffer(b"".join(known), dtype="<i8").reshape(-1, ROW_WORDS)
    row_starts = offsets_of(lengths // row_bytes)
    header_rows = row_starts[:-1, None] + np.arange(HEADER_ROWS)
    header = rows[header_rows].reshape(len(values), HEADER_ROWS * ROW_WORDS)
    if (header[:, _FORMAT] != _FORMAT_NUMBER).any():
        raise StoreCorruptError("A directory has an unknown format.")
    is_stripe = np.ones(len(rows), dtype=np.bool_)
    is_stripe[header_rows.reshape(-1)] = False
    stripes = rows[is_stripe]
    return Directories(
        first_stripe=header[:, _FIRST_STRIPE],
        event_counts=header[:, _EVENTS],
        digest_sums=np.ascontiguousarray(header[:, _DIGEST]).view(np.uint64),
        dropped_ts=header[:, _DROPPED_TS],
        erased_ts=header[:, _ERASED_TS],
        starts=row_starts - HEADER_ROWS * np.arange(len(values) + 1),
        stripe_ts=stripes[:, 0],
        stripe_ordinals=stripes[:, 1],
        stripe_sums=np.ascontiguousarray(stripes[:, 2]).view(np.uint64),
    )


def encode_directories(directories: Directories) -> list[bytes]:
    """The inverse of :func:`parse_directories`, for known users."""
    users = len(directories.event_counts)
    counts = np.diff(directories.starts)
    row_starts = offsets_of(counts + HEADER_ROWS)
    rows = np.zeros((row_starts[-1], ROW_WORDS), dtype="<i8")
    header = np.zeros((users, HEADER_ROWS * ROW_WORDS), dtype="<i8")
    header[:, _FORMAT] = _FORMAT_NUMBER
    header[:, _FIRST_STRIPE] = directories.first_stripe
    header[:, _EVENTS] = directories.event_counts
    header[:, _DIGEST] = directories.digest_sums.view(np.int64)
    header[:, _DROPPED_TS] = directories.dropped_ts
    header[:, _ERASED_TS] = directories.erased_ts
    header_rows = row_starts[:-1, None] + np.arange(HEADER_ROWS)
    rows[header_rows.reshape(-1)] = header.reshape(-1, ROW_WORDS)
    is_stripe = np.ones(len(rows), dtype=np.bool_)
    is_stripe[header_rows.reshape(-1)] = False
    rows[is_stripe] = np.column_stack(
        [
            directories.stripe_ts,
            directories.stripe_ordinals,
            directories.stripe_sums.view(np.int64),
        ]
    )
    data = rows.tobytes()
    return [data[a:b] for a, b in pairwise((row_starts * 8 * ROW_WORDS).tolist())]
