"""Configuration that both services share: addresses, credentials and limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from thinrow.core.settings import check, setting
from thinrow.errors import UsageError

__all__ = [
    "BASE_BYTES",
    "HTTP_CONNECTIONS_MAX",
    "MIB",
    "OPENING_MAX",
    "REQUEST_COPIES",
    "UTILITY_CALLS_MAX",
    "UTILITY_THREADS",
    "WAITING_CALLS_MAX",
    "WINDOW_BYTES",
    "ServiceConfig",
]

MIB = 1 << 20
BASE_BYTES = 256 * MIB
"""Interpreter, libraries, threads and opened files, before the first call."""
WINDOW_BYTES = MIB
"""Bytes that a connection buffers before the server reads them."""
REQUEST_COPIES = 10
"""Size of a call's request in memory: under way, as bytes, and decoded to eight times that."""
OPENING_MAX = 64
"""Concurrent calls whose first request has not arrived; they count against no other limit."""
UTILITY_CALLS_MAX = 32
"""Concurrent calls of health and reflection; they share no limit and no thread with the service."""
WAITING_CALLS_MAX = OPENING_MAX + UTILITY_CALLS_MAX
"""Calls beyond calls_max and streams_max that may each have a request under way."""
UTILITY_THREADS = 2 * UTILITY_CALLS_MAX
"""An evicted call needs its thread for a moment longer."""
SPARE_THREADS = 16
"""Threads for rejecting calls over a limit, and for calls that were just evicted."""
HTTP_CONNECTIONS_MAX = 16
"""Connections to the metrics port at once, a thread each."""
OTHER_THREADS = 256
"""Threads that belong to no call: those of gRPC, RocksDB and numpy, and background work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Configuration of every service: addresses, credentials and limits.

    Raises:
        UsageError: A value is out of its range.
    """

    listen: str = field(
        metadata=setting("HOST:PORT for gRPC; port 0 takes a free one.", metavar="HOST:PORT")
    )
    metrics: str | None = field(
        metadata=setting(
            "HOST:PORT for Prometheus and the status page; 'off' for none.", metavar="HOST:PORT"
        )
    )
    tenants: Path | None = field(
        default=None,
        metadata=setting(
            "TOML file of named projections, their tokens and quotas; read again when it changes."
        ),
    )
    tls_cert: Path | None = field(
        default=None,
        metadata=setting(
            "PEM file of a certificate and its chain, to serve over TLS; read again if it changes."
        ),
    )
    tls_key: Path | None = field(
        default=None, metadata=setting("PEM file of the certificate's private key.")
    )
    tls_client_ca: Path | None = field(
        default=None,
        metadata=setting(
            "PEM file of certificate authorities; callers must show a certificate of one of them."
        ),
    )
    reflection: bool = field(default=True, metadata=setting("Serve gRPC reflection."))
    request_bytes_max: int = field(
        metadata=setting("Maximum size of a request; decoded it takes up to eight times as much.")
    )
    response_bytes_max: int = field(
        default=64 * MIB, metadata=setting("Maximum size of a response.")
    )
    work_bytes_max: int = field(
        default=1024 * MIB,
        metadata=setting("Decoded bytes that all requests in work may hold together."),
    )
    work_max: int = field(
        metadata=setting("Maximum number of requests in work; others wait.", option=None)
    )
    cache_bytes_max: int = field(
        default=1024 * MIB,
        metadata=setting(
            "Memory of cached values of the store; twice that while a new generation takes over."
        ),
    )
    calls_max: int = field(
        metadata=setting("Maximum number of concurrent unary calls; further calls are rejected.")
    )
    streams_max: int = field(
        default=64,
        metadata=setting("Maximum number of open streams; further streams are rejected."),
    )
    connections_max: int = field(
        default=512,
        metadata=setting("Maximum number of connections; further connections are closed."),
    )
    first_request_s: float = field(
        default=30.0,
        metadata=setting("Longest wait for the first request of a call."),
    )
    idle_s: float = field(
        default=600.0,
        metadata=setting("Longest time that a stream may be idle, or a response unread."),
    )
    drain_s: float = field(
        default=10.0,
        metadata=setting(
            "Longest time that calls in flight may take to end after SIGTERM.", minimum=0
        ),
    )
    poll_s: float = field(
        default=0.5,
        metadata=setting(
            "Interval at which the store and the tenants file are checked for changes.", option=None
        ),
    )

    @property
    def call_threads(self) -> int:
        """Threads for calls of the service."""
        return self.calls_max + self.streams_max + OPENING_MAX + SPARE_THREADS

    @property
    def threads_max(self) -> int:
        """The most threads of a process, whatever callers do."""
        return self.call_threads + UTILITY_THREADS + HTTP_CONNECTIONS_MAX + OTHER_THREADS

    def __post_init__(self) -> None:
        check(self)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("TLS needs tls_cert and tls_key, both.")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise UsageError("tls_client_ca needs tls_cert and tls_key.")
