"""Two network namespaces, and a wire between them that delays, loses, doubles, alters, or is cut.

What `tc netem` does, but in this process, packet by packet, so that a seed repeats it and kernels
without netem will do: each end is a TUN device, and packets go from one to the other through a
queue ordered by the time at which they are due. TUN devices offload nothing, so the kernel checks
the checksums of what was corrupted. Nothing leaves the machine, nor the namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "thinrow-fault-"
SERVER, CLIENT = PREFIX + "server", PREFIX + "client"
ADDRESSES = {SERVER: "10.77.7.1", CLIENT: "10.77.7.2"}
DEVICE = "thinrow0"
PACKET_BYTES_MAX = 1500
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
CLONE_NEWNET = 0x40000000
PROTOCOL_AT, TCP = 9, 6
RESET = 0x14


@dataclass(frozen=True)
class Weather:
    """Effects of the wire on packets, in both directions."""

    delay_ms: float = 0
    jitter_ms: float = 0
    """Up to so much more, each packet by itself: so they are reordered."""
    bytes_per_s: float = 0
    """0 for no bound."""
    queue_bytes_max: int = 1 << 18
    """Bound on packets that wait for the wire; more are dropped."""
    lost: float = 0
    doubled: float = 0
    corrupted: float = 0
    """Shares of all packets; a corrupted one has a bit flipped."""
    is_cut: bool = False


@dataclass
class Wire:
    """Carries packets, in a thread, until it is closed."""

    seed: int
    weather: Weather = field(default_factory=Weather)
    carried: int = 0
    harmed: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        self._ends = [open_tun(name) for name in (SERVER, CLIENT)]
        self._rng = random.Random(self.seed)
        self._due: list[tuple[float, int, int, bytes]] = []
        self._number = itertools.count()
        self._free_s = [0.0, 0.0]
        self._resets = [False, False]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._thread.start()

    def be(self, **changes: float) -> None:
        """Changes the weather; what is on its way arrives as it would have."""
        self.weather = replace(Weather(), **changes)  # type: ignore[arg-type]

    def cut(self) -> None:
        """Stops all arrivals, also of packets on their way."""
        self.weather = Weather(is_cut=True)
        self._due = []

    def drop(self) -> None:
        """Drops the connections in use: the next packet either way becomes its reset."""
        self._resets = [True, True]

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for end in (0, 1):
                selector.register(self._ends[end], selectors.EVENT_READ, end)
            while not self._stopping.is_set():
                wait_s = 0.02
                if self._due:
                    wait_s = min(wait_s, max(0.0, self._due[0][0] - time.monotonic()))
                for key, _ in selector.select(wait_s):
                    self._take(key.data, os.read(key.fd, 65536))
                self._deliver()

    def _take(self, end: int, packet: bytes) -> None:
        weather, rng, now_s = self.weather, self._rng, time.monotonic()
        self.carried += 1
        if weather.is_cut or rng.random() < weather.lost:
            self.harmed += 1
            return
        if self._resets[end] and packet[PROTOCOL_AT] == TCP:
            self._resets[end] = False
            self.dropped += 1
            packet = as_reset(packet)
        if rng.random() < weather.corrupted:
            self.harmed += 1
            bit = rng.randrange(8 * len(packet))
            changed = bytearray(packet)
            changed[bit // 8] ^= 1 << bit % 8
            packet = bytes(changed)
        due_s = now_s
        if weather.bytes_per_s:
            if (self._free_s[end] - now_s) * weather.bytes_per_s > weather.queue_bytes_max:
                self.harmed += 1
                return
            due_s = max(now_s, self._free_s[end]) + len(packet) / weather.bytes_per_s
            self._free_s[end] = due_s
        for _ in range(2 if rng.random() < weather.doubled else 1):
            late_s = (weather.delay_ms + rng.random() * weather.jitter_ms) / 1000
            heapq.heappush(self._due, (due_s + late_s, next(self._number), 1 - end, packet))

    def _deliver(self) -> None:
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            _, _, end, packet = heapq.heappop(self._due)
            try:
                os.write(self._ends[end], packet)
            except OSError:  # a packet whose header was corrupted is refused
                self.harmed += 1


@contextmanager
def namespaces(seed: int) -> Iterator[Wire]:
    """Both namespaces and the wire between them; skips the test where that right is missing."""
    if os.geteuid() or not shutil.which("ip") or not Path("/dev/net/tun").exists():
        pytest.skip("needs root, iproute2 and /dev/net/tun, for namespaces of its own")
    remove()  # what a run that was killed has left
    with ExitStack() as stack:
        stack.callback(remove)
        for name in ADDRESSES:
            if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
                pytest.skip("may not make network namespaces here")
        wire = Wire(seed)
        stack.callback(wire.close)
        for name, address in ADDRESSES.items():
            for command in (
                ("link", "set", "lo", "up"),
                ("address", "add", f"{address}/24", "dev", DEVICE),
                ("link", "set", DEVICE, "mtu", str(PACKET_BYTES_MAX), "up"),
            ):
                subprocess.run(["ip", "-n", name, *command], check=True)
        yield wire


def as_reset(packet: bytes) -> bytes:
    """A TCP packet over IPv4, as one that resets its connection."""
    changed = bytearray(packet)
    tcp = 4 * (packet[0] & 15)
    flags, checksum = struct.unpack_from("!HxxH", packet, tcp + 12)
    reset = flags & 0xF000 | RESET
    # The checksum follows from the old one and what changes, in ones' complement.
    total = (~checksum & 0xFFFF) + (~flags & 0xFFFF) + reset
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!HxxH", changed, tcp + 12, reset, ~total & 0xFFFF)
    # What was skipped over is the window, which stays.
    changed[tcp + 14 : tcp + 16] = packet[tcp + 14 : tcp + 16]
    return bytes(changed)


def remove() -> None:
    """Removes our namespaces, and with them their devices."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        if line.startswith(PREFIX):
            subprocess.run(["ip", "netns", "delete", line.split()[0]], check=False)


def inside(namespace: str, command: list[str]) -> list[str]:
    """The command, to be run in a namespace."""
    return ["ip", "netns", "exec", namespace, *command]


def open_tun(namespace: str) -> int:
    """A TUN device in a namespace, as a file descriptor of this one."""
    opened: list[int] = []

    def enter_and_open() -> None:
        # A thread's namespace is its own: no other thread of the process leaves the old one.
        with Path(f"/run/netns/{namespace}").open() as place:
            if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), CLONE_NEWNET):
                return
        end = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        opened.append(end)

    thread = threading.Thread(target=enter_and_open)
    thread.start()
    thread.join()
    if not opened:
        pytest.skip("may not enter network namespaces here")
    return opened[0]
