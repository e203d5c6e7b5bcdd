"""Limits on the memory that a message takes beyond its own bytes.

A column of equal or absent values takes no bytes per event: the message says how many there are,
and its size bounds nothing. Callers check `require_affordable` before they widen a message.
"""

from __future__ import annotations

from thinrow.errors import AnswerTooLargeError

__all__ = ["COLUMNS_MAX", "CONSTANT_BYTES_MAX", "TEXT_BYTES", "require_affordable"]

COLUMNS_MAX = 1 << 13
"""Limit on the columns of one message; a schema has at most 4,096 traits."""
CONSTANT_BYTES_MAX = 128 << 20
"""Limit on the equal and absent values of one message, once widened."""
VALUE_BYTES_MAX = 8
"""Most bytes that one byte of a message widens to: an offset of one byte, a value of eight."""
TEXT_BYTES = 64
"""Size of a text as an object of Python, beside its bytes; on the wire it is two bytes."""


def require_affordable(
    widened_bytes: int, message_bytes: int, constant_bytes_max: int = CONSTANT_BYTES_MAX
) -> None:
    """Compares the widened size of a message's columns with their bytes.

    Raises:
        AnswerTooLargeError: They would take too much memory, which is not allocated yet.
    """
    if widened_bytes > constant_bytes_max + VALUE_BYTES_MAX * message_bytes:
        raise AnswerTooLargeError(
            f"Columns of {message_bytes:,} bytes would widen to {widened_bytes:,}, most of it "
            f"equal or absent values; request fewer examples at once, shorter sequences or fewer "
            f"traits."
        )
