"""The rows of row groups that filters and splits keep."""

from __future__ import annotations

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

import numpy as np
from thinrow.client.torch.rows.groups import FOOTER_THREADS_MAX, conformed_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.client.torch.rows.groups import RowGroups

__all__ = ["Chooser", "Selection", "selections"]

SCAN_ROWS = 1 << 16
"""Rows whose columns a filter reads at once, in each thread."""


class Chooser(Protocol):
    """Puts each row into one of several selections, or into none."""

    schema: pa.Schema
    """Columns that the choice reads, in the one layout."""

    def choose(self, batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the selection of each row: its place, or a negative number for none.

        Args:
            batch: Rows with the columns of `schema`.
            numbers: Shape (rows,): numbers of the rows.
        """

    def possible(self, groups: RowGroups, part: int) -> set[int]:
        """Returns the places within a part of the groups that may have rows in a selection."""


class Selection:
    """Some rows of row groups: one bit for each row of a group that is kept in part.

    Args:
        rows: Shape (groups,): rows of each group.
        bits: Packed bits of each group's rows; None keeps all rows of a group, no bytes no row.
    """

    def __init__(self, rows: NDArray[np.int64], bits: Sequence[bytes | None] | None = None) -> None:
        self._rows = rows
        self._bits = [None] * len(rows) if bits is None else list(bits)
        self.counts = np.array(
            [
                count if each is None else int(np.bitwise_count(packed(each)).sum())
                for count, each in zip(rows, self._bits, strict=True)
            ],
            np.int64,
        )
        """Shape (groups,): rows of each group that are kept."""

    def places(self, group: int, start: int, stop: int) -> NDArray[np.int64]:
        """Returns the places within a group of its kept rows [start, stop)."""
        bits = self._bits[group]
        if bits is None:
            return np.arange(start, stop)
        return np.flatnonzero(self.mask(group))[start:stop]

    def mask(self, group: int) -> NDArray[np.bool_]:
        """Returns which rows of a group are kept."""
        rows, bits = int(self._rows[group]), self._bits[group]
        if not bits:
            return np.full(rows, bits is None)
        return np.unpackbits(packed(bits), count=rows).view(np.bool_)

    def digest(self) -> str:
        """Returns a hash of the kept rows; empty if all are kept."""
        if all(each is None for each in self._bits):
            return ""
        digest = hashlib.sha256()
        for group in range(len(self._rows)):
            digest.update(np.packbits(self.mask(group)).tobytes())
        return digest.hexdigest()


def selections(
    groups: RowGroups, within: Selection, chooser: Chooser, count: int
) -> list[Selection]:
    """Reads the columns of a choice once, and returns the rows of each of its selections.

    Args:
        groups: Rows.
        within: The rows to choose from.
        chooser: The choice.
        count: Number of selections.

    Raises:
        InputError: Rows cannot be read.
    """
    chosen: list[list[bytes | None]] = [[b""] * len(groups.rows) for _ in range(count)]

    def scan(part: int) -> None:
        of_part = np.flatnonzero(groups.parts == part)
        if not within.counts[of_part].any():
            return
        possible = chooser.possible(groups, part)
        scanned = [
            int(group)
            for place, group in enumerate(of_part)
            if place in possible and within.counts[group]
        ]
        if not scanned:
            return
        batches = groups.batches(scanned, chooser.schema, SCAN_ROWS)
        for group, of_group in itertools.groupby(batches, itemgetter(0)):
            mask = within.mask(group)
            choice = np.full(len(mask), -1)
            first = 0
            for _, batch in of_group:
                # Rows that are left out already may be those that the choice fails on.
                kept = np.flatnonzero(mask[first : first + len(batch)])
                if len(kept):
                    rows = conformed_rows(groups.names[part], batch, kept, chooser.schema)
                    choice[first + kept] = chooser.choose(rows, ids[group] + first + kept)
                first += len(batch)
            for place in range(count):
                chosen[place][group] = bits_of(choice == place)

    ids = np.cumsum(groups.rows) - groups.rows
    threads = min(FOOTER_THREADS_MAX, len(groups.names))
    with ThreadPoolExecutor(threads, thread_name_prefix="thinrow-filter") as pool:
        list(pool.map(scan, range(len(groups.names))))
    return [Selection(groups.rows, each) for each in chosen]


def bits_of(mask: NDArray[np.bool_]) -> bytes | None:
    """Packs which rows of a group are kept: None for all, no bytes for no row."""
    if mask.all():
        return None
    return np.packbits(mask).tobytes() if mask.any() else b""


def packed(bits: bytes) -> NDArray[np.uint8]:
    """Returns packed bits as an array."""
    return np.frombuffer(bits, np.uint8)
