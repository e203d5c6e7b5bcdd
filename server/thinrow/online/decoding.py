"""Requests from bytes, with limits on their size and on the messages within one.

A message within a message takes two bytes on the wire and a hundred or more once it is decoded, so
that the size of a request alone does not bound its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import DecodeError
from thinrow import _native
from thinrow.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

__all__ = ["M", "request_decoder"]

M = TypeVar("M", bound="Message")


def request_decoder(
    kind: type[M], path: Sequence[int] = (), most: int = 0, *, bytes_max: int | None = None
) -> Callable[[bytes], M]:
    """Makes a deserializer that checks a message before it decodes it, and raises RequestError.

    Args:
        kind: The message.
        path: Numbers of the fields that lead to those that are counted; none for no count.
        most: Limit on their count.
        bytes_max: Limit on the message's size; None for that of every request.
    """
    name = kind.DESCRIPTOR.name

    descriptor: Any = kind.DESCRIPTOR
    for number in path:
        field = descriptor.fields_by_number[number]
        descriptor = field.message_type

    def decode(message: bytes) -> M:
        if bytes_max is not None and len(message) > bytes_max:
            raise RequestError(
                f"A {name} has {len(message):,} bytes; this server takes {bytes_max:,}, so send "
                f"several."
            )
        try:
            count = _native.count_fields(message, list(path)) if path else 0
            if count > most:
                raise RequestError(
                    f"A {name} has {count} {field.name}; this server takes {most}, so send "
                    f"several messages."
                )
            return kind.FromString(message)
        except (ValueError, DecodeError) as error:
            raise RequestError(f"The bytes sent are no {name}.") from error

    return decode
