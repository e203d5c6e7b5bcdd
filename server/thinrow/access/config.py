"""Configuration that both services share: addresses, credentials and limits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
BASE_BYTES = 256 * MIB
"""Interpreter, libraries, threads and opened files, before the first call."""
FREED_BYTES_KEPT = 1 << 30
"""Freed memory beyond this goes back to the system."""
WINDOW_BYTES = MIB
"""What a connection takes in before the server has looked at it."""
REQUEST_COPIES = 10
"""Of each call: a request under way, one in bytes, and up to eight times that decoded."""
OPENING_MAX = 64
"""Calls at once whose first request has not arrived. They hold none of the server's places."""
UTILITY_CALLS_MAX = 32
"""Calls of health and reflection at once; they share no place and no thread with the service."""
WAITING_CALLS_MAX = OPENING_MAX + UTILITY_CALLS_MAX
"""Calls beside those in their places that may each have a request on its way."""
UTILITY_THREADS = 2 * UTILITY_CALLS_MAX
"""A call that gave way needs its thread for a moment longer."""
SPARE_THREADS = 16
"""Threads for the refusal of calls over a limit, and for calls that just gave way to others."""
HTTP_CONNECTIONS_MAX = 16
"""Connections to the metrics port at once, a thread each."""
OTHER_THREADS = 256
"""Threads that no caller has a part in: those of gRPC, RocksDB, numpy, and our own background."""
ZERO_ALLOWED = ("reflection", "inspect", "drain_s", "dedup_window_ms", "commit_lead_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What every service may be told: where to listen, whom to trust, how much to take.

    Raises UsageError for a value out of its range.
    """

    store: Path
    """Folder of the store."""
    listen: str
    """HOST:PORT for gRPC; port 0 takes a free one."""
    metrics: str | None
    """HOST:PORT for Prometheus over HTTP; None for none."""
    tenants: Path | None = None
    """TOML file of named projections, their tokens and limits; read again when it changes."""
    tls_cert: Path | None = None
    """PEM file of the certificate and its chain; None: in the clear. Read again when it changes."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    tls_client_ca: Path | None = None
    """PEM file of those whose certificates callers must show; None: they need none."""
    reflection: bool = True
    """Whether anybody may ask for the names of methods and messages."""
    request_bytes_max: int
    """Largest request taken; decoded it takes up to eight times as much."""
    response_bytes_max: int = 64 * MIB
    """Largest answer sent."""
    work_bytes_max: int = 1024 * MIB
    """Most bytes of events, decoded, that requests in work may hold together."""
    work_max: int
    """Most requests in work at once; others wait for their turn."""
    calls_max: int
    """Most single calls at once; more are refused."""
    streams_max: int = 64
    """Most streams open at once; more are refused."""
    connections_max: int = 512
    """Most connections at once; more are closed as they come."""
    drain_s: float = 10.0
    """How long calls under way may take to end once the server is told to stop."""
    first_request_s: float = 30.0
    """Upper bound on the wait for a call's first request; until then the call has no place."""
    idle_s: float = 600.0
    """Upper bound on the time a stream is idle, or an answer unread; clients open it again."""
    poll_s: float = 0.5
    """Pause between two looks for a new generation, and for new tenants."""

    @property
    def call_threads(self) -> int:
        """Threads for calls of the service."""
        return self.calls_max + self.streams_max + OPENING_MAX + SPARE_THREADS

    @property
    def threads_max(self) -> int:
        """The most threads of a process, whatever callers do."""
        return self.call_threads + UTILITY_THREADS + HTTP_CONNECTIONS_MAX + OTHER_THREADS

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            zero = field.name in ZERO_ALLOWED
            if isinstance(value, int | float) and value <= 0 and not (zero and value == 0):
                least = "must not be below 0" if zero else "must be above 0"
                raise UsageError(f"{field.name} is {value}, but {least}.")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("TLS needs tls_cert and tls_key, both.")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise UsageError("tls_client_ca needs tls_cert and tls_key.")
