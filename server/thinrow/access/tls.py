"""TLS for a server: certificates that are read again when their files change."""

from __future__ import annotations

import logging
import ssl
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
from thinrow.access.tenants import version_of
from thinrow.core.files.io_errors import access_failure
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["UTC_TIME_TAG", "VERSION_TAG", "Certificates", "elements", "expiry_s"]

VERSION_TAG, UTC_TIME_TAG = 0xA0, 0x17

log = logging.getLogger("thinrow.materialization")


class Certificates:
    """The PEM files of a server; a change counts for connections that are opened from then on.

    Args:
        cert: The certificate, and its chain.
        key: The certificate's private key.
        client_ca: The authority whose certificates clients must present; None to require none.

    Raises:
        UsageError: The files do not belong together.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._files = tuple(path for path in (cert, key, client_ca) if path is not None)
        self._lock = threading.Lock()
        self._version = self._now()
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self._first = self._read()
        self._usable = True

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials of a server's port."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._changed,  # type: ignore[arg-type] # None says that nothing changed
            require_client_authentication=self._client_ca is not None,
        )

    def expiry_s(self) -> float:
        """Returns the time at which the certificate in use expires, in seconds since the epoch."""
        self._look()
        return self._expiry_s

    def usable(self) -> bool:
        """Returns True if the files on disk are in use, False if earlier ones are."""
        self._look()
        return self._usable

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the files if they changed, None if not; gRPC calls it for each connection."""
        self._look()
        with self._lock:
            fresh, self._fresh = self._fresh, None
            return fresh

    def _look(self) -> None:
        with self._lock:
            version = self._now()
            if version == self._version:
                return
            self._version = version
            try:
                self._fresh = self._read()
                self._usable = True
            except UsageError as error:
                self._usable = False
                log.error("certificates cannot be used", extra={"reason": str(error)})
                return
        log.info("certificates read", extra={"cert": str(self._cert)})

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """The files as they are. Raises UsageError."""
        try:
            # It finds a key that is not the certificate's, and files that are no certificates.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._cert, self._key)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
            cert = self._cert.read_bytes()
            self._expiry_s = expiry_s(cert)
            return grpc.ssl_server_certificate_configuration(
                [(self._key.read_bytes(), cert)],
                self._client_ca.read_bytes() if self._client_ca is not None else None,
            )
        except (OSError, ValueError, IndexError) as error:  # SSLError is an OSError
            names = ", ".join(map(str, self._files))
            # The numbers of an SSLError are OpenSSL's own.
            if not isinstance(error, ssl.SSLError) and (reason := access_failure(error)):
                raise UsageError(f"TLS cannot use {names}: {reason}.") from error
            raise UsageError(
                f"TLS cannot use {names} ({error}); give PEM files of a certificate and its key."
            ) from error

    def _now(self) -> tuple[object, ...]:
        return tuple(map(version_of, self._files))


def expiry_s(pem: bytes) -> float:
    """Returns the time at which a PEM file's first certificate expires, in seconds since the epoch.

    Raises:
        ValueError: The file has no certificate.
    """
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = pem.decode("ascii")[pem.index(begin.encode()) :]
    der = ssl.PEM_cert_to_DER_cert(text[: text.index(end) + len(end)])
    # Certificate: what is signed: [version], number, algorithm, issuer, validity: from, until.
    [(_, certificate), *_] = elements(der)
    [(_, signed), *_] = elements(certificate)
    fields = [content for tag, content in elements(signed) if tag != VERSION_TAG]
    [_, (tag, until)] = elements(fields[3])
    form = "%y%m%d%H%M%SZ" if tag == UTC_TIME_TAG else "%Y%m%d%H%M%SZ"
    return datetime.strptime(until.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def elements(der: bytes) -> list[tuple[int, bytes]]:
    """The elements that lie one after the other in DER: tag and content of each."""
    found, at = [], 0
    while at < len(der):
        tag, length, start = der[at], der[at + 1], at + 2
        if length & 0x80:  # then it is the number of bytes of the length
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start], "big")
        at = start + length
        found.append((tag, der[start:at]))
    return found
