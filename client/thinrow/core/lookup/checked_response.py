"""One response, checked against its request."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow.core.pointers import Projection
from thinrow.core.status import Status
from thinrow.core.wire.malformed import require
from thinrow.core.wire.request import TRUNCATIONS
from thinrow.core.wire.sizes import CONSTANT_BYTES_MAX, require_affordable
from thinrow.core.wire.widen import NarrowColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from thinrow.core.pointers import Pointers
    from thinrow.core.wire.response import Response

__all__ = ["CheckedResponse"]

# Looking a member of an enumeration up takes longer than the comparison.
ELSEWHERE = int(Status.ELSEWHERE)


class CheckedResponse(NamedTuple):
    """One response that agrees with its request and with itself. Arrays have shape (examples,)."""

    examples: NDArray[np.int64]
    """Places of its examples in the batch."""
    response: Response
    columns: dict[str, NarrowColumn]
    statuses: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Place of each example's first event in the run."""
    lengths: NDArray[np.int64]
    """Immutable events."""

    @property
    def is_elsewhere(self) -> NDArray[np.bool_]:
        """True for examples of users whose shards the server does not have."""
        is_elsewhere: NDArray[np.bool_] = self.statuses == ELSEWHERE
        return is_elsewhere

    @property
    def travelled_bytes(self) -> int:
        """Size of the columns in the response."""
        return sum(column.travelled_bytes for column in self.columns.values())

    @staticmethod
    def read(
        response: Response,
        examples: NDArray[np.int64],
        pointers: Pointers,
        mutable_lengths: NDArray[np.int64],
        projection: Projection | str,
    ) -> CheckedResponse:
        """Checks the response to a request for `pointers`.

        Raises:
            MalformedError: It contradicts the request or itself.
            AnswerTooLargeError: It would take far more memory than it has bytes.
        """
        block_lengths, statuses = response.block_lengths, response.statuses
        starts, lengths = response.view_starts, response.view_lengths
        require(
            len(statuses) == len(starts) == len(lengths) == len(pointers),
            f"it covers {len(statuses)} examples, but the request had {len(pointers)}",
        )
        require(((statuses >= 1) & (statuses <= 255)).all(), "an example has no status")
        for counts in (starts, lengths, block_lengths):
            require(((counts >= 0) & (counts < 1 << 32)).all(), "a length is no uint32")
        require((starts + lengths <= block_lengths.sum()).all(), "a view reaches past the run")
        require((lengths[statuses != Status.OK] == 0).all(), "an example that is not OK has events")
        if isinstance(projection, Projection):
            require(
                response.sequence_length == projection.sequence_length
                and response.truncation == TRUNCATIONS[projection.truncation],
                "it applied another projection than the request's",
            )
        most = pointers.max_lengths
        require(
            ((lengths <= most) | (most <= 0)).all(), "an example has more events than its pointer"
        )
        require(response.sequence_length >= 0, "its sequence length is negative")
        if response.sequence_length:
            room = np.full(len(pointers), response.sequence_length)
            if response.truncation != TRUNCATIONS["head"]:
                room = np.maximum(room - mutable_lengths, 0)
            require((lengths <= room).all(), "an example is longer than the sequence length")
        columns: dict[str, NarrowColumn] = {}
        widened = travelled = 0
        for column in response.columns:
            require(column.trait not in columns, f"{column.trait} comes twice")
            narrow = columns[column.trait] = NarrowColumn(column, block_lengths)
            widened, travelled = widened + narrow.widened_bytes, travelled + narrow.travelled_bytes
        require_affordable(widened, travelled)
        view_bytes = sum(column.view_bytes(starts, lengths) for column in columns.values())
        if view_bytes > CONSTANT_BYTES_MAX:
            # Only examples of one user share events, so that no view costs more than the run.
            most = np.unique(pointers.user_ids, return_counts=True)[1].max()
            require_affordable(view_bytes // int(most), travelled)
        if isinstance(projection, Projection):
            missing = sorted(set(projection.traits) - set(columns))
            require(not missing, f"it lacks {', '.join(missing)}")
            filled = [trait for trait, column in columns.items() if column.kind.filled]
            require(
                not (projection.as_served and filled),
                f"{', '.join(filled)} was filled later, but the request was for values as served",
            )
        return CheckedResponse(examples, response, columns, statuses, starts, lengths)
