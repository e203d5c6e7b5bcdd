"""What a server may be told: where to listen, what to serve, whom to trust, and every limit."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from thinrow.core.io_errors import failure_reason
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

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
PROCESSES_MAX = 256
TOKENS_MAX = 16
ZERO_ALLOWED = ("reflection", "inspect", "drain_s", "dedup_window_ms", "commit_lead_ms")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(ServiceConfig):
    """One server. Limits hold for each of its processes."""

    listen: str = "127.0.0.1:7878"
    metrics: str | None = "127.0.0.1:7879"
    inspect: bool = True
    """Whether Inspect answers."""
    processes: int = 1
    """How many processes share the port. More than one are for `Processes` to start."""
    examples_max: int = 8192
    """Most examples in one request."""
    request_bytes_max: int = MIB
    cache_bytes_max: int = 1024 * MIB
    """Most memory of stored values that were asked for lately; twice that for a moment, when a new
    generation takes over."""
    work_max: int = max(2, os.cpu_count() or 2)
    calls_max: int = 64
    inspect_events_max: int = 10_000
    """Most events that Inspect shows."""

    def __post_init__(self) -> None:
        ServiceConfig.__post_init__(self)
        if self.processes > PROCESSES_MAX:
            raise UsageError(f"processes is {self.processes}; {PROCESSES_MAX} are the most.")

    @property
    def memory_bound_bytes(self) -> int:
        """The most resident memory of a process, whatever callers do."""
        calls = self.calls_max + self.streams_max
        return (
            BASE_BYTES
            # Two generations for a moment, each with its values.
            + 2 * self.cache_bytes_max
            + self.work_bytes_max
            + calls * (self.response_bytes_max + REQUEST_COPIES * self.request_bytes_max)
            + WAITING_CALLS_MAX * self.request_bytes_max
            + self.connections_max * WINDOW_BYTES
        )


class Tenant(BaseModel):
    """A named projection, who may use it, and how much of the server at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence_length: Annotated[int, Field(ge=0)] = 0
    truncation: Literal["newest", "head"] = "newest"
    feature_groups: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    projections: Literal["own", "any"] = "own"
    """What a token of this tenant may ask for: this projection, or any sent along, and Inspect."""
    online: tuple[Literal["append", "export"], ...] = ()
    """What a token of this tenant may do at the online service, beside taking snapshots."""
    token_sha256: Annotated[tuple[Sha256, ...], Field(max_length=TOKENS_MAX)] = ()
    """SHA-256 of its tokens, in hexadecimal; several while one takes the place of another."""
    calls_max: Annotated[int, Field(ge=1)] | None = None
    """Most single calls at once, more are refused; None for half of the server's."""
    streams_max: Annotated[int, Field(ge=1)] | None = None
    """Most streams open at once, more are refused; None for half of the server's."""
    work_bytes_max: Annotated[int, Field(ge=1)] | None = None
    """Most decoded bytes at once, others wait; None for half of the server's."""


def read_tenants(path: Path | None) -> Mapping[str, Tenant]:
    """Reads a file of tenants: a TOML table per tenant, with the fields of `Tenant`.

    Raises:
        InputError: names the file, the key at fault and what would be right.
    """
    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"Cannot read the tenants file {path}: {failure_reason(error)}."
        ) from error
    try:
        tenants = TypeAdapter(dict[str, Tenant]).validate_python(tables)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}.") from error
    owners: dict[str, str] = {}
    for name, tenant in tenants.items():
        for token_sha256 in tenant.token_sha256:
            owner = owners.setdefault(token_sha256, name)
            if owner != name:
                raise InputError(
                    f"{path}: {owner} and {name} have the same token; give each tenant its own."
                )
    return tenants
