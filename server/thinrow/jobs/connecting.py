"""A client for one command: quick to say that nobody is there, patient once somebody was."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thinrow.client import ClientConfig, connect, tls_credentials
from thinrow.core.files.io_errors import failure_reason
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from thinrow.client import Client

FIRST_ANSWER_S = 5.0
"""How long a mistyped address may keep a person waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a command proves who it is, and to whom it talks."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token_file: Path | None = None

    def config(self, retry_deadline_s: float = ClientConfig().retry_deadline_s) -> ClientConfig:
        """A client's. Raises UsageError for files that cannot be used."""
        if self.ca is None and (self.cert is not None or self.key is not None):
            raise UsageError("A certificate is shown over TLS: give --ca FILE, too.")
        return ClientConfig(
            credentials=None
            if self.ca is None
            else tls_credentials(ca=self.ca, cert=self.cert, key=self.key),
            # A file that is replaced while the command runs is seen.
            token=None if self.token_file is None else self.token,
            retry_deadline_s=retry_deadline_s,
        )

    def token(self) -> str:
        """What the file holds now. Raises InputError."""
        assert self.token_file is not None
        try:
            return self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"Cannot read the token in {self.token_file}: {failure_reason(error)}."
            ) from error


@contextmanager
def connected(targets: Sequence[str], access: Access | None = None) -> Iterator[Client]:
    """A client of the servers named. Raises UnavailableError soon where none answers."""
    access = access or Access()
    with connect(targets, access.config(FIRST_ANSWER_S)) as probe:
        probe.describe_store()
    with connect(targets, access.config()) as client:
        yield client
