"""`thinrow token`: a new token and its hash."""

from __future__ import annotations

import typer
from thinrow.cli.command import command
from thinrow.jobs.console import out

__all__ = ["app"]

app = typer.Typer()


@command(app, "token")
def token_command() -> None:
    """Make a token for a tenant: callers carry it, and the tenants file holds only its hash."""
    from thinrow.access.tenants import new_token

    token, token_sha256 = new_token()
    out.print(f"token: {token}", soft_wrap=True)
    out.print(f'token_sha256 = ["{token_sha256}"]', soft_wrap=True)
