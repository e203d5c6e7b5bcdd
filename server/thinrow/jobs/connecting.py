"""Connections of commands to servers and stores.

A first call to a server fails soon, later ones are retried for longer.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from thinrow.core.files.io_errors import failure_reason
from thinrow.core.settings import setting
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from thinrow.client import Client, ClientConfig

__all__ = ["FIRST_ANSWER_S", "Access", "connected"]

FIRST_ANSWER_S = 5.0
"""Longest wait for a first answer, so that a mistyped address is reported soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Credentials of a command that connects to a server."""

    ca: Path | None = field(
        default=None,
        metadata=setting(
            "PEM file of certificate authorities; the server must show a certificate of one of "
            "them."
        ),
    )
    cert: Path | None = field(
        default=None, metadata=setting("PEM file of a certificate to show the server.")
    )
    key: Path | None = field(
        default=None, metadata=setting("PEM file of the certificate's private key.")
    )
    token_file: Path | None = field(
        default=None, metadata=setting("File that holds the token to send.")
    )

    def config(self, retry_deadline_s: float | None = None) -> ClientConfig:
        """Returns a client's configuration with these credentials.

        Args:
            retry_deadline_s: Longest time for retries; None for the client's default.

        Raises:
            UsageError: A file cannot be used, or a certificate lacks its authority.
        """
        from thinrow.client import ClientConfig, tls_credentials

        if self.ca is None and (self.cert is not None or self.key is not None):
            raise UsageError("A certificate is shown over TLS: give --ca FILE, too.")
        config = ClientConfig(
            credentials=None
            if self.ca is None
            else tls_credentials(ca=self.ca, cert=self.cert, key=self.key),
            # A file that is replaced while the command runs is seen.
            token=None if self.token_file is None else self.token,
        )
        if retry_deadline_s is None:
            return config
        return replace(config, retry_deadline_s=retry_deadline_s)

    def token(self) -> str:
        """Reads the token file. Raises InputError."""
        assert self.token_file is not None
        try:
            return self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"Cannot read the token in {self.token_file}: {failure_reason(error)}."
            ) from error


@contextmanager
def connected(
    targets: Sequence[str | Path], access: Access | None = None, tenants: Path | None = None
) -> Iterator[Client]:
    """Yields a client of servers, or of a store that is read in this process.

    Args:
        targets: Servers, or the folder or the URL of one store. A store at a URL is copied first.
        access: Credentials for servers.
        tenants: File of tenants for a store.

    Raises:
        UsageError: A target is unclear, or has no use for credentials or tenants.
        UnavailableError: No server answers soon.
        StoreError: The store cannot be opened.
    """
    from thinrow.client import StoreConfig, connect
    from thinrow.client.target import parse_targets
    from thinrow.remote.reading import is_remote_store, local_store

    access = access or Access()
    if len(targets) == 1 and is_remote_store(str(targets[0])):
        with (
            local_store(str(targets[0])) as folder,
            connected([str(folder)], access, tenants) as client,
        ):
            yield client
        return
    if isinstance(parse_targets(targets), Path):
        if access != Access():
            raise UsageError(
                f"Credentials are for servers; leave them out with the store {targets[0]}."
            )
    else:
        if tenants is not None:
            raise UsageError("A server has its own tenants; leave --tenants out with --server.")
        with connect(targets, access.config(FIRST_ANSWER_S)) as probe:
            probe.describe_store()
    config = replace(access.config(), store=StoreConfig(tenants=tenants))
    with connect(targets, config) as client:
        yield client
