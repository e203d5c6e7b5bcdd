"""Options that several commands have, and what they mean together."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from thinrow.cli.values import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

# Of what listens.
Listen = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Where to serve gRPC; port 0 takes a free one.")
]
Metrics = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="Where Prometheus scrapes /metrics; 'off' for none."),
]
Tenants = Annotated[
    Path | None, typer.Option(help="TOML file of named projections, their tokens and limits.")
]
TlsCert = Annotated[Path | None, typer.Option(help="PEM file of a certificate, to serve over TLS.")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file of its key.")]
TlsClientCa = Annotated[
    Path | None, typer.Option(help="PEM file: callers must show a certificate of these.")
]
Reflection = Annotated[bool, typer.Option(help="Tell everybody the names of methods and messages.")]
RequestBytesMax = Annotated[int, typer.Option(help="Most bytes in one request.")]
ResponseBytesMax = Annotated[int, typer.Option(help="Most bytes in one answer.")]
WorkBytesMax = Annotated[
    int, typer.Option(help="Most decoded bytes that requests in work may hold together.")
]
CacheBytesMax = Annotated[
    int,
    typer.Option(
        help="Most memory of stored values that were read; twice that when a new generation "
        "takes over."
    ),
]
CallsMax = Annotated[int, typer.Option(help="Most single calls at once.")]
StreamsMax = Annotated[int, typer.Option(help="Most streams open at once.")]
ConnectionsMax = Annotated[int, typer.Option(help="Most connections at once.")]
Drain = Annotated[
    int,
    typer.Option(
        parser=parse_duration,
        metavar="DURATION",
        help="How long calls under way may take to end after SIGTERM.",
    ),
]
FirstRequest = Annotated[
    int,
    typer.Option(
        parser=parse_duration,
        metavar="DURATION",
        help="How long a call's first request may take to arrive.",
    ),
]
Idle = Annotated[
    int,
    typer.Option(
        parser=parse_duration,
        metavar="DURATION",
        help="How long a stream may be idle, or an answer unread.",
    ),
]

# Of what reads times.
TimeUnitOption = Annotated[
    Literal["s", "ms", "us", "ns"] | None,
    typer.Option(
        "--time-unit",
        help="Unit of times that are integers. [default: ms, and other units are refused]",
        show_default=False,
    ),
]
CadenceOffset = Annotated[
    int,
    typer.Option(
        parser=parse_duration,
        metavar="DURATION",
        help="Move the cadence's cuts from midnight UTC: 5h for 05:00.",
    ),
]

# Of what connects.
Ca = Annotated[
    Path | None, typer.Option(help="PEM file: the server must show a certificate of these.")
]
Cert = Annotated[Path | None, typer.Option(help="PEM file of a certificate to show the server.")]
Key = Annotated[Path | None, typer.Option(help="PEM file of its key.")]
TokenFile = Annotated[Path | None, typer.Option(help="File that holds the token to carry.")]

# Of fat rows.
FatOrder = Annotated[
    Literal["oldest-first", "newest-first", "arrival"],
    typer.Option(help="How the lists of fat rows stand: by event_ts, or in the order of arrival."),
]
FatPadding = Annotated[
    Literal["none", "left", "right"] | None,
    typer.Option(
        help="The side at which lists are padded; none if events that look so are events. "
        "[default: none, and refuse rows that look padded]",
        show_default=False,
    ),
]
FatPaddingValue = Annotated[
    str,
    typer.Option(
        metavar="[COLUMN=]VALUE",
        help="Events at that side are padding if their COLUMN (event_ts unless named) has this "
        "value: a number, null, nan or a text.",
    ),
]


def metrics_at(metrics: str) -> str | None:
    """Where metrics are shown, as typed; None for 'off'."""
    return None if metrics == "off" else metrics


def serve_until_told(
    serving: AbstractContextManager[object], once_serving: Callable[[], None] = lambda: None
) -> None:
    """Serves until SIGTERM or Ctrl-C, and logs to standard error."""
    from thinrow.access.config import FREED_BYTES_KEPT
    from thinrow.access.logs import log_to_stderr
    from thinrow.core.memory import keep_freed_memory

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log_to_stderr()
    keep_freed_memory(FREED_BYTES_KEPT)
    with serving:
        once_serving()
        stop.wait()
