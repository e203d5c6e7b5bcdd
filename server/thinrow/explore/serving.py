"""The life of the explorer: the client of its store, and its page."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thinrow.access.http_server import HttpEndpoint, get_only
from thinrow.client.channel import is_local
from thinrow.explore.explorer import Explorer
from thinrow.explore.rows import RowFiles
from thinrow.jobs.connecting import connected

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.jobs.connecting import Access

__all__ = ["explorer"]

LOOKUP_TIMEOUT_S = 60.0
"""Limit on the time of a page: long histories take some seconds to look up."""
log = logging.getLogger("thinrow.explore")


@contextmanager
def explorer(
    targets: Sequence[str],
    rows: Sequence[str] = (),
    listen: str = "127.0.0.1:0",
    *,
    access: Access | None = None,
    tenants: Path | None = None,
) -> Iterator[str]:
    """Serves the page; yields its address.

    Args:
        targets: Servers, or the folder of a store.
        rows: Files of thin rows to pick from.
        listen: HOST:PORT of the page.
        access: Credentials for servers.
        tenants: File of tenants for a store.

    Raises:
        UsageError: A target is unclear, or the port is not available.
        UnavailableError: No server answers soon.
        StoreError: The store cannot be opened.
        InputError: A file holds no thin rows.
    """
    files = RowFiles(rows) if rows else None
    with connected(targets, access, tenants) as client:
        app = Explorer(client, ", ".join(targets), files, is_local=is_local(listen))
        endpoint = HttpEndpoint(get_only(app), listen, "--listen", LOOKUP_TIMEOUT_S)
        if not is_local(listen):
            log.warning(
                "everyone who reaches this address reads histories: listen on 127.0.0.1 and reach "
                "the page through a tunnel",
                extra={"listen": listen},
            )
        try:
            yield endpoint.address
        finally:
            endpoint.close()
