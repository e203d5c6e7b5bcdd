"""`thinrow demo`: what thin rows are for, on long histories."""

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
        Literal["completejourney", "movielens"],
        typer.Option(help="Events to use: purchases of a year, or film ratings."),
    ] = "completejourney",
) -> None:
    """Compare thin rows with fat rows on long histories, and train a model from the stream."""
    from thinrow.demo.demo import run_demo

    run_demo(directory, dataset)
