"""Asks a gRPC method at a steady rate, with HTTP/2 written by hand: a caller of little work.

gRPC's own client takes a machine of two cores as much time as the server that is measured.
"""

from __future__ import annotations

import gc
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTIONS = 4
SPIN_S = 0.0001
"""Waits shorter than this are spun: sleeping may take longer."""
ANSWERS_S = 10.0
"""How long the last answers may take."""
WINDOW_BYTES = (1 << 31) - 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACKNOWLEDGED = 1, 4, 1
AGAIN = bytes([0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62])
"""The header block once the server's table has what the first one added."""


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">IBI", len(content) << 8 | kind, flags, stream) + content


def first_headers(path: str) -> bytes:
    """POST, http, and four more that are added to the server's table."""
    parts = [bytes([0x83, 0x86])]
    for place, name, value in (
        (4, "", path),
        (1, "", "localhost"),
        (31, "", "application/grpc"),
        (0, "te", "trailers"),
    ):
        parts.append(bytes([0x40 | place]))
        parts += [bytes([len(text)]) + text.encode() for text in (name, value) if text]
    return b"".join(parts)


class Connection:
    """One connection and its calls under way."""

    def __init__(self, address: str, method: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = struct.pack(">HI", 4, WINDOW_BYTES)
        self.socket.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, settings)
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_BYTES - 65_535))
        )
        self._headers = first_headers(method)
        self._stream = 1
        self._unread = b""
        self._data_bytes = 0
        self.due_s: dict[int, float] = {}
        """When each call under way was due."""
        self._answered: set[int] = set()

    def ask(self, request: bytes, due_s: float) -> None:
        message = b"\0" + struct.pack(">I", len(request)) + request
        stream, self._stream = self._stream, self._stream + 2
        self.due_s[stream] = due_s
        self.socket.sendall(
            frame(HEADERS, END_HEADERS, stream, self._headers)
            + frame(DATA, END_STREAM, stream, message)
        )
        self._headers = AGAIN

    def receive(self) -> list[tuple[float, bool]]:
        """Reads what came: of each call that ended when it was due, and whether it was answered."""
        ended = []
        data = self._unread + self.socket.recv(1 << 20)
        if len(data) == len(self._unread):
            raise ConnectionError("The server closed the connection.")
        at = 0
        while len(data) - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", data, at)
            size = head >> 8
            if len(data) - at - 9 < size:
                break
            kind = head & 0xFF
            if kind == DATA:
                self._answered.add(stream)
                self._data_bytes += size
            elif kind == SETTINGS and not flags & ACKNOWLEDGED:
                self.socket.sendall(frame(SETTINGS, ACKNOWLEDGED, 0, b""))
            elif kind == PING and not flags & ACKNOWLEDGED:
                self.socket.sendall(frame(PING, ACKNOWLEDGED, 0, data[at + 9 : at + 17]))
            elif kind == GOAWAY:
                raise ConnectionError("The server gave the connection up.")
            if stream and (kind == RESET or (flags & END_STREAM and kind in {DATA, HEADERS})):
                due_s = self.due_s.pop(stream, None)
                if due_s is not None:
                    # An error comes as headers alone.
                    ended.append((due_s, kind == HEADERS and stream in self._answered))
                self._answered.discard(stream)
            at += 9 + size
        self._unread = data[at:]
        if self._data_bytes > WINDOW_BYTES // 4:
            update = struct.pack(">I", self._data_bytes)
            self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, update))
            self._data_bytes = 0
        return ended


def ask_steadily(
    address: str, method: str, requests: Sequence[bytes], due: Sequence[float]
) -> tuple[list[float], int]:
    """Asks each request when it is due, seconds from now, however late earlier answers are.

    method: as in /thinrow.v1.OnlineService/Snapshot. Returns the ms that each answered call took
    from when it was due, and how many calls failed.
    """
    connections = [Connection(address, method) for _ in range(CONNECTIONS)]
    of_socket = {connection.socket: connection for connection in connections}
    sockets = list(of_socket)
    took: list[float] = []
    failed = number = 0
    gc.disable()
    start_s = time.perf_counter()
    try:
        while (number < len(requests) or any(c.due_s for c in connections)) and (
            time.perf_counter() < start_s + due[-1] + ANSWERS_S
        ):
            wait_s = ANSWERS_S
            if number < len(requests):
                wait_s = start_s + due[number] - time.perf_counter()
                if wait_s <= 0:
                    connections[number % CONNECTIONS].ask(requests[number], start_s + due[number])
                    number += 1
                    continue
            ready, _, _ = select.select(sockets, (), (), max(0.0, wait_s - SPIN_S))
            now_s = time.perf_counter()
            for one in ready:
                for due_s, answered in of_socket[one].receive():
                    if answered:
                        took.append(1e3 * (now_s - due_s))
                    else:
                        failed += 1
    finally:
        gc.enable()
        for one in sockets:
            one.close()
    return took, failed + sum(len(connection.due_s) for connection in connections)
