"""Options of an online server, and every limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from thinrow.access.config import (
    BASE_BYTES,
    MIB,
    WAITING_CALLS_MAX,
    WINDOW_BYTES,
    ServiceConfig,
)
from thinrow.core.settings import setting
from thinrow.errors import UsageError
from thinrow.online.appends import PENDING_BYTES_MAX, PENDING_EVENTS_MAX
from thinrow.online.clock import Wall, wall_ts
from thinrow.online.limits import BLOCK_CACHE_BYTES, MEMTABLE_BYTES, MEMTABLES_MAX
from thinrow.online.topic.options import BOOTSTRAP_SERVERS, KAFKA_SETTINGS
from thinrow.online.topic.settings import TOPIC, TOPIC_MEMORY_BYTES, parse_partitions
from thinrow.store.place import check_folder
from thinrow.store.times import DAY_MS

__all__ = [
    "BATCH_BYTES_PER_REQUEST_BYTE",
    "BATCH_COPIES",
    "DECODING_MAX",
    "RECORD_BYTES",
    "OnlineConfig",
]

BATCH_BYTES_PER_REQUEST_BYTE = 4
DECODING_MAX = 2
"""Batches of all streams that are decoded at once, or wait decoded for their turn.

A message of a few bytes can become 64 MiB of records, of which every stream would hold some. They
are made in as many threads, because the C library keeps freed memory for each thread that freed it.
"""
RECORD_BYTES = 256
"""Memory of an event that is to be committed, beside its record: keys, and Python objects."""
BATCH_COPIES = 5
"""Copies of a batch while it is decoded: columns, defaults filled in, joined records, records."""
RECEIVED_COPIES = 2
"""Copies of the request of each call: one that gRPC receives, and one in bytes."""
DECODED_BYTES_PER_BYTE = 8
"""Memory of a request's message, decoded."""
SMALL_REQUEST_BYTES_MAX = MIB // 2
"""Largest request of any method but AppendEvents, whose messages a few threads decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig(ServiceConfig):
    """One online server. Its store may hold no generation yet."""

    store: Path = field(metadata=setting("Folder of the store, or of a mirror of one at a URL."))
    listen: str = "127.0.0.1:7888"
    metrics: str | None = "127.0.0.1:7889"
    data: Path | None = field(
        default=None,
        metadata=setting("Folder of the mutable tier.", default_text="STORE-online"),
    )
    events: str | None = field(
        default=None,
        metadata=setting(
            "Topic of Kafka that is the log of events, as kafka:TOPIC; this server is then one of "
            "its replicas.",
            metavar="kafka:TOPIC",
            default_text="a log of its own",
        ),
    )
    bootstrap_servers: str | None = field(default=None, metadata=BOOTSTRAP_SERVERS)
    kafka_settings: Path | None = field(default=None, metadata=KAFKA_SETTINGS)
    partitions: str | None = field(
        default=None,
        metadata=setting(
            "Partitions of the topic that this server reads, such as 0-3.",
            metavar="FIRST-LAST",
            default_text="all",
        ),
    )
    lag_max_ms: int | None = field(
        default=None,
        metadata=setting(
            "Longest time that answers of this replica may be behind its clock; beyond it requests "
            "of the newest moment are refused, so that another replica answers. A tenant's own "
            "lag_max comes before.",
            default_text="any",
        ),
    )
    schema: Path | None = field(
        default=None,
        metadata=setting("TOML file of feature groups, used until the store has a generation."),
    )
    retention_ms: int = field(
        default=2 * DAY_MS,
        metadata=setting(
            "Time for which past moments can be requested; longer than compaction's cadence."
        ),
    )
    dedup_window_ms: int = field(
        default=7 * DAY_MS,
        metadata=setting(
            "Time for which event ids are remembered; not shorter than compaction's.", minimum=0
        ),
    )
    commit_lead_ms: int = field(
        default=50,
        metadata=setting(
            "Time that a commit is expected to take; arrivals are that much later than now.",
            minimum=0,
            option=None,
        ),
    )
    batch_events_max: int = field(
        default=16_384,
        metadata=setting("Maximum number of events in a batch.", option=None),
    )
    batch_users_max: int = field(
        default=1024,
        metadata=setting("Maximum number of users in a SnapshotBatch.", option=None),
    )
    request_bytes_max: int = 4 * MIB
    work_bytes_max: int = 512 * MIB
    work_max: int = 2
    cache_bytes_max: int = 448 * MIB
    calls_max: int = 32
    streams_max: int = 48
    connections_max: int = 256
    wall: Wall = wall_ts
    """The wall clock."""

    @property
    def batch_bytes_max(self) -> int:
        """Limit on the bytes of a batch's records: traits left out and equal values count, too."""
        return BATCH_BYTES_PER_REQUEST_BYTE * self.request_bytes_max

    @property
    def threads_max(self) -> int:
        """The most threads of the process, whatever callers do: streams of appends have two."""
        return super(OnlineConfig, self).threads_max + self.streams_max

    @property
    def memory_bound_bytes(self) -> int:
        """The most resident memory of the process, whatever callers do."""
        calls = self.calls_max + self.streams_max
        batch = self.batch_bytes_max + RECORD_BYTES * self.batch_events_max
        return (
            BASE_BYTES
            + BLOCK_CACHE_BYTES
            # A memtable is full only once a group of records is in it.
            + MEMTABLES_MAX * (MEMTABLE_BYTES + self.batch_bytes_max)
            # Two generations for a moment, each with its values.
            + 2 * self.cache_bytes_max
            + self.work_bytes_max
            + calls
            * (
                RECEIVED_COPIES * self.request_bytes_max
                + DECODED_BYTES_PER_BYTE * SMALL_REQUEST_BYTES_MAX
            )
            + WAITING_CALLS_MAX * self.request_bytes_max
            + self.connections_max * WINDOW_BYTES
            # Batches being decoded, batches that wait, and those being committed.
            + DECODING_MAX
            * (DECODED_BYTES_PER_BYTE * self.request_bytes_max + BATCH_COPIES * batch)
            + 2 * (PENDING_BYTES_MAX + RECORD_BYTES * PENDING_EVENTS_MAX + batch)
            + (0 if self.events is None else TOPIC_MEMORY_BYTES)
        )

    def __post_init__(self) -> None:
        super(OnlineConfig, self).__post_init__()
        check_folder(self.store)
        if self.events is None:
            for name in ("bootstrap_servers", "kafka_settings", "partitions", "lag_max_ms"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{name} is for a topic; give --events kafka:TOPIC, too.")
            return
        if not TOPIC.fullmatch(self.events):
            raise UsageError(f"events is {self.events!r}; give kafka:TOPIC, or leave it out.")
        if not self.bootstrap_servers:
            raise UsageError("events is a topic; give --bootstrap-servers HOST:PORT, too.")
        if self.partitions is not None:
            parse_partitions(self.partitions)

    @property
    def folder(self) -> Path:
        """Folder of the mutable tier."""
        return self.data or self.store.with_name(f"{self.store.name}-online")
