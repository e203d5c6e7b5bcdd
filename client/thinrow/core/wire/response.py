"""Decoding of responses: small arrays are copied, large ones are views of the message."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from thinrow import _native as native
from thinrow.errors import ThinRowError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray
    from thinrow.v1 import materialization_pb2 as wire

__all__ = ["Column", "Response"]


class Column(NamedTuple):
    """thinrow.v1.Column, not checked yet."""

    trait: str
    type: int
    vector_size: int
    nullable: bool
    bases: NDArray[np.int64]
    widths: NDArray[np.uint8]
    data: NDArray[np.uint8]
    present: NDArray[np.uint8]
    dictionary: NDArray[np.int64]
    strings: list[str]
    default_word: int | None
    default_string: str | None
    list_length_max: int
    list_lengths: NDArray[np.uint8]
    filled: bool
    codes_end: int

    @staticmethod
    def of(message: wire.Column) -> Column:
        """Returns the fields of a message that protobuf has decoded."""
        return Column(
            message.trait,
            message.type,
            message.vector_size,
            message.nullable,
            np.array(message.bases, np.int64),
            np.frombuffer(message.widths, np.uint8),
            np.frombuffer(message.data, np.uint8),
            np.frombuffer(message.present, np.uint8),
            np.array(message.dictionary, np.int64),
            list(message.strings),
            message.default_word if message.HasField("default_word") else None,
            message.default_string if message.HasField("default_string") else None,
            message.list_length_max,
            np.frombuffer(message.list_lengths, np.uint8),
            message.filled,
            message.codes_end,
        )


class Response(NamedTuple):
    """thinrow.v1.MaterializeResponse, not checked yet. Arrays are int64 of shape (examples,).

    Encoded messages are read natively: protobuf would copy every column three times.
    """

    cursor: int
    """Cursor of the stream's message; 0 outside a stream."""
    generation: int
    watermark_ts: int
    statuses: NDArray[np.int64]
    view_starts: NDArray[np.int64]
    view_lengths: NDArray[np.int64]
    block_lengths: NDArray[np.int64]
    """Shape (blocks,)."""
    columns: list[Column]
    sequence_length: int
    truncation: int
    server_us: int
    map_version: int
    """Version of the cluster's map at the server; 0 outside a cluster."""

    @staticmethod
    def read(message: bytes) -> Response:
        """Decodes a MaterializeResponse; raises ThinRowError if the bytes are none."""
        return _read(native.read_response, message)

    @staticmethod
    def read_from_stream(message: bytes) -> Response:
        """Decodes a MaterializeStreamResponse; raises ThinRowError if the bytes are none."""
        return _read(native.read_stream_response, message)


def _read(read: Callable[[bytes], tuple[Any, ...]], message: bytes) -> Response:
    try:
        fields = read(message)
    except ValueError as error:
        raise ThinRowError(f"The server's answer is malformed: {error}.") from error
    response = Response._make(fields)
    return response._replace(columns=[Column._make(column) for column in response.columns])
