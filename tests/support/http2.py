"""A few frames of HTTP/2, for what no gRPC library does on request: pings, and half an exchange."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS, PING, GOAWAY = 1, 4, 6, 7
ACK, END_HEADERS = 1, 4
CALM_DOWN = 11
"""The error code ENHANCE_YOUR_CALM."""
TIMEOUT_S = 60


def frame(kind: int, flags: int = 0, stream: int = 0, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def literal(name: str, value: str) -> bytes:
    """A header that is not indexed, name and value below 127 bytes."""
    texts = (name.encode(), value.encode())
    return b"\0" + b"".join(bytes([len(text)]) + text for text in texts)


@dataclass
class Connection:
    """One connection to a server, read only while it is waited on."""

    socket: socket.socket
    authority: str
    goaways: list[int] = field(default_factory=list)
    """Error codes of the GOAWAY frames so far."""
    closed: bool = False
    next_stream: int = 1

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def open_call(self, method: str) -> None:
        """Opens the next stream and sends no message on it."""
        headers = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", self.authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
        block = b"".join(literal(name, value) for name, value in headers)
        self.send(frame(HEADERS, END_HEADERS, self.next_stream, block))
        self.next_stream += 2

    def ping(self) -> bool:
        """Sends a ping and waits for its answer; False where the server has hung up."""
        self.send(frame(PING, body=b"thinrow?"))
        while not self.closed:
            if self.receive() == (PING, ACK):
                return True
        return False

    def receive(self) -> tuple[int, int]:
        """Waits for a frame; returns its kind and flags, (-1, 0) at the end of the connection."""
        try:
            head = self._exactly(9)
            body = self._exactly(int.from_bytes(head[:3], "big"))
        except (EOFError, ConnectionError):
            self.closed = True
            return -1, 0
        kind, flags = head[3], head[4]
        if kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK))
        if kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, body=body))
        if kind == GOAWAY:
            self.goaways.append(int.from_bytes(body[4:8], "big"))
        return kind, flags

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self.socket.recv(count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts


@contextmanager
def http2(address: str) -> Iterator[Connection]:
    """Connects to HOST:PORT; closed at the end."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), TIMEOUT_S) as opened:
        connection = Connection(opened, address)
        connection.send(PREFACE + frame(SETTINGS))
        yield connection
