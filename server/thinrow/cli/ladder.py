"""`thinrow ladder`: quality and bytes at several sequence lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from thinrow.cli.command import command
from thinrow.jobs.config import TARGET
from thinrow.jobs.connecting import Access

__all__ = ["app"]

app = typer.Typer()


@command(app, "ladder")
def ladder_command(
    access: Access,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Thin rows with a label_TARGET. [default: The Complete Journey's, made here]",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar=TARGET, help="The server, or the store, of their histories."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Trait that the model predicts; integer or categorical.")
    ] = "item_id",
    lengths: Annotated[
        str, typer.Option(help="Sequence lengths, with commas between.")
    ] = "16,64,256,1024,full",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the examples.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings at each length.")] = 1,
    folder: Annotated[
        Path, typer.Option("--out", help="Folder for ladder.png, ladder.md and their inputs.")
    ] = Path(".demo/ladder"),
) -> None:
    """Train one model at several sequence lengths; plot its quality and its bytes."""
    from thinrow.demo.ladder import parse_lengths, run_ladder

    run_ladder(
        folder,
        rows,
        server or [],
        target=target,
        lengths=parse_lengths(lengths),
        epochs=epochs,
        seeds=seeds,
        access=access,
    )
