"""`thinrow inspect`: one history, readable."""

from __future__ import annotations

from typing import Annotated

import typer
from thinrow.cli.command import TIME, command
from thinrow.cli.options import Target, Traits
from thinrow.cli.values import parse_time
from thinrow.jobs.connecting import Access
from thinrow.jobs.console import out
from thinrow.jobs.option_values import names_of

__all__ = ["app"]

app = typer.Typer()


@command(app, "inspect")
def inspect_command(
    server: Target,
    user: Annotated[str, typer.Option(help="Id of the user.")],
    access: Access,
    as_of: Annotated[
        int,
        typer.Option(
            parser=parse_time,
            metavar="TIME",
            help=f"Show what a request at this time was served: {TIME}. [default: the newest]",
            show_default=False,
        ),
    ] = "0",  # type: ignore[assignment] # the parser reads defaults, too
    limit: Annotated[int, typer.Option(help="Maximum number of events, the newest.")] = 20,
    traits: Traits = "",
) -> None:
    """Show one history in readable form."""
    from thinrow.cli.history_table import history_table
    from thinrow.client import Projection
    from thinrow.events.units import check_typed
    from thinrow.jobs.connecting import connected

    check_typed(as_of, "--as-of")
    with connected(server, access) as client:
        answer = client.inspect(user, as_of, Projection(limit, traits=names_of(traits)))
        groups = client.describe_store().feature_groups
    names = [trait.name for group in groups for trait in group.traits]
    out.print(*history_table(user, answer, names), sep="\n", soft_wrap=True)
