"""The commands, as typed. Each reads its options and hands over to the package that does it."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from thinrow.cli.online import commands as online_commands
from thinrow.cli.options import (
    Ca,
    CacheBytesMax,
    CadenceOffset,
    CallsMax,
    Cert,
    ConnectionsMax,
    Drain,
    FatOrder,
    FatPadding,
    FatPaddingValue,
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
    TimeUnitOption,
    TlsCert,
    TlsClientCa,
    TlsKey,
    TokenFile,
    WorkBytesMax,
    metrics_at,
    serve_until_told,
)
from thinrow.cli.store import commands as store_commands
from thinrow.cli.times import (
    print_far_rows,
    print_outliers,
    print_ties,
    print_uncut,
    time_facts,
)
from thinrow.cli.values import parse_duration, parse_time
from thinrow.jobs.console import (
    EXIT_FAILED,
    facts,
    one_sentence,
    out,
    progress_bar,
    readable_bytes,
)

app = typer.Typer(
    help="Store user histories once, and put them back at training time exactly as serving saw "
    "them. Start with: thinrow demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Defaults that a parser reads are given as typed: the command shows them so.
DURATION = "a number and ms, s, m, h, d or w, such as 1d"
YEAR_2000_TS = 946_684_800_000
TIME = "milliseconds since the epoch, or ISO 8601 in UTC, such as 2026-01-31"


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"thinrow {version('thinrow')}")
        raise typer.Exit


@app.callback()
def thinrow(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Holds the options that stand before a command."""


@app.command("compact")
def compact_command(
    events: Annotated[
        list[str],
        typer.Argument(metavar="EVENTS...", help="Parquet files, folders, globs, URLs."),
    ],
    store: Annotated[Path, typer.Option(help="Folder of the store; made where there is none.")],
    schema: Annotated[Path, typer.Option(help="TOML file of feature groups and traits.")],
    watermark: Annotated[
        int,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help=f"The generation holds every event that arrived before: {TIME}.",
        ),
    ],
    shards: Annotated[
        int | None, typer.Option(help="Shards of a new store. [default: 4]", show_default=False)
    ] = None,
    cadence: Annotated[
        int | None,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help=f"Also cut a generation at every multiple of this: {DURATION}.",
        ),
    ] = None,
    cadence_offset: CadenceOffset = "0h",  # type: ignore[assignment]
    time_unit: TimeUnitOption = None,
    dedup_window: Annotated[
        int,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How far before the last watermark to look for duplicates in the store.",
        ),
    ] = "7d",  # type: ignore[assignment]
    lookback: Annotated[
        int | None,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="Drop events older than this before the watermark.",
        ),
    ] = None,
    erase: Annotated[
        str | None,
        typer.Option(
            metavar="USERS",
            help="Erase these users: Parquet with user_id, or a text file with one id a line.",
        ),
    ] = None,
    accept_late: Annotated[
        bool,
        typer.Option(
            "--accept-late",
            help="Take events from before the last watermark as arriving now, not as known.",
        ),
    ] = False,
    keep: Annotated[
        int | None, typer.Option(help="Remove old generations but for this many newest.")
    ] = None,
) -> None:
    """Build and publish the next generation of a store from raw events."""
    with one_sentence():
        from thinrow.compaction import CompactionConfig, compact
        from thinrow.store.times import readable_time

        config = CompactionConfig(
            store=store,
            events=events,
            schema=schema,
            watermark_ts=watermark,
            shards=shards,
            cadence_ms=cadence,
            cadence_offset_ms=cadence_offset,
            time_unit=time_unit,
            dedup_window_ms=dedup_window,
            lookback_ms=lookback,
            erase_users=erase,
            accept_late=accept_late,
            keep=keep,
        )
        with progress_bar() as progress:
            report = compact(config, progress)
        if report.already_published:
            out.print(f"Generation {report.generation} was already built by this very run.")
            return
        shown: dict[str, object] = {
            "watermark": readable_time(report.watermark_ts),
            "rows read": report.rows_read,
            **time_facts(report.times),
            "events added": report.events_added,
            "duplicates dropped": report.duplicates,
            "events tied: ordered by their traits": report.tied_events,
            "skipped: before the last watermark": report.late,
            "left for later: at or after this watermark": report.left_for_later,
            "events dropped by retention and erasure": report.events_dropped,
            "users erased": report.erased_users,
            "events in the store": report.event_count,
            "users in the store": report.user_count,
            "stored": readable_bytes(report.stored_bytes),
        }
        out.print(facts(f"Generation {report.generation} of {store}", shown))
        print_outliers(report.times)
        print_uncut(report)
        print_ties(report)
        if watermark < YEAR_2000_TS:
            out.print("The watermark lies before 2000: times are in milliseconds, not seconds.")
        elif watermark > time.time() * 1000:
            out.print("The watermark lies in the future: what arrives before it will be too late.")
        if erase is not None and keep != 1:
            out.print("Older generations still hold the users erased: --keep 1 removes those.")
        if report.ignored_columns:
            out.print(f"Not in the schema, so not stored: {', '.join(report.ignored_columns)}")


