"""Configuration of the materialization server."""

from __future__ import annotations

import os
from dataclasses import dataclass

from thinrow.access.config import (
    BASE_BYTES,
    MIB,
    REQUEST_COPIES,
    WAITING_CALLS_MAX,
    WINDOW_BYTES,
    ServiceConfig,
)
from thinrow.errors import UsageError

PROCESSES_MAX = 256


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
