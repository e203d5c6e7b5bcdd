"""Configuration of a fill."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from thinrow.core.files.paths import Named
from thinrow.core.settings import check, setting
from thinrow.events.units import TimeUnit
from thinrow.store.place import check_place

__all__ = ["VALUES_BYTES_MAX", "FillConfig"]

VALUES_BYTES_MAX = 2 << 30
"""Limit on the rows in memory at once, in canonical form: of one shard where they name users, of
the whole table where they name values of a trait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FillConfig:
    """One fill: values for stored events.

    Raises:
        UsageError: A value is out of its range.
    """

    group: str = field(metadata=setting("Feature group to fill.", argument="GROUP"))
    values: Named = field(
        metadata=setting(
            "Parquet files, folders, globs, URLs; tables of Delta Lake and Iceberg.",
            argument="VALUES...",
        )
    )
    store: str | Path = field(
        metadata=setting(
            "Folder or URL (s3://, gs://, az://, file://) of the store.", metavar="FOLDER|URL"
        )
    )
    schema: Path | None = field(
        default=None,
        metadata=setting(
            "TOML file with the group; the store's whole schema may stand beside it.",
            default_text="the store's",
        ),
    )
    by: str | None = field(
        default=None,
        metadata=setting(
            "Join rows to events by event_id (and user_id), by event_ts (and user_id and the key "
            "traits), or by the value of a trait.",
            metavar="event_id|event_ts|TRAIT",
            default_text="the first of these that VALUES has",
        ),
    )
    time_unit: TimeUnit | None = field(
        default=None,
        metadata=setting(
            "Unit of times that are integers.", default_text="ms; other units are refused"
        ),
    )

    mirror: Path | None = field(
        default=None,
        metadata=setting(
            "For a store at a URL: local folder that keeps the last generation between runs.",
            default_text="a temporary folder",
        ),
    )

    @property
    def folder(self) -> Path:
        """Folder of the store, if it is one."""
        return Path(self.store)

    def __post_init__(self) -> None:
        check(self)
        check_place(self.store, self.mirror)