@app.command("backfill")
def backfill_command(
    requests: Annotated[
        str, typer.Argument(help="Parquet with user_id, request_ts and any other columns.")
    ],
    store: Annotated[Path, typer.Option(help="Folder of the store to point at.")],
    events: Annotated[
        list[str], typer.Option(help="Raw events as given to compact; may be repeated.")
    ],
    rows: Annotated[Path, typer.Option("--out", help="Parquet file of thin rows to write.")],
    more_events: Annotated[
        list[str] | None, typer.Argument(metavar="[MORE_EVENTS]...", help="More event files.")
    ] = None,
    cadence: Annotated[
        int | None,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="Refuse a store that was not cut at every multiple of this. [default: the "
            "store's watermarks are taken as they are]",
            show_default=False,
        ),
    ] = None,
    cadence_offset: CadenceOffset = "0h",  # type: ignore[assignment]
    time_unit: TimeUnitOption = None,
    publish_delay: Annotated[
        int,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How long after its watermark each was published.",
        ),
    ] = "0ms",  # type: ignore[assignment]
    lookback: Annotated[
        int | None,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="How far before its request a history reaches. [default: no bound]",
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Most immutable events of a history; 0 for no limit.")
    ] = 0,
) -> None:
    """Write thin rows for past requests, as if they had been logged then."""
    with one_sentence():
        from thinrow.jobs.backfill import BackfillConfig, backfill

        config = BackfillConfig(
            requests=requests,
            store=store,
            events=[*events, *(more_events or [])],
            rows=rows,
            cadence_ms=cadence,
            cadence_offset_ms=cadence_offset,
            time_unit=time_unit,
            publish_delay_ms=publish_delay,
            lookback_ms=lookback,
            max_length=max_length,
        )
        with progress_bar() as progress:
            report = backfill(config, progress)
        shown: dict[str, object] = {
            "thin rows": report.rows,
            **time_facts(report.times),
            "events carried inside": report.mutable_events,
            "rows before the first generation": report.before_first_generation,
            "rows without digest: history cut or erased": report.without_digest,
            "written": readable_bytes(rows.stat().st_size),
        }
        out.print(facts(str(rows), shown))
        print_outliers(report.times)
        print_far_rows(report)


