"""`thinrow wall`: costs of fat rows and thin rows at every length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from thinrow.cli.command import command
from thinrow.jobs.config import TARGET
from thinrow.jobs.connecting import Access
from thinrow.wall.config import GivenFigures, Power

__all__ = ["app"]

app = typer.Typer()


@command(app, "wall")
def wall_command(
    figures: GivenFigures,
    power: Power,
    access: Access,
    rows: Annotated[
        Path | None,
        typer.Option(help="Thin rows to take figures from. [default: assumed]", show_default=False),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar=TARGET, help="The server, or the store, of their histories."),
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
    picture: Annotated[Path, typer.Option("--out", help="PNG file to draw.")] = Path("wall.png"),
) -> None:
    """Report what fat rows and thin rows cost at every length, and where the fat-row wall is.

    Figures come from --rows and --server, or are assumed; a figure that is given replaces them.
    """
    from thinrow.wall.command import parse_tenants, run_wall

    run_wall(
        parse_tenants(tenant or ["long=16384", "mid=4096", "short=256"]),
        power,
        figures,
        rows,
        server or [],
        picture,
        access,
    )
