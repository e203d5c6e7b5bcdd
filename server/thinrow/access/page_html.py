"""HTML of pages for people: escaped text, tables, numbers as people read them, and the style."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ROWS_MAX",
    "STYLE",
    "Html",
    "bar",
    "bytes_text",
    "duration",
    "html",
    "integer",
    "mark",
    "number",
    "percent",
    "table",
]

ROWS_MAX = 50
"""Rows of a table; further ones are only counted."""
STYLE = files("thinrow.access").joinpath("page.css").read_text(encoding="utf-8")
"""The style that all pages share."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under its title; nothing where it has no rows. All but Html is escaped."""
    if not rows:
        return ""
    head = "".join(f"<th>{html(heading)}" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{html(cell)}' for cell in row)}" for row in rows[:ROWS_MAX])
    rest = f"<p class=faint>and {len(rows) - ROWS_MAX} more</p>" if len(rows) > ROWS_MAX else ""
    return (
        f"<h2>{html(title)}</h2><div class=scroll><table><thead><tr>{head}</thead>"
        f"<tbody>{body}</tbody></table></div>{rest}"
    )


def html(text: str) -> Html:
    """Escapes text that is not HTML already."""
    return text if isinstance(text, Html) else Html(escape(text))


def mark(text: str, *, good: bool) -> Html:
    """Text in the colour of what it says."""
    return Html(f"<span class={'good' if good else 'bad'}>{escape(text)}</span>")


def bar(share: float) -> Html:
    """A bar for a share of 0 to 1."""
    return Html(f'<span class=share><i style="width:{100 * share:.1f}%"></i></span>')


def integer(value: float) -> str:
    """Formats a value without decimals."""
    return f"{value:,.0f}"


def number(value: float) -> str:
    """Three digits at least, where there are as many."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def percent(share: float) -> str:
    """A share; 100% only for all of it."""
    return "100%" if share == 1 else f"{min(100 * share, 99.99):.2f}%"


def bytes_text(count: float) -> str:
    """A number of bytes, in the largest unit below it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def duration(seconds: float) -> str:
    """A time in one or two units."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    hours = minutes // 60
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24:,} d {hours % 24} h"
