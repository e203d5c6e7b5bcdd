"""`thinrow materialize`: fat rows again, for export and audit."""

from __future__ import annotations

import typer
from thinrow.cli.command import command
from thinrow.jobs.config import MaterializeConfig
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import facts, out, progress_bar, readable_bytes

__all__ = ["app"]

app = typer.Typer()


@command(app, "materialize")
def materialize_command(config: MaterializeConfig, access: Access) -> None:
    """Write fat rows again, for export and audit; each row has its status."""
    from thinrow.jobs.connected_jobs import run_materialize

    with progress_bar() as progress:
        report = run_materialize(config, access, progress)
    shown: dict[str, object] = {"rows": report.rows, "events": report.events}
    shown |= {f"rows {status}": count for status, count in sorted(report.statuses.items())}
    if report.filled:
        shown["filled after events were served"] = ", ".join(report.filled)
    shown["written"] = readable_bytes(config.fat.stat().st_size)
    out.print(facts(str(config.fat), shown))
