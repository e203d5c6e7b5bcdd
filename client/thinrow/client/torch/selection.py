"""The rows of row groups that filters and splits keep."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np
from thinrow.client.torch.row_groups import FOOTER_THREADS_MAX
from thinrow.core.files.arrow import conformed_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray
    from thinrow.client.torch.row_groups import RowGroups

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
        kept = [int(group) for group in of_part if within.counts[group]]
        if kept:
            possible = chooser.possible(groups, part)
            kept = [group for group in kept if group - int(of_part[0]) in possible]
        pieces: dict[int, list[NDArray[np.int64]]] = {group: [] for group in kept}
        firsts = dict.fromkeys(kept, 0)
        for group, batch in groups.batches(kept, chooser.schema, SCAN_ROWS) if kept else ():
            first = firsts[group]
            firsts[group] += len(batch)
            numbers = ids[group] + first + np.arange(len(batch))
            batch = conformed_batch(groups.names[part], batch, chooser.schema)
            pieces[group].append(chooser.choose(batch, numbers))
        for group, of_group in pieces.items():
            choice = np.where(within.mask(group), np.concatenate(of_group), -1)
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
