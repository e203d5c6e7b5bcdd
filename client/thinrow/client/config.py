"""Limits, deadlines and credentials of a client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinrow.core.settings import require_bounds
from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import grpc

__all__ = ["ClientConfig", "StoreConfig"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Settings of a store that is read in this process; a server has its own.

    Memory is at most twice `cache_bytes_max`, since the old generation is read until the new one is
    open, `work_bytes_max`, 64 MiB of blocks, and the responses in flight.

    Raises:
        UsageError: A value is out of its range.
    """

    cache_bytes_max: int = 256 * MIB
    """Memory of recently read values of a generation; best as large as what a pass reads."""

    work_bytes_max: int = 1024 * MIB
    """Decoded bytes that all lookups in work may hold together; further ones wait."""

    examples_per_lookup: int = 8192
    """Most examples looked up at once, in place of `examples_per_request`; few if they are long, as
    `answer_bytes_wanted` holds here, too."""

    lookup_threads: int = 1
    """Lookups in work at once, a thread each; more help if the disk is slow and cores are free."""

    tenants: Path | None = None
    """TOML file of named projections, as `thinrow serve --tenants` reads it."""

    def __post_init__(self) -> None:
        require_bounds(
            self, "cache_bytes_max", "work_bytes_max", "examples_per_lookup", "lookup_threads"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Settings of one client.

    Raises:
        UsageError: A value is out of its range.
    """

    examples_per_request: int = 2048
    """Most examples in one request; larger batches are split into several."""

    answer_bytes_wanted: int = 4 * MIB
    """Target size of a response: requests name fewer examples if responses grow larger."""

    requests_in_flight: int = 32
    """Most requests of one stream that are in flight or whose responses are not used yet."""

    connections: int = 4
    """Most connections of one stream: one to each process of a server with several."""

    hedged_share: float = 0.05
    """Most requests, as a share of all, that are repeated at another replica because the first one
    takes long; only in a cluster whose groups have several replicas, and of several online servers.
    0: none."""

    request_deadline_s: float = 60.0
    """Seconds to wait for a response before DeadlineError."""

    silence_timeout_s: float = 10.0
    """Seconds that a replica may keep a request waiting before the next replica gets it. At most an
    even share of the deadline; the last replica gets all that is left of it."""

    retry_deadline_s: float = 60.0
    """Seconds to retry while no server is available. 0: fails at once."""

    backoff_initial_s: float = 0.05
    """Longest pause before the first retry. Doubles with each; the pause is random below it."""

    backoff_max_s: float = 2.0
    """Longest pause between two retries."""

    connect_timeout_s: float = 5.0
    """Time limit for a connection before the next target is tried."""

    request_bytes_max: int = 64 * MIB
    """Largest request sent."""

    response_bytes_max: int = 256 * MIB
    """Largest response accepted; not less than the server's own limit."""

    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    """For TLS, such as `tls_credentials(ca=...)`. None: unencrypted."""

    token: str | Callable[[], str] | None = field(default=None, repr=False)
    """Sent as `authorization: Bearer ...` with each call; a callable runs before each call."""

    allow_clear_token: bool = False
    """Permits sending the token unencrypted to other machines, on a trusted network."""

    store: StoreConfig = field(default_factory=StoreConfig)
    """Limits of a store that is read in this process. For a store, settings of connections, retries
    and credentials do not apply."""

    def __post_init__(self) -> None:
        require_bounds(
            self,
            "examples_per_request",
            "answer_bytes_wanted",
            "requests_in_flight",
            "connections",
            "request_deadline_s",
            "silence_timeout_s",
            "backoff_initial_s",
            "backoff_max_s",
            "connect_timeout_s",
            "request_bytes_max",
            "response_bytes_max",
            retry_deadline_s=0,
            hedged_share=0,
        )
        if self.hedged_share > 1:
            raise UsageError(f"hedged_share is {self.hedged_share}; it must be at most 1.")
