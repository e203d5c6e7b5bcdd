"""``thinrow online`` and ``thinrow export``: the mutable tier, and its events for compaction."""

from __future__ import annotations

import gc
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from thinrow.cli.report import facts, one_sentence, out, progress_bar, readable_bytes
from thinrow.cli.values import parse_duration, parse_time

commands = typer.Typer()


@commands.command("online")
def online_command(
    store: Annotated[Path, typer.Option(help="Folder of the store; may hold nothing yet.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the mutable tier. [default: STORE-online]", show_default=False
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(help="TOML file of feature groups, until the store has a generation."),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to serve gRPC; port 0 takes a free one.")
    ] = "127.0.0.1:7888",
    metrics: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="Where Prometheus scrapes /metrics; 'off' for none."
        ),
    ] = "127.0.0.1:7889",
    tenants: Annotated[Path | None, typer.Option(help="TOML file of named projections.")] = None,
    retention: Annotated[
        int,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How long past moments can be asked about; longer than compaction's cadence.",
        ),
    ] = "2d",  # type: ignore[assignment]
    dedup_window: Annotated[
        int,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How far back to look for duplicates; not shorter than compact's.",
        ),
    ] = "7d",  # type: ignore[assignment]
    drain: Annotated[
        int,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How long calls under way may take to end after SIGTERM.",
        ),
    ] = "10s",  # type: ignore[assignment]
) -> None:
    """Take events and answer snapshots until SIGTERM or Ctrl-C."""
    with one_sentence():
        from thinrow.online.config import OnlineConfig
        from thinrow.online.server import OnlineServer
        from thinrow.serving.logs import log_to_stderr
        from thinrow.serving.memory import keep_freed_memory

        config = OnlineConfig(
            store=store,
            data=data,
            schema=schema,
            listen=listen,
            metrics=None if metrics == "off" else metrics,
            tenants=tenants,
            retention_ms=retention,
            dedup_window_ms=dedup_window,
            drain_s=drain / 1000,
        )
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        log_to_stderr()
        keep_freed_memory()
        with OnlineServer(config):
            # What is here now stays: looking through it for garbage keeps requests waiting.
            gc.collect()
            gc.freeze()
            stop.wait()


@commands.command("export")
def export_command(
    online: Annotated[str, typer.Option(metavar="HOST:PORT", help="The online server.")],
    watermark: Annotated[
        int,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help="Write every event that arrived before, and let none arrive before from now on.",
        ),
    ],
    events: Annotated[Path, typer.Option("--out", help="Parquet file of events to write.")],
    since: Annotated[
        int | None,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help="Leave out what arrived before. [default: the last published watermark]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the mutable tier's events to a file, for compact; safe to run again."""
    with one_sentence():
        from thinrow.client.online import connect_online
        from thinrow.online.export import export_events
        from thinrow.store.times import readable_time

        with connect_online(online) as client, progress_bar() as progress:
            report = export_events(
                client,
                watermark,
                events,
                since,
                lambda done: progress("Reading events", done, done),
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