@app.command("serve")
def serve_command(
    store: Annotated[Path, typer.Option(help="Folder of the store.")],
    listen: Listen = "127.0.0.1:7878",
    metrics: Metrics = "127.0.0.1:7879",
    tenants: Tenants = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    reflection: Reflection = True,
    inspect: Annotated[bool, typer.Option(help="Answer Inspect.")] = True,
    processes: Annotated[
        int,
        typer.Option(help="Processes that share the port; each has the limits below to itself."),
    ] = 1,
    examples_max: Annotated[int, typer.Option(help="Most examples in one request.")] = 8192,
    request_bytes_max: RequestBytesMax = 1024 * 1024,
    response_bytes_max: ResponseBytesMax = 64 * 1024 * 1024,
    cache_bytes_max: CacheBytesMax = 1024 * 1024 * 1024,
    work_bytes_max: WorkBytesMax = 1024 * 1024 * 1024,
    calls_max: CallsMax = 64,
    streams_max: StreamsMax = 64,
    connections_max: ConnectionsMax = 512,
    first_request: FirstRequest = "30s",  # type: ignore[assignment]
    idle: Idle = "10m",  # type: ignore[assignment]
    drain: Drain = "10s",  # type: ignore[assignment]
) -> None:
    """Serve a store until SIGTERM or Ctrl-C; new generations are taken up as they appear."""
    with one_sentence():
        from thinrow.materialization import Processes, Server, ServerConfig

        config = ServerConfig(
            store=store,
            listen=listen,
            metrics=metrics_at(metrics),
            tenants=tenants,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            reflection=reflection,
            inspect=inspect,
            processes=processes,
            examples_max=examples_max,
            request_bytes_max=request_bytes_max,
            response_bytes_max=response_bytes_max,
            cache_bytes_max=cache_bytes_max,
            work_bytes_max=work_bytes_max,
            calls_max=calls_max,
            streams_max=streams_max,
            connections_max=connections_max,
            first_request_s=first_request / 1000,
            idle_s=idle / 1000,
            drain_s=drain / 1000,
        )
        serve_until_told(Server(config) if processes == 1 else Processes(config))


