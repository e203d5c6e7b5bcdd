"""Options that several commands share and that belong to no configuration."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["SERVER", "TARGET", "SequenceLength", "Target", "Traits"]

TARGET = "HOST:PORT|STORE"
"""Value of `--server`: the address of a server, or the path of a store."""
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
SequenceLength = Annotated[
    int, typer.Option(help="Maximum number of events of each history, the newest; 0 for all.")
]
