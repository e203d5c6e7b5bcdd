"""`thinrow online`: the server of the mutable tier."""

from __future__ import annotations

import gc

import typer
from thinrow.cli.command import command
from thinrow.cli.serving import serve_until_stopped
from thinrow.online.config import OnlineConfig

__all__ = ["app"]

app = typer.Typer()


@command(app, "online")
def online_command(config: OnlineConfig) -> None:
    """Take events and answer snapshots until SIGTERM or Ctrl-C."""
    from thinrow.access.memory import loading, set_up_memory

    set_up_memory()
    with loading():
        from thinrow.online.server import OnlineServer

    # A garbage collection over everything that the start allocated would delay requests.
    server = OnlineServer(config)
    serve_until_stopped(server, _freeze_garbage, may_leave=lambda: server.is_rebuilding)


def _freeze_garbage() -> None:
    """Exempts all present objects from garbage collection."""
    gc.collect()
    gc.freeze()
