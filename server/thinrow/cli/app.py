"""The command `thinrow`: one module for each of its commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer
from thinrow.cli import (
    backfill,
    cluster,
    compact,
    demo,
    explore,
    export,
    fill,
    inspect,
    ladder,
    materialize,
    online,
    research,
    schema,
    serve,
    slim,
    store,
    token,
    verify,
    wall,
)
from thinrow.jobs.console import out

__all__ = ["app"]

app = typer.Typer(
    help="Store user histories once, and put them back at training time exactly as serving saw "
    "them. Start with: thinrow demo, or with your own log: thinrow research",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"thinrow {version('thinrow')}")
        raise typer.Exit


@app.callback()
def thinrow(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Holds the options that stand before a command."""


for module in (
    *(research, schema),
    *(compact, fill, backfill, serve, materialize, verify, inspect, explore),
    *(token, demo, ladder, slim, wall),
    *(online, export),
):
    app.add_typer(module.app)
app.add_typer(store.app, name="store")
app.add_typer(cluster.app, name="cluster")
