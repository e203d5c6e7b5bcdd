"""`thinrow materialize`: fat rows again, for export and audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from thinrow.cli.command import command
from thinrow.cli.options import SequenceLength, Target, Traits
from thinrow.cli.values import parse_names
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import facts, out, progress_bar, readable_bytes

__all__ = ["app"]

app = typer.Typer()


@command(app, "materialize")
def materialize_command(
    rows: Annotated[str, typer.Argument(help="Parquet of thin rows.")],
    server: Target,
    fat: Annotated[Path, typer.Option("--out", help="Parquet file of fat rows to write.")],
    access: Access,
    sequence_length: SequenceLength = 0,
    traits: Traits = "",
    truncation: Annotated[
        Literal["newest", "head"], typer.Option(help="End of a long history that is kept.")
    ] = "newest",
    as_served: Annotated[
        bool, typer.Option(help="Refuse traits that were filled after events were served.")
    ] = False,
    tenant: Annotated[
        str, typer.Option(help="Use the projection that the server has under this name.")
    ] = "",
) -> None:
    """Write fat rows again, for export and audit; each row has its status."""
    from thinrow.client import Projection
    from thinrow.errors import UsageError
    from thinrow.jobs.connecting import connected
    from thinrow.jobs.materialize import materialize

    projection: Projection | str = tenant
    if not tenant:
        wanted = tuple(name for name in parse_names(traits) if name != "event_ts")
        projection = Projection(
            sequence_length,
            traits=("event_ts", *wanted) if parse_names(traits) else (),
            truncation=truncation,
            as_served=as_served,
        )
    elif sequence_length or traits or truncation != "newest" or as_served:
        raise UsageError(
            "A tenant brings its own length, traits, truncation and as_served; give --tenant alone."
        )
    with connected(server, access) as client, progress_bar() as progress:
        report = materialize(client, rows, projection, fat, progress)
    shown: dict[str, object] = {"rows": report.rows, "events": report.events}
    shown |= {f"rows {status}": count for status, count in sorted(report.statuses.items())}
    if report.filled:
        shown["filled after events were served"] = ", ".join(report.filled)
    shown["written"] = readable_bytes(fat.stat().st_size)
    out.print(facts(str(fat), shown))
