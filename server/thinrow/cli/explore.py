"""`thinrow explore`: a page that shows histories as serving saw them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from thinrow.cli.command import command
from thinrow.cli.options import SERVER
from thinrow.jobs.config import TARGET
from thinrow.jobs.connecting import Access

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["app"]

app = typer.Typer()


@command(app, "explore")
def explore_command(
    access: Access,
    server: Annotated[list[str] | None, SERVER] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="A store, instead of --server."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(help="Parquet files of thin rows to pick from, repeat to name several."),
    ] = None,
    tenants: Annotated[
        Path | None,
        typer.Option(help="TOML file of tenants for a store, as thinrow serve reads it."),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of the page; port 0 for a free one.")
    ] = "127.0.0.1:0",
) -> None:
    """Show a page where you pick a user or a thin row and see the history as serving saw it."""
    from thinrow.cli.serving import serve_until_stopped
    from thinrow.errors import UsageError
    from thinrow.explore.serving import explorer
    from thinrow.jobs.console import out
    from thinrow.store.place import is_url

    if bool(server) == (store is not None):
        raise UsageError(f"Give --server {TARGET} or --store FOLDER|URL, one of the two.")
    targets = server or []
    if store is not None:
        targets = [store if is_url(store) else str(Path(store).absolute())]

    @contextmanager
    def page() -> Iterator[None]:
        with explorer(targets, rows or (), listen, access=access, tenants=tenants) as address:
            out.print(f"Open http://{address}/ in a browser; Ctrl-C ends it.", soft_wrap=True)
            yield

    serve_until_stopped(page())
