"""The durable state of the tier beside its events: watermarks, epochs, schemas."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from thinrow.errors import RequestError
from thinrow.store.directory import NEVER_TS
from thinrow.store.times import readable_time

if TYPE_CHECKING:
    from thinrow.online.database import TierDatabase

__all__ = ["StoredState", "TierState"]

_KEY = b"mstate"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierState:
    """Watermarks, epochs and schemas of the tier at one moment."""

    bucket_ms: int
    """Span of arrivals whose ids share a bucket."""
    first_bucket: int
    """Buckets of ids before this one are deleted."""
    kept_from_ts: int = NEVER_TS
    """Events that arrived before this watermark may be deleted."""
    sealed_ts: int = NEVER_TS
    """No event arrives before this watermark any more."""
    first_epoch: int = 0
    """Epochs before this one are deleted."""
    epoch_starts: tuple[int, ...] = ()
    """First arrival_ts of each epoch after ``first_epoch``, ascending."""
    epoch_sealed_ts: int = NEVER_TS
    """The watermark whose seal began the newest epoch."""
    purge_due: bool = False
    """True while files may still hold deleted events."""
    erased_until_ts: int = NEVER_TS
    """Events of erased users that arrived before this are deleted."""
    accepted_ts: int = NEVER_TS
    """Watermark of the newest generation that requests were served from."""
    schemas: tuple[dict[str, Any], ...] = ()
    """Schemas as JSON; a record names its schema by the place here."""

    def epoch(self, arrival_ts: int) -> int:
        """Returns the number of the epoch that holds an arrival."""
        return self.first_epoch + bisect_right(self.epoch_starts, arrival_ts)

    def epochs(self, from_ts: int, until_ts: int) -> range:
        """Returns the epochs that hold the arrivals kept of ``[from_ts, until_ts)``."""
        first = self.epoch(max(from_ts, self.kept_from_ts))
        return range(first, self.epoch(until_ts - 1) + 1)

    def bucket(self, arrival_ts: int) -> int:
        """Returns the number of the bucket for ids of an arrival."""
        return arrival_ts // self.bucket_ms

    def check_kept(self, from_ts: int) -> None:
        """Raises RequestError if events that arrived since ``from_ts`` may be deleted."""
        if from_ts < self.kept_from_ts:
            raise RequestError(
                f"The tier has kept events since {readable_time(self.kept_from_ts)} "
                f"({self.kept_from_ts}) only; request a later moment, or configure a longer "
                f"--retention from now on."
            )

    def check_whole(self, from_ts: int) -> None:
        """Raises RequestError if events of any user that arrived since may be deleted."""
        self.check_kept(from_ts)
        if from_ts < self.erased_until_ts:
            raise RequestError(
                f"The tier has kept events of all users since "
                f"{readable_time(self.erased_until_ts)} ({self.erased_until_ts}) only, where a "
                f"generation erased some; export from then on, or compact the file of an earlier "
                f"export."
            )


class StoredState:
    """Keeps the tier's state on disk.

    ``now`` is replaced and never changed, so that requests read it without a lock; the caller
    serializes updates.

    Args:
        database: Holds the state.
        bucket_ms: Span of a bucket of ids in a new tier.
        from_ts: A moment before which no event arrives in a new tier, ms.
    """

    def __init__(self, database: TierDatabase, bucket_ms: int, from_ts: int) -> None:
        self._database = database
        with database.reading():
            stored = database.get(_KEY)
        self.is_new = stored is None
        """True until the tier keeps something."""
        if stored is None:
            self.now = TierState(bucket_ms=bucket_ms, first_bucket=from_ts // bucket_ms)
        else:
            fields = json.loads(stored)
            for name in ("epoch_starts", "schemas"):
                fields[name] = tuple(fields.get(name, ()))
            self.now = TierState(**fields)

    def update(self, **changes: Any) -> None:  # noqa: ANN401 - fields of TierState
        """Replaces fields of the state, durably.

        Raises:
            StoreError: The disk failed.
        """
        self.now = replace(self.now, **changes)
        fields = asdict(self.now)
        if self.now.accepted_ts == NEVER_TS:
            del fields["accepted_ts"]  # came later: earlier versions read on
        with self._database.storing():
            self._database.put(_KEY, json.dumps(fields).encode())
            self._database.sync()
