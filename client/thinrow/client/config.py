"""What a client may be told: limits, deadlines and credentials."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

__all__ = ["ClientConfig"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Bounds of one client. Raises UsageError for a value out of its range."""

    examples_per_request: int = 2048
    """Most examples in one request; larger batches are asked for in several."""

    answer_bytes_wanted: int = 4 * MIB
    """How large an answer should be: requests name fewer examples where answers grow beyond."""

    requests_in_flight: int = 32
    """Most requests of one stream that wait for their answers, or whose answers wait to be used."""

    connections: int = 4
    """Most connections of one stream: one to each process of a server that runs several."""

    request_deadline_s: float = 60.0
    """Seconds to wait for an answer before DeadlineError."""

    silence_timeout_s: float = 10.0
    """Seconds that a replica may keep a request waiting before the next replica gets it. At most an
    even share of the deadline; the last replica that was not silent gets all that is left of it."""

    retry_deadline_s: float = 60.0
    """Seconds to go on asking while no server is available. 0: fails at once."""

    backoff_initial_s: float = 0.05
    """Longest pause before the first retry; doubles with each, and is drawn at random below it."""

    backoff_max_s: float = 2.0
    """Longest pause between two retries."""

    connect_timeout_s: float = 5.0
    """Seconds for a connection to come up before the next target is tried."""

    request_bytes_max: int = 64 * MIB
    """Largest request sent."""

    response_bytes_max: int = 256 * MIB
    """Largest answer taken; not less than the server's own limit."""

    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    """For TLS, such as `tls_credentials(ca=...)`. None: in the clear."""

    token: str | Callable[[], str] | None = field(default=None, repr=False)
    """Sent as `authorization: Bearer ...` with each call; a callable is asked before each."""

    allow_clear_token: bool = False
    """Send the token in the clear to other machines, where the network is trusted."""

    def __post_init__(self) -> None:
        for name in (
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
        ):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be above 0.")
        if self.retry_deadline_s < 0:
            raise UsageError(
                f"retry_deadline_s is {self.retry_deadline_s}, but must not be below 0."
            )
