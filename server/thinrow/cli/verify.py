"""`thinrow verify`: histories as training sees them, compared with fat rows."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from thinrow.cli.command import command
from thinrow.cli.options import SequenceLength, Target
from thinrow.events.units import TimeUnit
from thinrow.jobs.config import FatLayoutConfig
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import EXIT_FAILED, facts, out, progress_bar

__all__ = ["app"]

app = typer.Typer()


@command(app, "verify")
def verify_command(
    rows: Annotated[str, typer.Argument(help="Parquet of thin rows.")],
    server: Target,
    against: Annotated[
        str, typer.Option(metavar="FAT", help="Parquet of fat rows, in the same order.")
    ],
    layout: FatLayoutConfig,
    access: Access,
    sequence_length: SequenceLength = 0,
    time_unit: Annotated[
        TimeUnit | None,
        typer.Option(
            help="Unit of times that are integers. [default: ms; other units are refused]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare what training would see with fat rows, event by event; exit 1 if they differ."""
    from thinrow.jobs.connecting import connected
    from thinrow.jobs.layout import FatLayout
    from thinrow.jobs.verify import difference_fields, verify

    with connected(server, access) as client, progress_bar() as progress:
        report = verify(
            client, rows, against, sequence_length, progress, FatLayout.of(layout), time_unit
        )
    shown: dict[str, object] = {
        "compared": ", ".join([*report.traits, *report.beside]),
        "rows": report.rows,
        "events": report.events,
        "values": report.values,
        "rows that differ": report.rows_that_differ,
    }
    out.print(facts(f"{rows} against {against}", shown))
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
