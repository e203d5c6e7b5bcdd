"""Configuration of research: a raw interaction log to a store and thin rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from thinrow.core.files.paths import Named
from thinrow.core.files.tables import Table
from thinrow.core.settings import check, setting
from thinrow.errors import UsageError
from thinrow.events.units import TimeUnit

__all__ = ["LEAVE_ONE_OUT", "ResearchConfig"]

LEAVE_ONE_OUT = "leave-one-out"
SUM_ERROR_MAX = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ResearchConfig:
    """One run of research.

    Raises:
        UsageError: A value is out of its range, or two columns have one name.
    """

    events: Named | Table = field(
        metadata=setting(
            "CSV, TSV or Parquet: files, folders, globs, URLs; a row for each interaction.",
            argument="EVENTS...",
        )
    )
    out: Path = field(metadata=setting("Folder to write; it must not exist, or be empty."))
    user: str = field(default="user_id", metadata=setting("Column of users: integers or texts."))
    item: str = field(default="item_id", metadata=setting("Column of items: integers or texts."))
    time: str = field(default="timestamp", metadata=setting("Column of times."))
    time_unit: TimeUnit | None = field(
        default=None,
        metadata=setting("Unit of times that are integers.", default_text="detected"),
    )
    split: str = field(
        default=LEAVE_ONE_OUT,
        metadata=setting(
            "leave-one-out: each user's newest interaction for test, that before it for "
            "validation; time:0.8,0.1,0.1: shares of the interactions for training, validation "
            "and test, by time."
        ),
    )
    every: int = field(
        default=1,
        metadata=setting(
            "Train on every N-th interaction of a user; validation and test keep theirs."
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        if len({self.user, self.item, self.time}) < 3:
            raise UsageError("--user, --item and --time name one column twice; name three.")
        _ = self.time_shares

    @property
    def time_shares(self) -> tuple[float, ...] | None:
        """The shares of a split by time; None for leave-one-out.

        Raises:
            UsageError: The split is neither.
        """
        if self.split == LEAVE_ONE_OUT:
            return None
        kind, _, texts = self.split.partition(":")
        try:
            shares = tuple(float(text) for text in texts.split(","))
        except ValueError:
            shares = ()
        is_whole = abs(math.fsum(shares) - 1) <= SUM_ERROR_MAX
        if kind != "time" or len(shares) != 3 or not is_whole or not min(shares) > 0:
            raise UsageError(
                f"--split is {self.split}; give leave-one-out, or time: and three shares above 0 "
                f"whose sum is 1, such as time:0.8,0.1,0.1."
            )
        return shares
