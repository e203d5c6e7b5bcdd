"""Requests from bytes, with a limit on the messages within one.

A message within a message takes two bytes on the wire and a hundred or more once it is decoded, so
that the size of a request alone does not bound its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from thinrow import _native
from thinrow.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

__all__ = ["M", "request_decoder"]

M = TypeVar("M", bound="Message")


def request_decoder(kind: type[M], path: Sequence[int], most: int) -> Callable[[bytes], M]:
    """Makes a deserializer that counts the fields at `path`, field numbers, before it decodes.

    The deserializer raises RequestError for more than `most`, and for bytes that are no message.
    """

    descriptor: Any = kind.DESCRIPTOR
    for number in path:
        field = descriptor.fields_by_number[number]
        descriptor = field.message_type

    def decode(message: bytes) -> M:
        try:
            count = _native.count_fields(message, list(path))
        except ValueError as error:
            raise RequestError(f"The bytes sent are no {kind.DESCRIPTOR.name}.") from error
        if count > most:
            raise RequestError(
                f"A {kind.DESCRIPTOR.name} has {count} {field.name}; this server takes {most}, so "
                f"send several messages."
            )
        return kind.FromString(message)

    return decode
