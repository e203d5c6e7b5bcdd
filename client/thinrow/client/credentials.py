"""What a client shows and wants to be shown over TLS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from thinrow.core.files.io_errors import access_failure
from thinrow.errors import UsageError

if TYPE_CHECKING:
    import os

__all__ = ["tls_credentials"]


def tls_credentials(
    ca: str | os.PathLike[str] | None = None,
    cert: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
) -> grpc.ChannelCredentials:
    """Credentials for `ClientConfig`, from PEM files read now.

    ca: whose certificate the server must show; None for those that gRPC trusts by itself.
    cert, key: what this client shows where the server asks for it; both or neither.

    Raises UsageError for a file that cannot be read.
    """
    if (cert is None) != (key is None):
        raise UsageError("A certificate goes with its key; give cert and key, or neither.")
    return grpc.ssl_channel_credentials(read(ca), read(key), read(cert))


def read(path: str | os.PathLike[str] | None) -> bytes | None:
    """A PEM file's bytes; None for no file."""
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
