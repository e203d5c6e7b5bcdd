"""Messages of a topic in flight, and the numbers of their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from thinrow.client.torch.source import RowChunk
from thinrow.core.files.arrow import load_pyarrow
from thinrow.core.files.message import MESSAGE_ROWS_MAX
from thinrow.core.pointers import Pointers, ThinRows

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = [
    "OFFSET_BITS",
    "PARTITION_BITS",
    "ROW_BITS",
    "InFlightMessage",
    "MessageRows",
    "empty_chunk",
]

# An example id is partition, offset and row in the message, from the highest bits to the lowest.
ROW_BITS = (MESSAGE_ROWS_MAX - 1).bit_length()
OFFSET_BITS = 41
PARTITION_BITS = 63 - OFFSET_BITS - ROW_BITS


@dataclass(slots=True, eq=False)
class InFlightMessage:
    """A message that is delivered in part, or whose rows are not all counted yet."""

    partition: int
    offset: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class MessageRows:
    """The rows of a message to deliver, from `row` on."""

    in_flight: InFlightMessage
    row: int
    table: pa.Table

    def example_ids(self) -> NDArray[np.int64]:
        """Returns numbers of the rows, unique in the topic; shape (rows,)."""
        message = self.in_flight.partition << OFFSET_BITS | self.in_flight.offset
        return (message << ROW_BITS) + self.row + np.arange(len(self.table))


def empty_chunk() -> RowChunk:
    """Returns the empty chunk, which means that no rows are there for now."""
    rows = ThinRows(Pointers(user_ids=[], end_ts=[]))
    return RowChunk(rows, load_pyarrow().table({}), np.zeros(0, np.int64))
