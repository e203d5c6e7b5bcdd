"""Call a gRPC method at a steady rate, with HTTP/2 written by hand: a caller of little work.

gRPC's own client takes a machine of two cores as much time as the server that is measured.
"""

from __future__ import annotations

import gc
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from thinrow.v1.online_pb2 import SnapshotStreamResponse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONNECTIONS = 4
STREAMS = 1
MESSAGES_MAX = 2
"""Messages of a stream without an answer; further requests wait and are sent together."""
REQUESTS_MAX = 64
"""Limit on the requests of one message."""
SPIN_S = 0.0001
"""Waits shorter than this are spun: sleeping may take longer."""
ANSWERS_S = 10.0
"""Limit on the wait for the last answers."""
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
    """One connection: frames out and in."""

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
        self.headers = first_headers(method)
        self._unread = b""
        self._data_bytes = 0

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Reads what came: of each frame of a call its kind, flags, stream and content."""
        data = self._unread + self.socket.recv(1 << 20)
        if len(data) == len(self._unread):
            raise ConnectionError("The server closed the connection.")
        at = 0
        while len(data) - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", data, at)
            size, kind = head >> 8, head & 0xFF
            if len(data) - at - 9 < size:
                break
            content = data[at + 9 : at + 9 + size]
            at += 9 + size
            if kind == DATA:
                self.took(size)
            else:
                self.heed(kind, flags, content)
            if stream:
                yield kind, flags, stream, content
        self._unread = data[at:]

    def heed(self, kind: int, flags: int, content: bytes) -> None:
        """Reply to frames of the connection itself."""
        if kind == SETTINGS and not flags & ACKNOWLEDGED:
            self.socket.sendall(frame(SETTINGS, ACKNOWLEDGED, 0, b""))
        elif kind == PING and not flags & ACKNOWLEDGED:
            self.socket.sendall(frame(PING, ACKNOWLEDGED, 0, content))
        elif kind == GOAWAY:
            raise ConnectionError("The server gave the connection up.")

    def took(self, data_bytes: int) -> None:
        """Lets the server send more, now and then."""
        self._data_bytes += data_bytes
        if self._data_bytes > WINDOW_BYTES // 4:
            update = struct.pack(">I", self._data_bytes)
            self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, update))
            self._data_bytes = 0


class Calls:
    """Requests, each a call of its own, and those under way on one connection."""

    def __init__(self, address: str, method: str) -> None:
        self._connection = Connection(address, method)
        self.socket = self._connection.socket
        self._stream = 1
        self._due_s: dict[int, float] = {}
        self._answered: set[int] = set()

    def __len__(self) -> int:
        return len(self._due_s)

    def send_request(self, request: bytes, due_s: float) -> None:
        stream, self._stream = self._stream, self._stream + 2
        self._due_s[stream] = due_s
        self.socket.sendall(
            frame(HEADERS, END_HEADERS, stream, self._connection.headers)
            + frame(DATA, END_STREAM, stream, as_message(request))
        )
        self._connection.headers = AGAIN

    def receive(self) -> list[tuple[float, bool]]:
        """Reads what came: of each call that ended when it was due, and whether it was answered."""
        ended = []
        for kind, flags, stream, _ in self._connection.frames():
            if kind == DATA:
                self._answered.add(stream)
            if kind == RESET or (flags & END_STREAM and kind in {DATA, HEADERS}):
                due_s = self._due_s.pop(stream, None)
                if due_s is not None:
                    # An error comes as headers alone.
                    ended.append((due_s, kind == HEADERS and stream in self._answered))
                self._answered.discard(stream)
        return ended


class Streamed:
    """Requests on one stream, as the client sends them: what waits goes together.

    Each is a StreamedRequest without its cursor, which is its number here.
    """

    def __init__(self, address: str, method: str) -> None:
        self._connection = Connection(address, method)
        self.socket = self._connection.socket
        self.socket.sendall(frame(HEADERS, END_HEADERS, 1, self._connection.headers))
        self._waiting: list[tuple[int, bytes]] = []
        self._messages = 0
        self._data = b""
        self._number = 0
        self._due_s: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._due_s)

    def send_request(self, request: bytes, due_s: float) -> None:
        self._number += 1
        self._due_s[self._number] = due_s
        self._waiting.append((self._number, request))
        self._send()

    def _send(self) -> None:
        if not self._waiting or self._messages >= MESSAGES_MAX:
            return
        now, self._waiting = self._waiting[:REQUESTS_MAX], self._waiting[REQUESTS_MAX:]
        message = b"".join(field(1, number_field(1, number) + request) for number, request in now)
        self._messages += 1
        self.socket.sendall(frame(DATA, 0, 1, as_message(message)))

    def receive(self) -> list[tuple[float, bool]]:
        """Reads what came: of each request answered when it was due, and whether it succeeded."""
        ended = []
        pieces = [self._data]
        for kind, _, _, content in self._connection.frames():
            if kind == RESET:
                raise ConnectionError("The server ended the stream.")
            if kind == DATA:
                pieces.append(content)
        data, at = b"".join(pieces), 0
        while len(data) - at >= 5:
            size = int.from_bytes(data[at + 1 : at + 5], "big")
            if len(data) - at - 5 < size:
                break
            answers = SnapshotStreamResponse.FromString(data[at + 5 : at + 5 + size]).answers
            ended += [(self._due_s.pop(one.cursor), one.HasField("response")) for one in answers]
            self._messages -= 1
            at += 5 + size
        self._data = data[at:]
        self._send()
        return ended


def as_message(content: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(content)) + content


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def number_field(number: int, value: int) -> bytes:
    return bytes([number << 3]) + varint(value)


def send_steadily(
    address: str, method: str, requests: Sequence[bytes], due: Sequence[float]
) -> tuple[list[float], int]:
    """Send each request when it is due, seconds from now, however late earlier answers are.

    method: as in /thinrow.v1.OnlineService/Snapshot; one that ends in Stream is called once and
    takes requests as `Streamed` does. Returns the ms that each answered request took from when it
    was due, and how many failed.
    """
    callers: list[Calls] | list[Streamed]
    if method.endswith("Stream"):
        callers = [Streamed(address, method) for _ in range(STREAMS)]
    else:
        callers = [Calls(address, method) for _ in range(CONNECTIONS)]
    of_socket = {caller.socket: caller for caller in callers}
    sockets = list(of_socket)
    took: list[float] = []
    failed = number = 0
    gc.disable()
    start_s = time.perf_counter()
    try:
        while (number < len(requests) or any(callers)) and (
            time.perf_counter() < start_s + due[-1] + ANSWERS_S
        ):
            wait_s = ANSWERS_S
            if number < len(requests):
                wait_s = start_s + due[number] - time.perf_counter()
                if wait_s <= 0:
                    callers[number % len(callers)].send_request(
                        requests[number], start_s + due[number]
                    )
                    number += 1
                    continue
            ready, _, _ = select.select(sockets, (), (), max(0.0, wait_s - SPIN_S))
            for one in ready:
                ended = of_socket[one].receive()
                now_s = time.perf_counter()
                took += [1e3 * (now_s - due_s) for due_s, answered in ended if answered]
                failed += sum(not answered for _, answered in ended)
    finally:
        gc.enable()
        for one in sockets:
            one.close()
    return took, failed + sum(map(len, callers))
