"""`thinrow verify`: histories as training sees them, compared with fat rows."""

from __future__ import annotations

import typer
from rich.table import Table
from thinrow.cli.command import command
from thinrow.core.engine_config import EngineConfig
from thinrow.jobs.config import FatLayoutConfig, VerifyConfig
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import EXIT_FAILED, facts, out, progress_bar

__all__ = ["app"]

app = typer.Typer()


@command(app, "verify")
def verify_command(
    config: VerifyConfig, layout: FatLayoutConfig, access: Access, engine: EngineConfig
) -> None:
    """Compare what training would see with fat rows, event by event; exit 1 if they differ."""
    from thinrow.engines.choice import run_verify
    from thinrow.jobs.compared_rows import difference_fields

    with progress_bar() as progress:
        report = run_verify(config, layout, access, engine, progress)
    shown: dict[str, object] = {
        "compared": ", ".join([*report.traits, *report.beside]),
        "rows": report.rows,
        "events": report.events,
        "values": report.values,
        "rows that differ": report.rows_that_differ,
    }
    out.print(facts(f"{config.rows} against {config.against}", shown))
    if report.not_compared:
        out.print(f"Not in the store, so not compared: {', '.join(report.not_compared)}")
    if report.not_in_fat:
        out.print(f"Not in the fat rows, so not compared: {', '.join(report.not_in_fat)}")
    if report.filled:
        out.print(
            f"Filled after events were served, so older fat rows may differ: "
            f"{', '.join(report.filled)}"
        )
    if not report.rows_that_differ:
        out.print("Every event is equal.", style="bold green")
        return
    table = Table("row", "user", "request_ts", "where", "fat row", "thin row")
    for difference in report.differences:
        table.add_row(*difference_fields(difference))
    out.print("The first differences:", table, sep="\n")
    raise typer.Exit(EXIT_FAILED)
