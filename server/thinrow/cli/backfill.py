"""`thinrow backfill`: thin rows for past requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, cast

import typer
from thinrow.cli.command import command
from thinrow.cli.time_reports import (
    print_far_rows,
    print_outliers,
    print_tied_rows,
    time_facts,
)
from thinrow.core.engine_config import EngineConfig
from thinrow.jobs.config import BackfillConfig
from thinrow.jobs.console import facts, out, progress_bar, readable_bytes

__all__ = ["app"]

app = typer.Typer()


@command(app, "backfill")
def backfill_command(
    config: BackfillConfig,
    engine: EngineConfig,
    more_events: Annotated[
        list[str] | None, typer.Argument(metavar="[MORE_EVENTS]...", help="More event files.")
    ] = None,
) -> None:
    """Write thin rows for past requests, as if they had been logged then."""
    from thinrow.engines.choice import run_backfill

    config = replace(config, events=[*cast("list[str]", config.events), *(more_events or [])])
    with progress_bar() as progress:
        report = run_backfill(config, engine, progress)
    shown: dict[str, object] = {
        "thin rows": report.rows,
        **time_facts(report.times),
        "events carried inside": report.mutable_events,
        "rows before the first generation": report.before_first_generation,
        "rows without digest: history cut or erased": report.without_digest,
        "rows that leave out events of their millisecond": report.tied_rows,
        "written": readable_bytes(report.row_bytes),
    }
    out.print(facts(str(config.rows), shown))
    print_outliers(report.times)
    print_tied_rows(report)
    print_far_rows(report)
