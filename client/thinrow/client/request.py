"""From thin rows to requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow.v1 import materialization_pb2 as wire

if TYPE_CHECKING:
    from thinrow.client.pointers import Projection, ThinRows

__all__ = ["TRUNCATIONS", "Piece", "split", "to_request", "to_wire_projection"]

TRUNCATIONS: dict[str, wire.Truncation] = {
    "newest": wire.TRUNCATION_NEWEST,
    "head": wire.TRUNCATION_HEAD,
}


class Piece(NamedTuple):
    """As much of one batch as one request asks for."""

    rows: ThinRows
    last: bool
    """True where it completes its batch."""


def split(piece: Piece, examples: int) -> list[Piece]:
    """Cuts into pieces of at most `examples`; an empty batch is one empty piece."""
    starts = range(0, max(len(piece.rows), 1), examples)
    return [
        Piece(piece.rows[start : start + examples], piece.last and start == starts[-1])
        for start in starts
    ]


def to_request(rows: ThinRows, projection: Projection | str) -> wire.MaterializeRequest:
    """Asks for rows; arrays that say nothing stay at home, and so do the mutable events."""
    pointers = rows.pointers
    request = wire.MaterializeRequest(user_ids=pointers.user_ids, end_ts=pointers.end_ts)
    if isinstance(projection, str):
        request.tenant = projection
    else:
        request.projection.CopyFrom(to_wire_projection(projection))
    if pointers.start_ts.any():
        request.start_ts.extend(pointers.start_ts)
    if pointers.max_lengths.any():
        request.max_lengths.extend(pointers.max_lengths)
    if pointers.digests.any():
        request.digests.extend(pointers.digests)
    if not np.array_equal(pointers.request_ts, pointers.end_ts):
        request.request_ts.extend(pointers.request_ts)
    if rows.mutable is not None and len(rows.mutable.arrival_ts):
        request.mutable_lengths.extend(np.diff(rows.mutable.offsets))
    return request


def to_wire_projection(projection: Projection) -> wire.Projection:
    """Says a projection in the wire's terms."""
    return wire.Projection(
        sequence_length=projection.sequence_length,
        truncation=TRUNCATIONS[projection.truncation],
        feature_groups=projection.feature_groups,
        traits=projection.traits,
    )
