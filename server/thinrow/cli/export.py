"""`thinrow export`: the mutable tier's events, for compaction."""

from __future__ import annotations

import typer
from thinrow.cli.command import command
from thinrow.jobs.config import ExportConfig
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import facts, out, progress_bar, readable_bytes

__all__ = ["app"]

app = typer.Typer()


@command(app, "export")
def export_command(config: ExportConfig, access: Access) -> None:
    """Write the mutable tier's events to a file, for compact; safe to run again."""
    from thinrow.jobs.connected_jobs import run_export
    from thinrow.store.times import readable_time

    with progress_bar() as progress:
        report = run_export(config, access, progress)
    shown: dict[str, object] = {
        "events": report.events,
        "arrived since": "ever" if report.from_ts is None else readable_time(report.from_ts),
        "and before": readable_time(config.watermark_ts),
        "written": readable_bytes(config.events.stat().st_size),
    }
    out.print(facts(str(config.events), shown))
    out.print(
        f"Then build the next generation: thinrow compact {config.events} --store STORE --schema "
        f"SCHEMA --watermark {config.watermark_ts}",
        soft_wrap=True,
    )
