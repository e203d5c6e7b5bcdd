"""TLS for a server: certificates that are read again when their files change."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from thinrow.errors import UsageError
from thinrow.serving.tenants import version_of

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("thinrow.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files of a server."""

    cert: Path
    """Its certificate, and the chain."""
    key: Path
    """The certificate's private key."""
    client_ca: Path | None = None
    """Whose certificates callers must show; None: they need none."""

    def credentials(self) -> grpc.ServerCredentials:
        """What a server listens with. Raises UsageError for files that do not go together."""
        certificates = Certificates(self)
        return grpc.dynamic_ssl_server_credentials(
            certificates.first,
            certificates.changed,  # type: ignore[arg-type] # None says that nothing changed
            require_client_authentication=self.client_ca is not None,
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        named = (self.cert, self.key, self.client_ca)
        return tuple(path for path in named if path is not None)

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The files as they are. Raises UsageError."""
        try:
            # Alone it tells whether the key is the certificate's, and what is no certificate.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.cert, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
            return grpc.ssl_server_certificate_configuration(
                [(self.key.read_bytes(), self.cert.read_bytes())],
                self.client_ca.read_bytes() if self.client_ca is not None else None,
            )
        except OSError as error:  # SSLError is one
            names = ", ".join(map(str, self.files))
            raise UsageError(
                f"TLS cannot use {names} ({error}); give PEM files of a certificate and its key."
            ) from error


class Certificates:
    """What connections are opened with; those already open keep theirs."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._version = self._now()
        self.first = tls.read()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked at each new connection: what to use from now on, None for the same."""
        with self._lock:
            version = self._now()
            if version == self._version:
                return None
            self._version = version
            try:
                read = self._tls.read()
            except UsageError as error:
                log.error("certificates cannot be used", extra={"reason": str(error)})
                return None
        log.info("certificates read", extra={"cert": str(self._tls.cert)})
        return read

    def _now(self) -> tuple[object, ...]:
        return tuple(map(version_of, self._tls.files))
