"""What a server may be told: where to listen, what to serve, and every limit."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from thinrow.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
PROCESSES_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One server. Limits hold for each of its processes.

    Raises UsageError for a value out of its range.
    """

    store: Path
    """Folder of the store."""
    listen: str = "127.0.0.1:7878"
    """HOST:PORT for gRPC; port 0 takes a free one."""
    metrics: str | None = "127.0.0.1:7879"
    """HOST:PORT for Prometheus over HTTP; None for none."""
    tenants: Path | None = None
    """TOML file of named projections."""
    processes: int = 1
    """How many processes share the port. More than one are for `Processes` to start."""
    examples_max: int = 8192
    """Most examples in one request."""
    request_bytes_max: int = 16 * MIB
    """Largest request taken."""
    response_bytes_max: int = 64 * MIB
    """Largest answer sent."""
    work_bytes_max: int = 1024 * MIB
    """Most bytes of events, decoded, that requests in work may hold together."""
    work_max: int = max(2, os.cpu_count() or 2)
    """Most requests in work at once; others wait for their turn."""
    calls_max: int = 64
    """Most single calls at once; more are refused."""
    streams_max: int = 64
    """Most streams open at once; more are refused."""
    inspect_events_max: int = 10_000
    """Most events that Inspect shows."""
    drain_s: float = 10.0
    """How long calls under way may take to end once the server is told to stop."""
    poll_s: float = 0.5
    """Pause between two looks for a new generation."""

    def __post_init__(self) -> None:
        for name in (
            "processes",
            "examples_max",
            "request_bytes_max",
            "response_bytes_max",
            "work_bytes_max",
            "work_max",
            "calls_max",
            "streams_max",
            "inspect_events_max",
            "poll_s",
        ):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be above 0.")
        if self.processes > PROCESSES_MAX:
            raise UsageError(f"processes is {self.processes}; {PROCESSES_MAX} are the most.")
        if self.drain_s < 0:
            raise UsageError(f"drain_s is {self.drain_s}, but must not be below 0.")


class Tenant(BaseModel):
    """A named projection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence_length: Annotated[int, Field(ge=0)] = 0
    truncation: Literal["newest", "head"] = "newest"
    feature_groups: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()


def read_tenants(path: Path | None) -> Mapping[str, Tenant]:
    """Reads a file of tenants: a TOML table per tenant, with a projection's fields.

    Raises:
        InputError: names the file, the key at fault and what would be right.
    """
    if path is None:
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"Cannot read the tenants file {path}: {error}.") from error
    try:
        return TypeAdapter(dict[str, Tenant]).validate_python(tables)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}.") from error
