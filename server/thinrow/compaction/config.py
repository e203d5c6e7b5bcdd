"""Configuration of compaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from thinrow.core.files.paths import Named
from thinrow.core.kafka import topic_among
from thinrow.core.settings import check, setting
from thinrow.core.shards import SHARDS_MAX
from thinrow.errors import UsageError
from thinrow.events.units import TimeUnit, check_watermark
from thinrow.store.place import check_place, is_url
from thinrow.store.times import DAY_MS, Cadence

__all__ = ["DEDUP_WINDOW_MS", "EMBEDDED_SHARDS_MAX", "SHARDS_DEFAULT", "CompactionConfig"]

SHARDS_DEFAULT = 4
EMBEDDED_SHARDS_MAX = 512
"""Each is a file while events are split, and at least one open file in a server of all shards."""
DEDUP_WINDOW_MS = 7 * DAY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionConfig:
    """One run of compaction.

    Raises:
        UsageError: A value is out of its range, or contradicts another.
    """

    events: Named = field(
        metadata=setting(
            "Parquet files, folders, globs, URLs; tables of Delta Lake and Iceberg; or a topic of "
            "Kafka, as kafka:TOPIC.",
            argument="EVENTS...",
            option="--events",
        )
    )
    store: str | Path = field(
        metadata=setting(
            "Folder or URL (s3://, gs://, az://, file://) of the store; created if it does not "
            "exist.",
            metavar="FOLDER|URL",
        )
    )
    watermark_ts: int = field(
        metadata=setting("The generation holds every event that arrived before this time.")
    )
    schema: Path | None = field(
        default=None,
        metadata=setting(
            "TOML file of feature groups and traits.",
            default_text="the store's; for a new store, what `thinrow schema` proposes",
        ),
    )
    shards: int | None = field(
        default=None,
        metadata=setting(
            "Shards of a new store, a power of two, at most 512 without Spark; a store keeps the "
            "number that it was built with.",
            maximum=SHARDS_MAX,
            default_text=str(SHARDS_DEFAULT),
        ),
    )
    cadence_ms: int | None = field(
        default=None,
        metadata=setting(
            "Cut a generation at every multiple of this duration, too.",
            default_text="at the watermark only",
        ),
    )
    cadence_offset_ms: int = field(
        default=0,
        metadata=setting(
            "Move the cuts of the cadence from midnight UTC: 5h for 05:00.", minimum=0
        ),
    )
    cuts_ts: Sequence[int] | None = None
    """Moments before the watermark at which to cut a generation, too, instead of a cadence's; ms,
    ascending, after 1970."""
    time_unit: TimeUnit | None = field(
        default=None,
        metadata=setting(
            "Unit of times that are integers.", default_text="ms; other units are refused"
        ),
    )
    dedup_window_ms: int = field(
        default=DEDUP_WINDOW_MS,
        metadata=setting(
            "Time before the last watermark in which stored histories are searched for duplicates.",
            minimum=0,
        ),
    )
    lookback_ms: int | None = field(
        default=None,
        metadata=setting(
            "Drop events that are older than this before the watermark.", default_text="keep all"
        ),
    )
    erase_users: str | Path | None = field(
        default=None,
        metadata=setting(
            "Erase these users: Parquet with user_id, or a text file with one id a line.",
            option="--erase",
            metavar="USERS",
        ),
    )
    accept_late: bool = field(
        default=False,
        metadata=setting(
            "Accept events from before the last watermark, as arriving at it; without this they "
            "are skipped."
        ),
    )
    drop_filled: bool = field(
        default=False,
        metadata=setting(
            "Remove traits that were filled and that --schema lacks; without this the run is "
            "refused."
        ),
    )
    keep: int | None = field(
        default=None,
        metadata=setting(
            "Remove all generations but this number of the newest.", default_text="keep all"
        ),
    )
    mirror: Path | None = field(
        default=None,
        metadata=setting(
            "For a store at a URL: local folder that keeps the last generation between runs.",
            default_text="a temporary folder",
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        check_place(self.store, self.mirror)
        if is_url(self.store) and self.keep is not None:
            raise UsageError(
                f"keep removes folders; at a URL generations are removed with thinrow store gc "
                f"--store {self.store} --keep {self.keep}."
            )
        check_watermark(self.watermark_ts)
        if self.topic is not None and self.time_unit not in (None, "ms"):
            raise UsageError("time_unit is for files; a topic's times are in milliseconds.")
        if self.cuts_ts is not None:
            every = [0, *self.cuts_ts, self.watermark_ts]
            if self.cadence_ms is not None or any(a >= b for a, b in pairwise(every)):
                raise UsageError(
                    "cuts_ts stands instead of a cadence, and ascends from after 1970 to before "
                    "the watermark."
                )
        if self.cadence is not None:
            self.cadence.check("Compaction")
        elif self.cadence_offset_ms:
            raise UsageError("--cadence-offset moves the cuts of --cadence; give both.")

    @property
    def topic(self) -> str | None:
        """Name of the topic that has the events; None for files."""
        return topic_among(self.events)

    @property
    def folder(self) -> Path:
        """Folder of the store, if it is one."""
        return Path(self.store)

    @property
    def cadence(self) -> Cadence | None:
        """The grid of cuts."""
        if self.cadence_ms is None:
            return None
        return Cadence(self.cadence_ms, self.cadence_offset_ms)
