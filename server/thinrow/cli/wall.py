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
    figures_file: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            metavar="FILE",
            help="File of measured figures, as `make bench-wall` writes it. [default: those of "
            "docs/reports/wall.md]",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="Thin rows to take bytes and sizes from. [default: figures and assumptions]",
            show_default=False,
        ),
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
    """Report what fat rows and thin rows cost at every length, and where their walls are.

    Unit costs are measured ones, of --figures or of --rows and their --server. Sizes of the
    platform and of its hosts are assumed. A figure that is given replaces either.
    """
    from thinrow.wall.command import parse_tenants, run_wall

    run_wall(
        parse_tenants(tenant or ["long=16384", "mid=4096", "short=256"]),
        power,
        figures,
        figures_file,
        rows,
        server or [],
        picture,
        access,
    )
