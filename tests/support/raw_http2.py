"""A few lines of HTTP/2: opens calls and leaves them half open, on one socket."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4


class Connection:
    """One connection. A context manager; it never reads, but for what fits the kernel's buffers."""

    def __init__(self, address: str, *, window_bytes: int = 65_535) -> None:
        """window_bytes: What the server may send on each call."""
        host, port = address.rsplit(":", 1)
        self._address = address
        self._socket = socket.create_connection((host, int(port)))
        self._next = 1
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, window_bytes)
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open(self, method: str, metadata: Sequence[tuple[str, str]] = ()) -> int:
        """Opens a call without a message; returns its number."""
        number, self._next = self._next, self._next + 2
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", self._address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        ]
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
        self._socket.sendall(_frame(HEADERS, END_HEADERS, number, block))
        return number

    def send(self, number: int, message: bytes, *, last: int | None = None) -> None:
        """Sends a message on a call; only its first `last` bytes where that is given."""
        body = b"\0" + struct.pack(">I", len(message)) + message
        self._socket.sendall(_frame(DATA, 0, number, body[:last]))


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    head = struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
    return head + body


def _text(text: str) -> bytes:
    encoded = text.encode()
    assert len(encoded) < 127
    return bytes([len(encoded)]) + encoded
