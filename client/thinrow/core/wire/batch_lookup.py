"""One batch under way: which requests ask about it, and what came back so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow.core.pointers import Pointers, ThinRows
from thinrow.core.wire.answer import Answer, CheckedResponse
from thinrow.core.wire.request import to_request

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.pointers import Projection
    from thinrow.core.wire.response import Response

__all__ = ["BatchLookup", "RequestSlice"]


class BatchLookup:
    """A batch of thin rows, to be asked about in pieces."""

    def __init__(self, rows: ThinRows | Pointers, projection: Projection | str) -> None:
        self.rows = ThinRows(rows) if isinstance(rows, Pointers) else rows
        self._projection = projection
        mutable = self.rows.mutable
        self._mutable_lengths = (
            np.zeros(len(self.rows), np.int64) if mutable is None else np.diff(mutable.offsets)
        )
        self._parts: list[CheckedResponse] = []

    def whole(self) -> RequestSlice:
        """The batch as one piece.

        The examples of one user come one after the other, so that his events travel once however
        far apart they stand in the batch.
        """
        order = np.argsort(self.rows.pointers.user_ids, kind="stable")
        return RequestSlice(self, order, last=True)

    @property
    def tenant(self) -> str:
        """Whose projection is asked for; "" where it is the lookup's own."""
        return self._projection if isinstance(self._projection, str) else ""

    def request(self, examples: NDArray[np.int64]) -> bytes:
        """Asks about some of the examples: an encoded MaterializeRequest."""
        pointers = self.rows.pointers[examples]
        return to_request(pointers, self._mutable_lengths[examples], self._projection)

    def add(self, examples: NDArray[np.int64], response: Response) -> CheckedResponse:
        """Takes in what was answered. Raises ThinRowError for a malformed answer."""
        pointers = self.rows.pointers[examples]
        mutable_lengths = self._mutable_lengths[examples]
        part = CheckedResponse.read(response, examples, pointers, mutable_lengths, self._projection)
        self._parts.append(part)
        return part

    def answer(self) -> Answer:
        """All that came back, once every piece has been answered."""
        return Answer.join(self.rows, self._parts)


class RequestSlice(NamedTuple):
    """As much of one batch as one request asks about."""

    lookup: BatchLookup
    examples: NDArray[np.int64]
    """Places in the batch."""
    last: bool
    """True where it completes its batch."""

    def cut(self, examples_max: int) -> tuple[RequestSlice, RequestSlice | None]:
        """Its first examples, and the rest where there is one."""
        if len(self.examples) <= examples_max:
            return self, None
        first, rest = self.examples[:examples_max], self.examples[examples_max:]
        return RequestSlice(self.lookup, first, last=False), RequestSlice(
            self.lookup, rest, self.last
        )

    def request(self) -> bytes:
        """Asks about it: an encoded MaterializeRequest."""
        return self.lookup.request(self.examples)

    def answered(self, response: Response) -> CheckedResponse:
        """Takes in what was answered. Raises ThinRowError for a malformed answer."""
        return self.lookup.add(self.examples, response)
