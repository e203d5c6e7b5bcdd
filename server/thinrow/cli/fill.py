"""`thinrow fill`: values for stored events that came later, or corrected ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from thinrow.cli.command import command
from thinrow.cli.vocabulary_reports import print_vocabularies
from thinrow.filling.config import FillConfig
from thinrow.jobs.console import facts, out, progress_bar, readable_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app"]

app = typer.Typer()


@command(app, "fill")
def fill_command(config: FillConfig) -> None:
    """Give stored events values that came later: a new group, or corrections of one."""
    from thinrow.filling.fill import fill
    from thinrow.store.times import readable_time

    with progress_bar() as progress:
        report = fill(config, progress)
    record = report.record
    if report.already_published:
        out.print(f"Generation {record.generation} was already filled by this very run.")
        return
    shown: dict[str, object] = {
        "filled": f"{record.group}: {', '.join(record.traits)}",
        "by": ", ".join(record.by),
        "watermark": f"{readable_time(record.watermark_ts)}, as before",
        "rows read": report.rows_read,
        "rows that repeat others": report.rows_read - record.rows,
        "rows that match no event": record.rows_unmatched,
        "events filled": record.events,
        "events that match no row": record.events_unmatched,
        "stored": readable_bytes(report.stored_bytes),
    }
    out.print(facts(f"Generation {record.generation} of {config.store}", shown))
    print_vocabularies(report.vocabularies)
    _print_some("Rows that match no event", report.shown_rows)
    kept = "which read as without the traits" if report.is_new_group else "which stay as they were"
    _print_some(f"Events that match no row, {kept}", report.shown_events)
    if report.ignored_columns:
        out.print(
            f"Not of {record.group}, so not stored: {', '.join(report.ignored_columns)}",
            soft_wrap=True,
        )


def _print_some(what: str, keys: Sequence[dict[str, object]]) -> None:
    from thinrow.filling.rows import text_of_key

    if keys:
        shown = "; ".join(map(text_of_key, keys))
        out.print(f"{what}: such as {shown}", soft_wrap=True)
