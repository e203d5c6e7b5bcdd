"""`thinrow serve`: the materialization server."""

from __future__ import annotations

import typer
from thinrow.cli.command import command
from thinrow.cli.serving import serve_until_stopped
from thinrow.materialization.config import ServerConfig

__all__ = ["app"]

app = typer.Typer()


@command(app, "serve")
def serve_command(config: ServerConfig) -> None:
    """Serve a store until SIGTERM or Ctrl-C; new generations are taken up as they appear."""
    from thinrow.access.memory import loading, set_up_memory

    set_up_memory()
    with loading():
        from thinrow.materialization.processes import Processes
        from thinrow.materialization.server import Server

    server = Server(config) if config.processes == 1 else Processes(config)
    serve_until_stopped(server, may_leave=lambda: server.is_copying)