Target = Annotated[
    list[str],
    typer.Option("--server", metavar="HOST:PORT", help="The server; repeat to name replicas."),
]
Traits = Annotated[
    str,
    typer.Option(help="Only these traits, by name with commas between. [default: all]"),
]
SequenceLength = Annotated[
    int, typer.Option(help="Most events of each history, the newest; 0 for all.")
]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@app.command("materialize")
def materialize_command(
    rows: Annotated[str, typer.Argument(help="Parquet of thin rows.")],
    server: Target,
    fat: Annotated[Path, typer.Option("--out", help="Parquet file of fat rows to write.")],
    sequence_length: SequenceLength = 0,
    traits: Traits = "",
    truncation: Annotated[
        Literal["newest", "head"], typer.Option(help="Which end of a long history stays.")
    ] = "newest",
    tenant: Annotated[
        str, typer.Option(help="Use the projection that the server knows by this name.")
    ] = "",
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Write fat rows again, for export and audit; every row says its status."""
    with one_sentence():
        from thinrow.client import Projection
        from thinrow.errors import UsageError
        from thinrow.jobs.connecting import Access, connected
        from thinrow.jobs.materialize import materialize

        projection: Projection | str = tenant
        if not tenant:
            wanted = _names(traits)
            projection = Projection(
                sequence_length,
                traits=("event_ts", *(name for name in wanted if name != "event_ts"))
                if wanted
                else (),
                truncation=truncation,
            )
        elif sequence_length or traits or truncation != "newest":
            raise UsageError(
                "A tenant brings its own length, traits and truncation; give --tenant alone."
            )
        access = Access(ca=ca, cert=cert, key=key, token_file=token_file)
        with connected(server, access) as client, progress_bar() as progress:
            report = materialize(client, rows, projection, fat, progress)
        shown: dict[str, object] = {"rows": report.rows, "events": report.events}
        shown |= {f"rows {status}": count for status, count in sorted(report.statuses.items())}
        shown["written"] = readable_bytes(fat.stat().st_size)
        out.print(facts(str(fat), shown))


@app.command("verify")
def verify_command(
    rows: Annotated[str, typer.Argument(help="Parquet of thin rows.")],
    server: Target,
    against: Annotated[
        str, typer.Option(metavar="FAT", help="Parquet of fat rows, in the same order.")
    ],
    sequence_length: SequenceLength = 0,
    order: FatOrder = "oldest-first",
    padding: FatPadding = None,
    padding_value: FatPaddingValue = "0",
    time_unit: TimeUnitOption = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Compare what training would see with fat rows, event by event; exit 1 where they differ."""
    with one_sentence():
        from thinrow.jobs.connecting import Access, connected
        from thinrow.jobs.layout import FatLayout
        from thinrow.jobs.verify import difference_fields, verify

        layout = FatLayout(order=order, padding=padding, padding_value=padding_value)
        access = Access(ca=ca, cert=cert, key=key, token_file=token_file)
        with connected(server, access) as client, progress_bar() as progress:
            report = verify(client, rows, against, sequence_length, progress, layout, time_unit)
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
        if not report.rows_that_differ:
            out.print("[bold green]Every event is equal.[/]")
            return
        table = Table("row", "user", "request_ts", "where", "fat row", "thin row")
        for difference in report.differences:
            table.add_row(*difference_fields(difference))
        out.print("The first differences:", table, sep="\n")
        raise typer.Exit(EXIT_FAILED)


@app.command("inspect")
def inspect_command(
    server: Target,
    user: Annotated[int, typer.Option(help="The user's id.")],
    as_of: Annotated[
        int,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help="Show what a request at this moment was served. [default: the newest]",
            show_default=False,
        ),
    ] = "0",  # type: ignore[assignment]
    limit: Annotated[int, typer.Option(help="Most events to show, the newest.")] = 20,
    traits: Traits = "",
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Show one history, as a person reads it."""
    with one_sentence():
        from thinrow.cli.history_table import history_table
        from thinrow.client import Projection
        from thinrow.events.times import check_typed
        from thinrow.jobs.connecting import Access, connected

        check_typed(as_of, "--as-of")
        with connected(server, Access(ca=ca, cert=cert, key=key, token_file=token_file)) as client:
            answer = client.inspect(user, as_of, Projection(limit, traits=_names(traits)))
            groups = client.describe_store().feature_groups
        names = [trait.name for group in groups for trait in group.traits]
        out.print(*history_table(user, answer, names), sep="\n", soft_wrap=True)


@app.command("token")
def token_command() -> None:
    """Make a token for a tenant: the caller carries it, the tenants file has its hash alone."""
    with one_sentence():
        from thinrow.access.tenants import new_token

        token, token_sha256 = new_token()
        out.print(f"token: {token}", soft_wrap=True, highlight=False, markup=False)
        out.print(
            f'token_sha256 = ["{token_sha256}"]', soft_wrap=True, highlight=False, markup=False
        )


app.add_typer(online_commands)
app.add_typer(store_commands, name="store")


@app.command("demo")
def demo_command(
    directory: Annotated[Path, typer.Option(help="Folder for the demo's files.")] = Path(".demo"),
    dataset: Annotated[
        Literal["movielens", "completejourney"], typer.Option(help="Which real events to use.")
    ] = "movielens",
) -> None:
    """Run the whole loop on real events, ending in a model trained from the stream."""
    with one_sentence():
        from thinrow.demo.demo import run_demo

        run_demo(directory, dataset)


@app.command("ladder")
def ladder_command(
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Thin rows with a label_TARGET. [default: The Complete Journey's, made here]",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="The server of their histories."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Trait to tell next; integer or categorical.")
    ] = "item_id",
    lengths: Annotated[
        str, typer.Option(help="Sequence lengths, with commas between.")
    ] = "16,64,256,1024,full",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the examples.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings at each length.")] = 1,
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for ladder.png, ladder.md and what it needs.")
    ] = Path(".demo/ladder"),
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Train one model at several sequence lengths; plot its quality and its bytes."""
    with one_sentence():
        from thinrow.demo.ladder import parse_lengths, run_ladder
        from thinrow.jobs.connecting import Access

        run_ladder(
            folder,
            rows,
            server or [],
            target=target,
            lengths=parse_lengths(lengths),
            epochs=epochs,
            seeds=seeds,
            access=Access(ca=ca, cert=cert, key=key, token_file=token_file),
        )


@app.command("slim")
def slim_command(
    fat: Annotated[
        list[str], typer.Argument(metavar="FAT...", help="Parquet of fat rows: files, folders.")
    ],
    events: Annotated[Path, typer.Option("--out-events", help="Parquet file of events to write.")],
    rows: Annotated[Path, typer.Option("--out-rows", help="Parquet file of thin rows to write.")],
    schema: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of feature groups and traits. [default: derived, and written beside "
            "the events]",
            show_default=False,
        ),
    ] = None,
    cadence: Annotated[
        int,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="Generations are to be cut at every multiple of this.",
        ),
    ] = "1d",  # type: ignore[assignment]
    order: FatOrder = "oldest-first",
    padding: FatPadding = None,
    padding_value: FatPaddingValue = "0",
    cadence_offset: CadenceOffset = "0h",  # type: ignore[assignment]
    time_unit: TimeUnitOption = None,
    on_disagreement: Annotated[
        Literal["report", "fail"],
        typer.Option(help="Where rows of one user contradict each other: tell, or write nothing."),
    ] = "report",
) -> None:
    """Turn fat rows into events and thin rows that show the very same histories."""
    with one_sentence():
        from thinrow.cli.slim import run_slim
        from thinrow.jobs.layout import FatLayout
        from thinrow.jobs.slim import SlimConfig

        config = SlimConfig(
            fat=fat,
            events=events,
            rows=rows,
            schema=schema,
            cadence_ms=cadence,
            layout=FatLayout(order=order, padding=padding, padding_value=padding_value),
            cadence_offset_ms=cadence_offset,
            time_unit=time_unit,
            fail_on_disagreement=on_disagreement == "fail",
        )
        run_slim(config)


