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

M = TypeVar("M", bound="Message")


def request_decoder(
    kind: type[M], path: Sequence[int], most: int
) -> Callable[[bytes], M | RequestError]:
    """Makes a deserializer that counts the fields at `path`, field numbers, before it decodes.

    Beyond `most` it returns the error for the handler to raise: gRPC answers INTERNAL to a
    deserializer that raises one.
    """

    descriptor: Any = kind.DESCRIPTOR
    for number in path:
        field = descriptor.fields_by_number[number]
        descriptor = field.message_type

    def decode(message: bytes) -> M | RequestError:
        try:
            count = _native.count_fields(message, list(path))
        except ValueError:
            return RequestError(f"The bytes sent are no {kind.DESCRIPTOR.name}.")
        if count > most:
            return RequestError(
                f"A {kind.DESCRIPTOR.name} has {count} {field.name}; this server takes {most}, so "
                f"send several messages."
            )
        return kind.FromString(message)

    return decode
