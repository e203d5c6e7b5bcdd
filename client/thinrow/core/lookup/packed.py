"""Answers as bytes: still narrow, for a process that widens what another one looked up."""

from __future__ import annotations

import pickle

import numpy as np
from thinrow.core.lookup.answer import Answer
from thinrow.core.lookup.checked_response import CheckedResponse
from thinrow.core.lookup.joined_responses import JoinedResponses
from thinrow.core.pointers import ThinRows
from thinrow.core.wire.widen import NarrowColumn

__all__ = ["pack", "unpack"]


def pack(answer: Answer) -> bytes:
    """Returns a whole answer, as `Client.answers` yields it, as bytes of Python's pickle.

    Mutable events come with it as truncation and the store's vocabularies left them.
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
    return pickle.dumps((joined.rows.pointers, mutable, parts, fields, scalars), protocol=5)


def unpack(packed: bytes) -> Answer:
    """Returns the answer of `pack`, whose bytes must come from a process of the same job.

    Raises:
        MalformedError: A column contradicts itself.
    """
    pointers, mutable, parts, fields, scalars = pickle.loads(packed)  # noqa: S301 - of the same job
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