@app.command("wall")
def wall_command(
    rows: Annotated[
        Path | None,
        typer.Option(help="Thin rows to take figures from. [default: assumed]", show_default=False),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="The server of their histories."),
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LENGTH",
            help="A model and its sequence length; may be repeated. [default: long=16384, "
            "mid=4096, short=256]",
            show_default=False,
        ),
    ] = None,
    users: Annotated[float | None, typer.Option(help="Users.")] = None,
    requests: Annotated[float | None, typer.Option(help="Requests of a user in a day.")] = None,
    events: Annotated[float | None, typer.Option(help="Events of a user in a day.")] = None,
    retention: Annotated[float | None, typer.Option(help="Days that events are kept.")] = None,
    rows_kept: Annotated[float | None, typer.Option(help="Days that examples are kept.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Times that an example is used.")] = None,
    sharing: Annotated[
        float | None, typer.Option(help="Examples of a batch that share one copy of a history.")
    ] = None,
    fat_event_bytes: Annotated[
        float | None, typer.Option(help="Bytes of an event in a file of fat rows.")
    ] = None,
    store_event_bytes: Annotated[
        float | None, typer.Option(help="Bytes of an event in the store.")
    ] = None,
    sent_event_bytes: Annotated[
        float | None, typer.Option(help="Bytes of an event in a server's answer.")
    ] = None,
    thin_row_bytes: Annotated[float | None, typer.Option(help="Bytes of a thin row.")] = None,
    gpu_watts: Annotated[float, typer.Option(help="What a GPU draws.")] = 700,
    gpu_examples: Annotated[
        float, typer.Option(help="Examples that a GPU trains on in a second.")
    ] = 5000,
    service_watts: Annotated[float, typer.Option(help="What a data host draws.")] = 400,
    service_mb: Annotated[float, typer.Option(help="Megabytes that it moves in a second.")] = 200,
    picture: Annotated[Path, typer.Option("--out", help="PNG file to draw.")] = Path("wall.png"),
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Tell what fat rows and thin rows cost at every length, and where the fat-row wall is.

    Figures come from --rows and --server, or are assumed; each that is given counts instead.
    """
    with one_sentence():
        from thinrow.jobs.connecting import Access
        from thinrow.wall.command import parse_tenants, run_wall
        from thinrow.wall.model import Power

        given = {
            "users": users,
            "requests_per_day": requests,
            "events_per_day": events,
            "retention_days": retention,
            "rows_kept_days": rows_kept,
            "epochs": epochs,
            "sharing": sharing,
            "fat_row_event": fat_event_bytes,
            "store_event": store_event_bytes,
            "answer_event": sent_event_bytes,
            "thin_row": thin_row_bytes,
        }
        run_wall(
            parse_tenants(tenant or ["long=16384", "mid=4096", "short=256"]),
            Power(
                gpu_watts=gpu_watts,
                gpu_examples_s=gpu_examples,
                service_watts=service_watts,
                service_bytes_s=service_mb * 1e6,
            ),
            {name: value for name, value in given.items() if value is not None},
            rows,
            server or [],
            picture,
            Access(ca=ca, cert=cert, key=key, token_file=token_file),
        )
