"""Options that several commands share and that belong to no configuration."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["SequenceLength", "Target", "Traits"]

Target = Annotated[
    list[str],
    typer.Option("--server", metavar="HOST:PORT", help="The server; repeat to name replicas."),
]
Traits = Annotated[
    str,
    typer.Option(help="Only these traits, by name with commas between. [default: all]"),
]
SequenceLength = Annotated[
    int, typer.Option(help="Maximum number of events of each history, the newest; 0 for all.")
]
