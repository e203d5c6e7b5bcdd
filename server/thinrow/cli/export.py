"""`thinrow export`: the mutable tier's events, for compaction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from thinrow.cli.command import TIME, command
from thinrow.cli.values import parse_time
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import facts, out, progress_bar, readable_bytes

__all__ = ["app"]

app = typer.Typer()


@command(app, "export")
def export_command(
    online: Annotated[str, typer.Option(metavar="HOST:PORT", help="The online server.")],
    watermark: Annotated[
        int,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help="Write every event that arrived before this time, and close the past: no event "
            f"can arrive before it any more. {TIME.capitalize()}.",
        ),
    ],
    events: Annotated[Path, typer.Option("--out", help="Parquet file of events to write.")],
    access: Access,
    since: Annotated[
        int | None,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help="Leave out events that arrived before this time. [default: the last published "
            "watermark]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the mutable tier's events to a file, for compact; safe to run again."""
    from thinrow.client.online import connect_online
    from thinrow.events.units import check_typed
    from thinrow.jobs.export import export_events
    from thinrow.store.times import readable_time

    check_typed(watermark, "--watermark")
    check_typed(since or 0, "--since")
    with connect_online(online, access.config()) as client, progress_bar() as progress:
        report = export_events(
            client, watermark, events, since, lambda done: progress("Reading events", done, done)
        )
    shown: dict[str, object] = {
        "events": report.events,
        "arrived since": "ever" if report.from_ts is None else readable_time(report.from_ts),
        "and before": readable_time(watermark),
        "written": readable_bytes(events.stat().st_size),
    }
    out.print(facts(str(events), shown))
    out.print(
        f"Then build the next generation: thinrow compact {events} --store STORE --schema "
        f"SCHEMA --watermark {watermark}",
        soft_wrap=True,
    )
