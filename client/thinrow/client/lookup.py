"""One batch under way: which requests ask about it, and what came back so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow.client.answer import Answer, Part
from thinrow.client.pointers import Pointers, ThinRows
from thinrow.client.request import to_request

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.client.pointers import Projection
    from thinrow.v1 import materialization_pb2 as wire

__all__ = ["Lookup", "Piece"]


class Lookup:
    """A batch of thin rows, to be asked about in pieces."""

    def __init__(self, rows: ThinRows | Pointers, projection: Projection | str) -> None:
        self.rows = ThinRows(rows) if isinstance(rows, Pointers) else rows
        self._projection = projection
        mutable = self.rows.mutable
        self._mutable_lengths = (
            np.zeros(len(self.rows), np.int64) if mutable is None else np.diff(mutable.offsets)
        )
        self._parts: list[Part] = []

    def pieces(self, examples_max: int) -> list[Piece]:
        """Cuts the batch into pieces; an empty one is one empty piece.

        The examples of one user come one after the other, so that his events travel once however
        far apart they stand in the batch.
        """
        order = np.arange(len(self.rows))
        if len(order) > examples_max:
            order = np.argsort(self.rows.pointers.user_ids, kind="stable")
        return Piece(self, order, last=True).split(examples_max)

    def request(self, examples: NDArray[np.int64]) -> wire.MaterializeRequest:
        """Asks about some of the examples."""
        pointers = self.rows.pointers[examples]
        return to_request(pointers, self._mutable_lengths[examples], self._projection)

    def add(self, examples: NDArray[np.int64], response: wire.MaterializeResponse) -> None:
        """Takes in what was answered. Raises ThinRowError for a malformed answer."""
        pointers = self.rows.pointers[examples]
        mutable_lengths = self._mutable_lengths[examples]
        part = Part.read(response, examples, pointers, mutable_lengths, self._projection)
        self._parts.append(part)

    def answer(self) -> Answer:
        """All that came back, once every piece has been answered."""
        return Answer.join(self.rows, self._parts)


class Piece(NamedTuple):
    """As much of one batch as one request asks about."""

    lookup: Lookup
    examples: NDArray[np.int64]
    """Places in the batch."""
    last: bool
    """True where it completes its batch."""

    def split(self, examples_max: int) -> list[Piece]:
        """Cuts into smaller pieces."""
        starts = range(0, max(len(self.examples), 1), examples_max)
        return [
            Piece(
                self.lookup,
                self.examples[start : start + examples_max],
                self.last and start == starts[-1],
            )
            for start in starts
        ]

    def request(self) -> wire.MaterializeRequest:
        """Asks about it."""
        return self.lookup.request(self.examples)

    def answered(self, response: wire.MaterializeResponse) -> None:
        """Takes in what was answered. Raises ThinRowError for a malformed answer."""
        self.lookup.add(self.examples, response)
