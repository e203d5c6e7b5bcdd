"""Addresses that servers listen on."""

from __future__ import annotations

from thinrow.errors import UsageError

__all__ = ["split_address"]


def split_address(listen: str) -> tuple[str, int]:
    """Splits HOST:PORT.

    Raises:
        UsageError: The address has another form.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{listen!r} is not HOST:PORT, such as 127.0.0.1:7878.")
    return host, int(port)
