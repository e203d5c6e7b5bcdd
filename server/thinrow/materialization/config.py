"""Configuration of the materialization server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from thinrow.access.config import (
    BASE_BYTES,
    MIB,
    REQUEST_COPIES,
    WAITING_CALLS_MAX,
    WINDOW_BYTES,
    ServiceConfig,
)
from thinrow.core.settings import setting

__all__ = ["PROCESSES_MAX", "ServerConfig"]

PROCESSES_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(ServiceConfig):
    """One server. Limits hold for each of its processes."""

    listen: str = "127.0.0.1:7878"
    metrics: str | None = "127.0.0.1:7879"
    inspect: bool = field(default=True, metadata=setting("Serve Inspect."))
    processes: int = field(
        default=1,
        metadata=setting(
            "Processes that share the port; the limits hold for each of them.",
            maximum=PROCESSES_MAX,
        ),
    )
    examples_max: int = field(
        default=8192, metadata=setting("Maximum number of examples in a request.")
    )
    request_bytes_max: int = MIB
    work_max: int = max(2, os.cpu_count() or 2)
    calls_max: int = 64
    inspect_events_max: int = field(
        default=10_000,
        metadata=setting("Maximum number of events that Inspect shows.", option=None),
    )

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
