"""Values as text."""

from __future__ import annotations

from typing import Any

__all__ = ["TEXT_CHARS_MAX", "value_text"]

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
