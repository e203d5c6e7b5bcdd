"""Limits on the memory that a message takes beyond its own bytes.

A column of equal or absent values takes no bytes per event: the message says how many there are,
and its size bounds nothing. Whoever widens a message calls `require_affordable` first.
"""

from __future__ import annotations

from thinrow.errors import AnswerTooLargeError

__all__ = ["COLUMNS_MAX", "CONSTANT_BYTES_MAX", "TEXT_BYTES", "require_affordable"]

COLUMNS_MAX = 1 << 13
"""Limit on the columns of one message; a schema has at most 4,096 traits."""
CONSTANT_BYTES_MAX = 128 << 20
"""Limit on what the equal and absent values of one message take once they are widened."""
VALUE_BYTES_MAX = 8
"""Limit on what one byte of a message widens to: an offset of one byte, a value of eight."""
TEXT_BYTES = 64
"""Size of a text as an object of Python, beside its bytes; on the wire it is two bytes."""


def require_affordable(
    widened_bytes: int, message_bytes: int, constant_bytes_max: int = CONSTANT_BYTES_MAX
) -> None:
    """Checks what the columns of a message widen to against the bytes that they have.

    Raises AnswerTooLargeError, before the memory is taken.
    """
    if widened_bytes > constant_bytes_max + VALUE_BYTES_MAX * message_bytes:
        raise AnswerTooLargeError(
            f"Columns of {message_bytes:,} bytes would widen to {widened_bytes:,}, most of it "
            f"equal or absent values; ask for fewer examples at once, shorter sequences or fewer "
            f"traits."
        )
