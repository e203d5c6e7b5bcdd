"""`thinrow slim`: fat rows to events and thin rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from thinrow.cli.command import command
from thinrow.cli.time_reports import print_outliers, time_facts
from thinrow.core.engine_config import EngineConfig
from thinrow.jobs.config import FatLayoutConfig, SlimConfig
from thinrow.jobs.console import EXIT_FAILED, facts, out, progress_bar, readable_bytes
from thinrow.store.durations import duration_text
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from thinrow.jobs.slim_plan import SlimReport

__all__ = ["app"]

app = typer.Typer()

MEANINGS = {
    "changed": "events whose values a later row has otherwise",
    "vanished": "events that a later row lacks",
    "missing": "places where a row lacks what rows before and after it have",
    "elsewhere": "events that stand elsewhere in a later row",
}
"""Meaning of each kind of disagreement, in the order of the report."""


@command(app, "slim")
def slim_command(config: SlimConfig, layout: FatLayoutConfig, engine: EngineConfig) -> None:
    """Turn fat rows into events and thin rows that show the very same histories."""
    from thinrow.engines.choice import run_slim

    config = replace(config, layout=layout)
    with progress_bar() as progress:
        report = run_slim(config, engine, progress)
    out.print(facts(str(config.rows), figures(report)))
    print_outliers(report.times)
    if report.facts.rows_disagreeing:
        out.print(*disagreements(report), sep="\n")
    if not report.written:
        out.print("Rows disagree, so nothing was written.", style="bold red")
        raise typer.Exit(EXIT_FAILED)
    out.print("Then build the store that the rows point at:")
    compact = (
        f"thinrow compact {config.events} --store STORE --schema {config.written_schema} "
        f"--cadence {duration_text(config.cadence_ms)} "
    )
    if config.cadence_offset_ms:
        compact += f"--cadence-offset {duration_text(config.cadence_offset_ms)} "
    compact += f"--watermark {report.watermark_ts}"
    out.print(f"    {compact}", soft_wrap=True)


def figures(report: SlimReport) -> dict[str, object]:
    """Returns the figures of the report by their names."""
    found = report.facts
    shown: dict[str, object] = {
        "fat rows, and thin rows": found.rows,
        **time_facts(report.times),
        "events in fat rows": found.fat_events,
        "events, each once": found.events,
        "copies of an event": f"{found.fat_events / max(found.events, 1):.1f}",
        "events carried in thin rows": found.carried_events,
        "late events": found.late,
        "late events that rows show in their old place": found.late_in_place,
        "rows with nothing to point at yet": found.rows_all_newer,
        "rows carried whole for other reasons": found.rows_carried_whole,
        "rows that disagree with others": found.rows_disagreeing,
        "fat rows, bytes": readable_bytes(report.fat_bytes),
    }
    if report.written:
        thin = report.event_bytes + report.row_bytes
        shown |= {
            "events, bytes": readable_bytes(report.event_bytes),
            "thin rows, bytes": readable_bytes(report.row_bytes),
            "saved": f"{1 - thin / report.fat_bytes:.1%}, {report.fat_bytes / thin:.1f} times less",
        }
    return shown


def disagreements(report: SlimReport) -> list[object]:
    """Returns the counts of disagreements by kind, and examples."""
    counts = report.facts.disagreements
    table = Table("what", "user", "event_ts", "event", "seen at", "not at")
    for kind in MEANINGS:
        for found in [each for each in report.facts.examples if each.kind == kind][:5]:
            seen, lacking = readable_time(found.seen_request_ts), readable_time(found.request_ts)
            table.add_row(kind, str(found.user_id), str(found.event_ts), found.event, seen, lacking)
    counted = [
        f"{counts[kind]:,} {kind}: {meaning}"
        for kind, meaning in MEANINGS.items()
        if kind in counts
    ]
    return [
        "Rows of one user disagree. Each comes out as it was, for it carries what is only its own:",
        *counted,
        table,
    ]
