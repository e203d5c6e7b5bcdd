"""``thinrow online`` and ``thinrow export``: the mutable tier, and its events for compaction."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer
from thinrow.cli.options import (
    Ca,
    CacheBytesMax,
    CallsMax,
    Cert,
    ConnectionsMax,
    Drain,
    FirstRequest,
    Idle,
    Key,
    Listen,
    Metrics,
    Reflection,
    RequestBytesMax,
    ResponseBytesMax,
    StreamsMax,
    Tenants,
    TlsCert,
    TlsClientCa,
    TlsKey,
    TokenFile,
    WorkBytesMax,
    metrics_at,
    serve_until_told,
)
from thinrow.cli.values import parse_duration, parse_time
from thinrow.jobs.console import facts, one_sentence, out, progress_bar, readable_bytes

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
    listen: Listen = "127.0.0.1:7888",
    metrics: Metrics = "127.0.0.1:7889",
    tenants: Tenants = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    reflection: Reflection = True,
    request_bytes_max: RequestBytesMax = 16 * 1024 * 1024,
    response_bytes_max: ResponseBytesMax = 64 * 1024 * 1024,
    work_bytes_max: WorkBytesMax = 1024 * 1024 * 1024,
    cache_bytes_max: CacheBytesMax = 1024 * 1024 * 1024,
    calls_max: CallsMax = 256,
    streams_max: StreamsMax = 64,
    connections_max: ConnectionsMax = 512,
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
    first_request: FirstRequest = "30s",  # type: ignore[assignment]
    idle: Idle = "10m",  # type: ignore[assignment]
    drain: Drain = "10s",  # type: ignore[assignment]
) -> None:
    """Take events and answer snapshots until SIGTERM or Ctrl-C."""
    with one_sentence():
        from thinrow.online.config import OnlineConfig
        from thinrow.online.server import OnlineServer

        config = OnlineConfig(
            store=store,
            data=data,
            schema=schema,
            listen=listen,
            metrics=metrics_at(metrics),
            tenants=tenants,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            reflection=reflection,
            request_bytes_max=request_bytes_max,
            response_bytes_max=response_bytes_max,
            work_bytes_max=work_bytes_max,
            cache_bytes_max=cache_bytes_max,
            calls_max=calls_max,
            streams_max=streams_max,
            connections_max=connections_max,
            retention_ms=retention,
            dedup_window_ms=dedup_window,
            first_request_s=first_request / 1000,
            idle_s=idle / 1000,
            drain_s=drain / 1000,
        )
        # What is here then stays: looking through it for garbage keeps requests waiting.
        serve_until_told(OnlineServer(config), freeze_garbage)


def freeze_garbage() -> None:
    """Keeps what is here now from the garbage collector."""
    gc.collect()
    gc.freeze()


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
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Write the mutable tier's events to a file, for compact; safe to run again."""
    with one_sentence():
        from thinrow.client.online import connect_online
        from thinrow.events.times import check_typed
        from thinrow.jobs.connecting import Access
        from thinrow.jobs.export import export_events
        from thinrow.store.times import readable_time

        check_typed(watermark, "--watermark")
        check_typed(since or 0, "--since")
        access = Access(ca=ca, cert=cert, key=key, token_file=token_file)
        with connect_online(online, access.config()) as client, progress_bar() as progress:
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
