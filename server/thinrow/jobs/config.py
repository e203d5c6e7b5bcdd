"""Configuration of the jobs that read and write thin rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from thinrow.core.files.paths import Named
from thinrow.core.settings import check, setting
from thinrow.errors import UsageError
from thinrow.events.units import TimeUnit
from thinrow.store.times import DAY_MS, Cadence

__all__ = ["BackfillConfig", "FatLayoutConfig", "Order", "Padding", "SlimConfig"]

Order = Literal["oldest-first", "newest-first", "arrival"]
Padding = Literal["none", "left", "right"]


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
    store: Path = field(metadata=setting("Folder of the store that the rows point at."))
    events: Named = field(metadata=setting("Raw events as given to compact; may be repeated."))
    rows: Path = field(metadata=setting("Parquet file of thin rows to write.", option="--out"))
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

    def __post_init__(self) -> None:
        check(self)
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
    events: Path = field(
        metadata=setting("Parquet file of events to write.", option="--out-events")
    )
    rows: Path = field(
        metadata=setting(
            "Parquet file of thin rows to write, in the order of the fat rows.",
            option="--out-rows",
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
    fail_on_disagreement: bool = field(
        default=False,
        metadata=setting("Write nothing if rows of a user disagree.", option=None),
    )

    def __post_init__(self) -> None:
        self.cadence.check("Slim")
        if self.events == self.rows:
            raise UsageError("--out-events and --out-rows are one file; name two.")

    @property
    def cadence(self) -> Cadence:
        """The grid of cuts."""
        return Cadence(self.cadence_ms, self.cadence_offset_ms)

    @property
    def written_schema(self) -> Path:
        """Path of the schema that fits the events."""
        return self.schema or self.events.with_suffix(".toml")
