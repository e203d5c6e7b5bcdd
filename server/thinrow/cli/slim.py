"""``thinrow slim``: what a run found, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.table import Table
from thinrow.cli.times import print_outliers, time_facts
from thinrow.jobs.console import EXIT_FAILED, facts, out, progress_bar, readable_bytes
from thinrow.jobs.slim import SlimConfig, slim
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from thinrow.jobs.slim import SlimReport

__all__ = ["run_slim"]

MEANINGS = {
    "changed": "events whose values a later row has otherwise",
    "vanished": "events that a later row lacks",
    "missing": "places where a row lacks what rows before and after it have",
    "elsewhere": "events that stand elsewhere in a later row",
}
"""Of each kind of disagreement; the order is that in which they are told."""
UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def run_slim(config: SlimConfig) -> None:
    """Runs, and tells what came out; exits with 1 where rows disagree and must not."""
    with progress_bar() as progress:
        report = slim(config, progress)
    out.print(facts(config.rows.name, figures(report)))
    print_outliers(report.times)
    if report.facts.rows_disagreeing:
        out.print(*disagreements(report), sep="\n")
    if not report.written:
        out.print("[bold red]Rows disagree, so nothing was written.[/]")
        raise typer.Exit(EXIT_FAILED)
    out.print("Then build the store that the rows point at:")
    command = (
        f"thinrow compact {config.events} --store STORE --schema {config.written_schema} "
        f"--cadence {duration(config.cadence_ms)} "
    )
    if config.cadence_offset_ms:
        command += f"--cadence-offset {duration(config.cadence_offset_ms)} "
    command += f"--watermark {report.watermark_ts}"
    out.print(f"    {command}", soft_wrap=True, markup=False)


def figures(report: SlimReport) -> dict[str, object]:
    """Names and values of what is told."""
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
    """How often rows disagree, and examples."""
    counts = report.facts.disagreements
    table = Table("what", "user", "event_ts", "event", "seen at", "not at")
    for kind in MEANINGS:
        for one in [one for one in report.facts.examples if one.kind == kind][:5]:
            seen, lacking = readable_time(one.seen_request_ts), readable_time(one.request_ts)
            table.add_row(kind, str(one.user_id), str(one.event_ts), one.event, seen, lacking)
    told = [
        f"{counts[kind]:,} {kind}: {meaning}"
        for kind, meaning in MEANINGS.items()
        if kind in counts
    ]
    return [
        "Rows of one user disagree. Each comes out as it was, for it carries what is only its own:",
        *told,
        table,
    ]


def duration(span_ms: int) -> str:
    """A span of time as it is typed."""
    unit = next(unit for unit, size in UNITS.items() if span_ms % size == 0)
    return f"{span_ms // UNITS[unit]}{unit}"
