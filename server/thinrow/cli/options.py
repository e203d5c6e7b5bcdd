"""Options that several commands share and that belong to no configuration."""

from __future__ import annotations

from typing import Annotated

import typer
from thinrow.jobs.config import TARGET

__all__ = ["SERVER", "Target", "Traits"]

SERVER = typer.Option(
    "--server",
    metavar=TARGET,
    help="The server, repeat to name replicas; or the folder of a store, read without one.",
)
Target = Annotated[list[str], SERVER]
Traits = Annotated[
    str,
    typer.Option(help="Only these traits, by name with commas between. [default: all]"),
]
