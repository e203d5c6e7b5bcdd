"""Configuration of the jobs that read and write thin rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from thinrow.core.files.paths import Named, OneNamed
from thinrow.core.kafka import topic_among
from thinrow.core.settings import check, setting
from thinrow.core.shards import check_parts
from thinrow.errors import UsageError
from thinrow.events.units import TimeUnit, check_typed, check_watermark
from thinrow.store.place import check_place, is_url
from thinrow.store.times import DAY_MS, Cadence

__all__ = [
    "BackfillConfig",
    "ExportConfig",
    "FatLayoutConfig",
    "MaterializeConfig",
    "Order",
    "Padding",
    "Servers",
    "SlimConfig",
    "VerifyConfig",
]

Order = Literal["oldest-first", "newest-first", "arrival"]
Padding = Literal["none", "left", "right"]
Servers = str | Path | Iterable[str | Path]
"""A server, its replicas, or the folder of a store."""
TARGET = "HOST:PORT|STORE"
"""Value of `--server`: the address of a server, or the path of a store."""
_SERVER = setting(
    "The server, repeat to name replicas; or the folder of a store, read without one.",
    metavar=TARGET,
)
_SEQUENCE_LENGTH = setting(
    "Maximum number of events of each history, the newest; 0 for all.", minimum=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillConfig:
    """One run of backfill.

    Raises:
        UsageError: A value is out of its range, or contradicts another.
    """

    requests: Named = field(
        metadata=setting(
            "Parquet with user_id, request_ts and any other columns, which pass through.",
            argument="REQUESTS",
        )
    )
    store: str | Path = field(
        metadata=setting("Folder or URL of the store that the rows point at.", metavar="FOLDER|URL")
    )
    events: Named = field(metadata=setting("Raw events as given to compact; may be repeated."))
    rows: str | Path = field(
        metadata=setting(
            "Parquet file of thin rows to write; with --row-parts a new folder of such files, with "
            "--engine spark a new folder or URL.",
            option="--out",
            metavar="FILE|FOLDER|URL",
        )
    )
    cadence_ms: int | None = field(
        default=None,
        metadata=setting(
            "Refuse a store that was not cut at every multiple of this duration.",
            default_text="the store's watermarks as they are",
        ),
    )
    cadence_offset_ms: int = field(
        default=0,
        metadata=setting(
            "Move the multiples of the cadence from midnight UTC: 5h for 05:00.", minimum=0
        ),
    )
    time_unit: TimeUnit | None = field(
        default=None,
        metadata=setting(
            "Unit of times that are integers.", default_text="ms; other units are refused"
        ),
    )
    publish_delay_ms: int = field(
        default=0,
        metadata=setting("Time from a generation's watermark until it was published.", minimum=0),
    )
    lookback_ms: int | None = field(
        default=None,
        metadata=setting(
            "Time before its request that a history reaches.", default_text="no bound"
        ),
    )
    max_length: int = field(
        default=0,
        metadata=setting(
            "Maximum number of immutable events of a history; 0 for no limit.", minimum=0
        ),
    )
    row_parts: int = field(
        default=0,
        metadata=setting(
            "Write a folder of thin rows in folders part=NNNN by a hash of the user, so that each "
            "trainer reads users of few groups of servers: a power of two; 0 for no parts.",
            minimum=0,
        ),
    )

    mirror: Path | None = field(
        default=None,
        metadata=setting(
            "For a store at a URL: local folder that keeps its copy between runs.",
            default_text="a temporary folder",
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        check_parts(self.row_parts, "--row-parts")
        check_place(self.store, self.mirror)
        if self.cadence is not None:
            self.cadence.check("Backfill")
        elif self.cadence_offset_ms:
            raise UsageError("--cadence-offset moves the multiples of --cadence; give both.")

    @property
    def cadence(self) -> Cadence | None:
        """The grid that the store must have been cut at."""
        if self.cadence_ms is None:
            return None
        return Cadence(self.cadence_ms, self.cadence_offset_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class FatLayoutConfig:
    """Order and padding of the lists in fat rows.

    Raises:
        UsageError: `padding_value` names a column without a value.
    """

    order: Order = field(
        default="oldest-first",
        metadata=setting(
            "Order of the lists: by event_ts, or of arrival, in which times may descend."
        ),
    )
    padding: Padding | None = field(
        default=None,
        metadata=setting(
            "Side at which lists are padded; none takes events that look like padding as events.",
            default_text="none, and refuse rows that look padded",
        ),
    )
    padding_value: str = field(
        default="0",
        metadata=setting(
            "Value that marks padding, of event_ts unless COLUMN is named: a number, null, nan or "
            "a text.",
            metavar="[COLUMN=]VALUE",
        ),
    )

    def __post_init__(self) -> None:
        if not self.padding_value.rpartition("=")[2]:
            raise UsageError(
                f"--padding-value is {self.padding_value!r}; give VALUE, of event_ts, or "
                f"COLUMN=VALUE."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimConfig:
    """One run of slim.

    Raises:
        UsageError: A value is out of its range, or contradicts another.
    """

    fat: Named = field(
        metadata=setting("Parquet of fat rows: files, folders, globs, URLs.", argument="FAT...")
    )
    events: str | Path = field(
        metadata=setting(
            "Parquet file of events to write; with --engine spark a new folder or URL of such "
            "files.",
            option="--out-events",
            metavar="FILE|FOLDER|URL",
        )
    )
    rows: str | Path = field(
        metadata=setting(
            "The same of thin rows, in the order of the fat rows; with --row-parts a new folder.",
            option="--out-rows",
            metavar="FILE|FOLDER|URL",
        )
    )
    schema: Path | None = field(
        default=None,
        metadata=setting(
            "TOML file of feature groups and traits.",
            default_text="derived, and written beside the events",
        ),
    )
    cadence_ms: int = field(
        default=DAY_MS,
        metadata=setting("The store's generations will be cut at every multiple of this duration."),
    )
    cadence_offset_ms: int = field(
        default=0,
        metadata=setting(
            "Move the cuts of the cadence from midnight UTC: 5h for 05:00.", minimum=0
        ),
    )
    time_unit: TimeUnit | None = field(
        default=None,
        metadata=setting(
            "Unit of times that are integers.", default_text="ms; other units are refused"
        ),
    )
    layout: FatLayoutConfig = field(default_factory=FatLayoutConfig)
    """Order and padding of the lists in the fat rows."""
    on_disagreement: Literal["report", "fail"] = field(
        default="report",
        metadata=setting("If rows of one user contradict each other: report it, or write nothing."),
    )
    row_parts: int = field(
        default=0,
        metadata=setting(
            "Write a folder of thin rows in folders part=NNNN by a hash of the user, so that each "
            "trainer reads users of few groups of servers: a power of two; 0 for no parts.",
            minimum=0,
        ),
    )

    def __post_init__(self) -> None:
        check_parts(self.row_parts, "--row-parts")
        self.cadence.check("Slim")
        if str(self.events) == str(self.rows):
            raise UsageError("--out-events and --out-rows are one file; name two.")

    @property
    def cadence(self) -> Cadence:
        """The grid of cuts."""
        return Cadence(self.cadence_ms, self.cadence_offset_ms)

    @property
    def written_schema(self) -> str | Path:
        """Path or URL of the schema that fits the events."""
        if is_url(self.events):
            return self.schema or f"{str(self.events).rstrip('/')}.toml"
        return self.schema or Path(self.events).with_suffix(".toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializeConfig:
    """One run of materialize.

    Raises:
        UsageError: A value is out of its range, or contradicts another.
    """

    rows: OneNamed = field(metadata=setting("Parquet of thin rows.", argument="ROWS"))
    server: Servers = field(metadata=_SERVER)
    fat: Path = field(metadata=setting("Parquet file of fat rows to write.", option="--out"))
    sequence_length: int = field(default=0, metadata=_SEQUENCE_LENGTH)
    traits: str | Sequence[str] | None = field(
        default=None,
        metadata=setting("Only these traits, by name with commas between.", default_text="all"),
    )
    truncation: Literal["newest", "head"] = field(
        default="newest", metadata=setting("End of a long history that is kept.")
    )
    as_served: bool = field(
        default=False,
        metadata=setting("Refuse traits that were filled after events were served."),
    )
    tenant: str = field(
        default="", metadata=setting("Use the projection that the server has under this name.")
    )

    def __post_init__(self) -> None:
        check(self)
        own = (self.sequence_length, self.traits, self.truncation != "newest", self.as_served)
        if self.tenant and any(own):
            raise UsageError(
                "A tenant brings its own length, traits, truncation and as_served; give --tenant "
                "alone."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """One run of verify.

    Raises:
        UsageError: A value is out of its range.
    """

    rows: OneNamed = field(metadata=setting("Parquet of thin rows.", argument="ROWS"))
    server: Servers = field(metadata=_SERVER)
    against: OneNamed = field(
        metadata=setting("Parquet of fat rows, in the same order.", metavar="FAT")
    )
    sequence_length: int = field(default=0, metadata=_SEQUENCE_LENGTH)
    time_unit: TimeUnit | None = field(
        default=None,
        metadata=setting(
            "Unit of times that are integers.", default_text="ms; other units are refused"
        ),
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """One export of a mutable tier's events, or of a topic's.

    Raises:
        UsageError: A time makes no sense, or options contradict each other.
    """

    online: str | None = field(
        default=None,
        metadata=setting(
            "The online server, if it has a log of its own.",
            metavar="HOST:PORT",
            default_text="none: give --events",
        ),
    )
    topic_events: str | None = field(
        default=None,
        metadata=setting(
            "Topic of Kafka that is the log of events, as kafka:TOPIC; each partition is read "
            "up to the first message that arrived at the watermark or later.",
            option="--events",
            metavar="kafka:TOPIC",
            default_text="none: give --online",
        ),
    )
    watermark_ts: int = field(
        metadata=setting(
            "Write every event that arrived before this time, and close the past: no event can "
            "arrive before it any more."
        )
    )
    events: Path = field(metadata=setting("Parquet file of events to write.", option="--out"))
    since_ts: int | None = field(
        default=None,
        metadata=setting(
            "With --online: leave out events that arrived before this time.",
            default_text="the last published watermark",
        ),
    )
    store: str | Path | None = field(
        default=None,
        metadata=setting(
            "With --events: folder or URL of the store, whose last generation says where to begin "
            "and which schema events have.",
            metavar="FOLDER|URL",
            default_text="none: the topic from its beginning",
        ),
    )
    schema: Path | None = field(
        default=None,
        metadata=setting(
            "With --events: TOML file of feature groups and traits.", default_text="the store's"
        ),
    )

    def __post_init__(self) -> None:
        check_typed(self.watermark_ts, "--watermark")
        check_typed(self.since_ts or 0, "--since")
        if (self.online is None) == (self.topic is None):
            raise UsageError("Give --online HOST:PORT or --events kafka:TOPIC, one of the two.")
        if self.topic is None:
            if self.store is not None or self.schema is not None:
                raise UsageError("--store and --schema are for a topic; the server has its own.")
            return
        check_watermark(self.watermark_ts)
        if self.since_ts is not None:
            raise UsageError("--since is for --online; a topic is read from where --store ends.")
        if self.store is None and self.schema is None:
            raise UsageError("A topic's events have no schema of their own; give --schema FILE.")
        if self.store is not None:
            check_place(self.store, None)

    @property
    def topic(self) -> str | None:
        """Name of the topic; None for a server."""
        return topic_among(self.topic_events)
