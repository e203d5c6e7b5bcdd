"""Credentials of a client: certificates for TLS, and its token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from thinrow.core.files.io_errors import access_failure
from thinrow.errors import UsageError

if TYPE_CHECKING:
    import os

    from thinrow.client.config import ClientConfig

__all__ = ["bearer_metadata", "tls_credentials"]


def tls_credentials(
    ca: str | os.PathLike[str] | None = None,
    cert: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> grpc.ChannelCredentials:
    """Returns credentials for `ClientConfig`, from PEM files read now.

    Args:
        ca: Certificate authority of the server; None for those that gRPC trusts by default.
        cert: This client's certificate, for servers that require one; goes with `key`.
        key: The certificate's private key.

    Raises:
        UsageError: A file cannot be read, or only one of `cert` and `key` is given.
    """
    if (cert is None) != (key is None):
        raise UsageError("A certificate goes with its key; give cert and key, or neither.")
    return grpc.ssl_channel_credentials(read(ca), read(key), read(cert))


def bearer_metadata(config: ClientConfig) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that carries the token; empty without one."""
    token = config.token
    if token is None:
        return ()
    return (("authorization", f"Bearer {token if isinstance(token, str) else token()}"),)


def read(path: str | os.PathLike[str] | None) -> bytes | None:
    """Returns a PEM file's bytes; None for no file."""
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        reason = access_failure(error) or f"{error.strerror}; check its path"
        raise UsageError(f"Cannot read {path} for TLS: {reason}.") from error
    if b"-----BEGIN" not in content:
        raise UsageError(f"{path} is no PEM file; TLS wants one.")
    return content
