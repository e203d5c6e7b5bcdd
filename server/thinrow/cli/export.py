"""`thinrow export`: the mutable tier's events, for compaction."""

from __future__ import annotations

import typer
from thinrow.cli.command import command
from thinrow.cli.compact import print_refusals
from thinrow.jobs.config import ExportConfig
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import facts, out, progress_bar, readable_bytes
from thinrow.jobs.topic.config import BrokersConfig

__all__ = ["app"]

app = typer.Typer()


@command(app, "export")
def export_command(config: ExportConfig, brokers: BrokersConfig, access: Access) -> None:
    """Write the mutable tier's events, or a topic's, to a file, for compact; safe to run again."""
    from thinrow.jobs.connected_jobs import run_export
    from thinrow.store.times import readable_time

    with progress_bar() as progress:
        report = run_export(config, access, brokers, progress)
    shown: dict[str, object] = {
        "events": report.events,
        "arrived since": "ever" if report.from_ts is None else readable_time(report.from_ts),
        "and before": readable_time(config.watermark_ts),
        "duplicates dropped": report.duplicates,
        "written": readable_bytes(config.events.stat().st_size),
    }
    out.print(facts(str(config.events), shown))
    print_refusals(report.messages_refused, report.refusals)
    out.print(
        f"Then build the next generation: thinrow compact {config.events} --store "
        f"{config.store or 'STORE'} --schema {config.schema or 'SCHEMA'} "
        f"--watermark {config.watermark_ts}",
        soft_wrap=True,
    )
