"""Values as text, and integers from it."""

from __future__ import annotations

import re
from typing import Any

from thinrow.errors import UsageError

__all__ = ["INT64", "TEXT_CHARS_MAX", "parse_integer", "value_text"]

INT64 = range(-(1 << 63), 1 << 63)
INTEGER = re.compile("-?[0-9]{1,19}")

TEXT_CHARS_MAX = 200
"""Characters shown of a value."""
VECTOR_VALUES_MAX = 16
"""Elements shown of a vector."""


def value_text(value: Any) -> str:  # noqa: ANN401 - of any trait or column
    """Returns a value as text; an absent one is empty, a long one is cut."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        shown = [value_text(each) for each in value[:VECTOR_VALUES_MAX]]
        return f"[{', '.join([*shown, '…'] if len(value) > VECTOR_VALUES_MAX else shown)}]"
    text = str(value)
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[:TEXT_CHARS_MAX]}…"


def parse_integer(what: str, text: str, allowed: range) -> int:
    """Reads an integer.

    Args:
        what: Name of the value, for the error's text.
        text: The digits.
        allowed: Integers that it may be.

    Raises:
        UsageError: It is none of them.
    """
    if INTEGER.fullmatch(text) and int(text) in allowed:
        return int(text)
    raise UsageError(
        f"{what} is {text[:40]!r}, but must be an integer from {allowed[0]:,} to {allowed[-1]:,}."
    )
