"""The lookup of one batch: its requests and the responses so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow.core.lookup.answer import Answer
from thinrow.core.lookup.checked_response import CheckedResponse
from thinrow.core.pointers import Pointers, ThinRows
from thinrow.core.wire.malformed import require
from thinrow.core.wire.request import to_request

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.lookup.coding import Coder
    from thinrow.core.pointers import Projection
    from thinrow.core.wire.response import Response

__all__ = ["BatchLookup", "RequestSlice"]


class BatchLookup:
    """A batch of thin rows that one request or several look up."""

    def __init__(
        self,
        rows: ThinRows | Pointers,
        projection: Projection | str,
        coder: Coder | None = None,
    ) -> None:
        """Prepares the lookup; `coder` codes the values of mutable events."""
        self.rows = ThinRows(rows) if isinstance(rows, Pointers) else rows
        self.projection = projection
        mutable = self.rows.mutable
        self.mutable_lengths = (
            np.zeros(len(self.rows), np.int64) if mutable is None else mutable.lengths
        )
        self.groups: set[str] = set()
        """Names of the groups of servers that requests went to; empty without a cluster."""
        self._coder = coder
        self._responses: list[CheckedResponse] = []
        self._unanswered = len(self.rows)

    def whole(self) -> RequestSlice:
        """Returns the whole batch as one slice, grouped by user.

        A user's events then travel once, however far apart the user's examples are in the batch.
        """
        order = np.argsort(self.rows.pointers.user_ids, kind="stable")
        return RequestSlice(self, order)

    @property
    def is_complete(self) -> bool:
        """True once there is a response, and one about every example."""
        return bool(self._responses) and not self._unanswered

    @property
    def tenant(self) -> str:
        """The tenant whose projection applies; "" if the lookup has its own."""
        return self.projection if isinstance(self.projection, str) else ""

    def add(
        self, examples: NDArray[np.int64], response: Response, map_version: int = 0
    ) -> CheckedResponse:
        """Checks and keeps the response about some of the examples.

        map_version: That of the request.

        Raises:
            MalformedError: The response contradicts the request or itself.
        """
        pointers = self.rows.pointers[examples]
        mutable_lengths = self.mutable_lengths[examples]
        checked = CheckedResponse.read(
            response, examples, pointers, mutable_lengths, self.projection
        )
        elsewhere = int(np.count_nonzero(checked.is_elsewhere))
        require(map_version > 0 or not elsewhere, "a user is elsewhere, but there is no map")
        self._responses.append(checked)
        self._unanswered -= len(examples) - elsewhere
        return checked

    def answer(self) -> Answer:
        """Joins the responses, once every slice has one."""
        groups = max(1, len(self.groups))
        return Answer.join(self.rows, self._responses, self._coder, groups)


class RequestSlice(NamedTuple):
    """The examples of one batch that one request covers."""

    lookup: BatchLookup
    examples: NDArray[np.int64]
    """Places in the batch."""
    map_version: int = 0
    """Version of the cluster's map by which its group was chosen; 0 without a cluster."""

    def cut(self, examples_max: int) -> tuple[RequestSlice, RequestSlice | None]:
        """Returns its first examples, and the rest if there is any."""
        if len(self.examples) <= examples_max:
            return self, None
        first, rest = self.examples[:examples_max], self.examples[examples_max:]
        return self._replace(examples=first), self._replace(examples=rest)

    @property
    def pointers(self) -> Pointers:
        """Pointers of its examples."""
        return self.lookup.rows.pointers[self.examples]

    @property
    def mutable_lengths(self) -> NDArray[np.int64]:
        """Mutable events of each example."""
        return self.lookup.mutable_lengths[self.examples]

    def request(self) -> bytes:
        """Encodes its MaterializeRequest."""
        return to_request(
            self.pointers, self.mutable_lengths, self.lookup.projection, self.map_version
        )

    def answered(self, response: Response) -> CheckedResponse:
        """Checks and keeps its response; raises as `BatchLookup.add`."""
        return self.lookup.add(self.examples, response, self.map_version)

    def elsewhere(self, response: CheckedResponse) -> RequestSlice | None:
        """Returns the examples whose users' shards the server does not have; None without any."""
        if not self.map_version:
            return None
        away = response.is_elsewhere
        return self._replace(examples=self.examples[away]) if away.any() else None
