"""`thinrow schema`: a schema proposed from a log, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from thinrow.cli.command import command
from thinrow.core.files.io_errors import failure_reason
from thinrow.errors import UsageError
from thinrow.jobs.console import err, out, progress_bar

if TYPE_CHECKING:
    from thinrow.schema.proposal import ProposedSchema

__all__ = ["app", "reasons"]

app = typer.Typer()


@command(app, "schema")
def schema_command(
    events: Annotated[
        list[str],
        typer.Argument(
            metavar="EVENTS...", help="Parquet, CSV or TSV files, folders, globs, URLs."
        ),
    ],
    schema: Annotated[
        Path | None,
        typer.Option("--out", help="File to write the schema to. Default: standard output."),
    ] = None,
) -> None:
    """Propose a schema for a log of events, and say why."""
    from thinrow.events.log_facts import propose_schema
    from thinrow.events.text_files import log_files

    if schema is not None and schema.exists():
        raise UsageError(f"--out {schema} exists; name a new file, or remove it.")
    with progress_bar() as progress:
        proposed = propose_schema(log_files(events), progress)
    err.print(reasons(proposed))
    if schema is None:
        out.print(proposed.toml, end="", soft_wrap=True)
    else:
        try:
            schema.write_text(proposed.toml, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"Cannot write --out {schema}: {failure_reason(error)}.") from error
        err.print(
            f"Read it, then: thinrow compact EVENTS.parquet --store STORE --schema {schema}",
            soft_wrap=True,
        )


def reasons(proposed: ProposedSchema) -> Table:
    """Returns the table of what is proposed for each column, and why."""
    table = Table("column", "in the log", "group", "why", title="Proposed", title_justify="left")
    for column in proposed.columns:
        why = "; ".join(column.reasons) or "as it is"
        table.add_row(column.name, column.kind, column.group or "", why)
    return table
