"""`thinrow demo`: the whole loop on real events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from thinrow.cli.command import command

__all__ = ["app"]

app = typer.Typer()


@command(app, "demo")
def demo_command(
    directory: Annotated[Path, typer.Option(help="Folder for the demo's files.")] = Path(".demo"),
    dataset: Annotated[
        Literal["movielens", "completejourney"], typer.Option(help="Real events to use.")
    ] = "movielens",
) -> None:
    """Run the whole loop on real events, ending in a model trained from the stream."""
    from thinrow.demo.demo import run_demo

    run_demo(directory, dataset)
