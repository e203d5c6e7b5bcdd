"""Configuration of the materialization server."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from thinrow.access.config import (
    BASE_BYTES,
    MIB,
    REQUEST_COPIES,
    WAITING_CALLS_MAX,
    WINDOW_BYTES,
    ServiceConfig,
)
from thinrow.core.settings import setting
from thinrow.errors import UsageError
from thinrow.remote.limits import COPY_MEMORY_BYTES
from thinrow.store.place import check_place, is_url
from thinrow.store.shard_choice import ShardChoice

__all__ = ["PROCESSES_MAX", "ServerConfig"]

PROCESSES_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig(ServiceConfig):
    """One server. Limits hold for each of its processes."""

    store: str | Path = field(
        metadata=setting(
            "Folder or URL (s3://, gs://, az://, file://) of the store.", metavar="FOLDER|URL"
        )
    )
    mirror: Path | None = field(
        default=None,
        metadata=setting("Local folder for verified copies of the shards of a store at a URL."),
    )
    shards: str | None = field(
        default=None,
        metadata=setting("Shards to serve: A-B, or one number.", metavar="A-B", default_text="all"),
    )
    group: str | None = field(
        default=None,
        metadata=setting(
            "Serve the shards that the cluster's map gives to group NAME, or those of group I, "
            "from 0, of G equal groups.",
            metavar="NAME|I/G",
            default_text="all",
        ),
    )
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

    mirror_poll_s: float = field(
        default=3.0,
        metadata=setting("Mean interval at which CURRENT of a URL is read.", option=None),
    )

    def __post_init__(self) -> None:
        super(ServerConfig, self).__post_init__()
        check_place(self.store, self.mirror)
        if is_url(self.store) and self.mirror is None:
            raise UsageError(
                f"The store {self.store} is served from a local copy; give --mirror FOLDER."
            )
        if self.group_name is None:
            ShardChoice.parse(self.shards, self.group)
        else:
            self._check_group_name(self.group_name)

    def _check_group_name(self, name: str) -> None:
        from thinrow.cluster.cluster_map import GROUP_NAME

        if self.shards is not None:
            raise UsageError("--shards and --group both choose shards; give one of them.")
        if re.match(GROUP_NAME, name) is None:
            raise UsageError(
                f"--group is {name!r}; write the name of a group of the cluster's map, such as 0, "
                f"or I/G with I from 0 to G-1, such as 0/4."
            )
        if self.mirror is None:
            raise UsageError(
                f"--group {name} follows the cluster's map, which is in an object store; give "
                f"--store URL and --mirror FOLDER, or a fixed --group I/G."
            )

    @property
    def group_name(self) -> str | None:
        """Name of the server's group in the cluster's map; None without one."""
        return None if self.group is None or "/" in self.group else self.group

    @property
    def copies_store(self) -> bool:
        """True if the process that serves keeps the mirror, too, and no parent process does."""
        return self.mirror is not None and self.processes == 1

    @property
    def store_folder(self) -> Path:
        """Folder that is read: the store's, or its mirror."""
        return Path(self.store) if self.mirror is None else self.mirror

    @property
    def shard_choice(self) -> ShardChoice:
        """The shards to serve, where no map gives them."""
        return ShardChoice.parse(self.shards, self.group)

    @property
    def memory_bound_bytes(self) -> int:
        """The most resident memory of a process, whatever callers do."""
        calls = self.calls_max + self.streams_max
        return (
            BASE_BYTES
            + (COPY_MEMORY_BYTES if self.copies_store else 0)
            # Two generations for a moment, each with its values.
            + 2 * self.cache_bytes_max
            + self.work_bytes_max
            + calls * (self.response_bytes_max + REQUEST_COPIES * self.request_bytes_max)
            + WAITING_CALLS_MAX * self.request_bytes_max
            + self.connections_max * WINDOW_BYTES
        )
