"""Answers as bytes: still narrow, for a process that widens what another one looked up."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
from thinrow.core.lookup.answer import Answer
from thinrow.core.lookup.checked_response import CheckedResponse
from thinrow.core.lookup.joined_responses import JoinedResponses
from thinrow.core.pointers import ThinRows
from thinrow.core.runs import offsets_of
from thinrow.core.wire.widen import NarrowColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["pack", "unpack"]

ALIGNED_BYTES = 8
"""Every array begins at a multiple of it: the size of the widest elements."""


def pack(answer: Answer) -> NDArray[np.uint8]:
    """Returns a whole answer, as `Client.answers` yields it, as bytes.

    They are the number and the lengths of the pieces, then the pieces: Python's pickle, and the
    arrays that it refers to, each copied once. Mutable events come as truncation and the store's
    vocabularies left them.
    """
    joined = answer._joined
    parts = [
        (part.examples, part.response, part.statuses, part.starts, part.lengths)
        for part in joined.responses
    ]
    mutable = joined.mutable.compact()
    fields = (answer.statuses, joined.response, joined.starts, joined.lengths)
    scalars = {
        name: getattr(answer, name)
        for name in ("generation", "watermark_ts", "server_s", "answer_bytes", "groups")
    }
    arrays: list[pickle.PickleBuffer] = []
    contents = (joined.rows.pointers, mutable, parts, fields, scalars)
    pickled = pickle.dumps(contents, protocol=5, buffer_callback=arrays.append)
    pieces = [memoryview(pickled), *(array.raw() for array in arrays)]
    lengths = np.array([piece.nbytes for piece in pieces])
    starts = starts_of(lengths)
    packed = np.empty(starts[-1], np.uint8)
    packed[: starts[0]] = np.array([len(pieces), *lengths], np.int64).view(np.uint8)
    for start, piece in zip(starts, pieces, strict=False):
        packed[start : start + piece.nbytes] = piece
    return packed


def unpack(packed: NDArray[np.uint8]) -> Answer:
    """Returns the answer of `pack`, whose bytes must come from a process of the same job.

    Its arrays are views of `packed`.

    Raises:
        MalformedError: A column contradicts itself.
    """
    data = packed.copy() if packed.ctypes.data % ALIGNED_BYTES else packed
    words = data.view(np.int64)
    lengths = words[1 : words[0] + 1]
    first, *arrays = (
        data[start : start + length]
        for start, length in zip(starts_of(lengths), lengths, strict=False)
    )
    # The bytes come from a process of the same job.
    pointers, mutable, parts, fields, scalars = pickle.loads(first.data, buffers=arrays)  # noqa: S301
    responses = []
    for examples, response, statuses, starts, lengths in parts:
        columns = {
            column.trait: NarrowColumn(column, response.block_lengths)
            for column in response.columns
        }
        responses.append(CheckedResponse(examples, response, columns, statuses, starts, lengths))
    statuses, number, starts, lengths = fields
    joined = JoinedResponses(ThinRows(pointers), tuple(responses), number, starts, lengths, mutable)
    return Answer(
        statuses,
        joined.lengths + joined.mutable_lengths,
        **scalars,
        _joined=joined,
        _examples=np.arange(len(statuses)),
    )


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the start of each piece, and the end of the last, padded."""
    table_bytes = ALIGNED_BYTES * (len(lengths) + 1)
    return table_bytes + offsets_of(-(-lengths // ALIGNED_BYTES) * ALIGNED_BYTES)
